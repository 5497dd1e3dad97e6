// The stem: a 3x3 convolution of three colours, as one product with 27 rows of weights.
#pragma once
#include "exchange.h"

// Round a tile of group `group` of a block and store it, in memory and where the map is RESIDENT; what `sums` then holds is what every reader finds.
template <int BLOCK>
DEVICE void store_tile(Forward &p, int group, int tile, float (&sums)[4]) {
    constexpr int N = positions_of(BLOCK);
    unsigned short *out = p.a.maps + maps_at(BLOCK) + ((long)group * BATCH + p.image) * N * 8;
    [[maybe_unused]] unsigned char *map = (unsigned char *)p.map<BLOCK>(group);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int q = 16 * tile + 8 * half + p.lane / 4;
        unsigned y = pack(sums[2 * half], sums[2 * half + 1]);
        if (q < N) {
            if constexpr (RESIDENT) *(unsigned *)(map + 16 * q + p.lane % 4 * 4) = y;
            *(unsigned *)(out + 8 * q + p.lane % 4 * 2) = y;
        }
        sums[2 * half] = low(y);
        sums[2 * half + 1] = high(y);
    }
}

// Zero the planes of what layers read, whose borders stay zero.
DEVICE void clear_active(Forward &p) {
    Record zero = {{0, 0, 0, 0}};
    for (int i = p.thread; i < most_active_bytes() / 16; i += THREADS)
        ((Record *)(p.shared + ACTIVE))[i] = zero;
}

// Of one image, in the planes' place, which clear_active has cleared: its border stays zero.
DEVICE void stem(Forward &p) {
    constexpr int LINE = 3 * (SIDE + 2), GROUPS = groups_in(0), AT_ONCE = 3;
    constexpr int ALL = whole(positions_of(0), 16), TILES = whole(ALL, WARPS);
    static_assert(ALL % TILES == 0, "whole warps");
    unsigned short *image = (unsigned short *)(p.shared + ACTIVE);  // with a border of zeros
    const unsigned short *source = p.a.images + (long)p.image * SIDE * SIDE * 3;
    for (int i = p.thread; i < SIDE * SIDE * 3; i += THREADS)
        image[(i / (3 * SIDE) + 1) * LINE + i % (3 * SIDE) + 3] = source[i];
    synchronise();
    int offset[2][4];  // of k = tap * 3 + colour; those past 26 have no weights
#pragma unroll
    for (int chunk = 0; chunk < 2; chunk++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int k = smaller(16 * chunk + 2 * (p.lane % 4) + e % 2 + e / 2 * 8, 26);
            offset[chunk][e] = k / 9 * LINE + k % 9;
        }
    for (int first = 0; first < GROUPS && p.warp < ALL / TILES; first += AT_ONCE) {
        float y[AT_ONCE][TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            int tile = p.warp * TILES + t, q = 16 * tile + p.lane / 4;
            const unsigned short *at = image + q / SIDE * LINE + q % SIDE * 3;
            const unsigned short *behind = image + (q + 8) / SIDE * LINE + (q + 8) % SIDE * 3;
            float sums[AT_ONCE][4];
#pragma unroll
            for (int g = 0; g < AT_ONCE; g++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[g][i] = 0;
#pragma unroll
            for (int chunk = 0; chunk < 2; chunk++) {
                const int *o = offset[chunk];
                Record x = {{join(at[o[0]], at[o[1]]), join(behind[o[0]], behind[o[1]]),
                             join(at[o[2]], at[o[3]]), join(behind[o[2]], behind[o[3]])}};
                const unsigned *w = p.a.weights + ((chunk * GROUPS + first) * 32 + p.lane) * 2;
#pragma unroll
                for (int g = 0; g < AT_ONCE; g++)
                    if (first + g < GROUPS) multiply_16(sums[g], x, load_pair(w + 64 * g));
            }
#pragma unroll
            for (int g = 0; g < AT_ONCE; g++) {
                if (first + g < GROUPS) store_tile<0>(p, first + g, tile, sums[g]);
#pragma unroll
                for (int i = 0; i < 4; i++) y[g][t][i] = sums[g][i];
            }
        }
        float *out = p.partials() + (p.warp * 8 * GROUPS + 8 * first) * 2;
#pragma unroll
        for (int g = 0; g < AT_ONCE; g++)
            if (first + g < GROUPS)
                partial_statistics<TILES, true>(p.lane, y[g], 0, out + 16 * g);
    }
    publish<0, 16 * TILES>(p, 0, 8 * GROUPS);
}
