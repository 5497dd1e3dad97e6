// From one block to the next, relu(norm), mean of 2x2, conv1x1; and the last block's tap.
//
// The mean is taken before the convolution, with which it commutes: a quarter of the products.
#pragma once
#include "layer.h"

// Wait for the block's newest channels and make all channels' affine of the norm behind it: with
// the first image.
template <int BLOCK>
DEVICE void finish_block(Forward &p) {
    constexpr int GROUPS = groups_of(BLOCK);
    if (!p.is_first()) return;
    receive<BLOCK>(p, 8 * (GROUPS - MADE), 8 * MADE);
    affine<BLOCK>(p, LAYERS, 0, 8 * GROUPS);
    synchronise();
}

template <int BLOCK>
DEVICE void transition(Forward &p) {
    constexpr int S = side_of(BLOCK), T = S / 2, M = T * T, TILES = whole(M, 16);
    constexpr int GROUPS = groups_of(BLOCK), OUT = groups_in(BLOCK + 1), CHUNKS = chunks_of(GROUPS);
    Record *means = (Record *)(p.shared + ACTIVE);  // (groups, M)
    finish_block<BLOCK>(p);
    for (int i = p.thread; i < GROUPS * M; i += THREADS) {
        int group = i / M, q = i % M;
        Affine f = affine_of(p, group);
        const Record *map = p.map<BLOCK>(group) + q / T * 2 * S + q % T * 2;
        float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
#pragma unroll
        for (int tap = 0; tap < 4; tap++) {
            Record x = map[tap / 2 * S + tap % 2];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                sum[2 * k] += positive(lower(f, x, k));
                sum[2 * k + 1] += positive(upper(f, x, k));
            }
        }
        Record y;
#pragma unroll
        for (int k = 0; k < 4; k++) y.w[k] = pack(0.25f * sum[2 * k], 0.25f * sum[2 * k + 1]);
        means[i] = y;
    }
    synchronise();  // the map is read, and its place becomes the next block's
    const unsigned *weights = p.a.weights + weights_at(BLOCK + 1) - CHUNKS * OUT * 64;
    for (int i = p.warp; i < TILES * OUT; i += WARPS) {
        int tile = i % TILES, g = i / TILES, q = smaller(16 * tile + p.lane % 16, M - 1);
        const Record *at = means + p.lane / 16 * M + q;
        float sums[1][4] = {{0, 0, 0, 0}};
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            Pair b = load_pair(weights + ((chunk * OUT + g) * 32 + p.lane) * 2);
            const Record *from = at + chunk * 2 * M;
            if (2 * chunk + 1 == GROUPS) multiply_8(sums[0], load_matrices_2(from), b.a);
            else multiply_16(sums[0], load_matrices_4(from), b);
        }
        store_tile<BLOCK + 1>(p, g, tile, sums[0]);
        partial_statistics<1, M % 16 == 0>(p.lane, sums, M - 16 * tile,
                                           p.partials() + (tile * OUT + g) * 16);
    }
    publish<BLOCK + 1, 16>(p, 0, 8 * OUT);
}

// The main head's tap: the mean of relu(norm) of the last block's channels, a group a warp.
DEVICE void last_tap(Forward &p) {
    constexpr int BLOCK = BLOCKS - 1, N = positions_of(BLOCK);
    finish_block<BLOCK>(p);
    for (int group = p.warp; group < groups_of(BLOCK); group += WARPS) {
        Affine f = affine_of(p, group);
        float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int q = p.lane; q < N; q += 32) {
            Record x = p.map<BLOCK>(group)[q];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                sum[2 * k] += positive(lower(f, x, k));
                sum[2 * k + 1] += positive(upper(f, x, k));
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            for (int step = 1; step < 32; step *= 2) sum[i] += shuffle_xor(sum[i], step);
            int parameter = parameter_of(BLOCK, 8 * group + i);
            if (p.lane == 0 && parameter >= 0)
                p.a.pooled[BLOCK][p.image * channels_of(BLOCK) + parameter] = sum[i] / N;
        }
    }
}
