// Weight gradients: sums over positions of what a weight read times the gradient it made.
//
// As products, channels stand in the rows and positions in the depth: both fragments are read
// transposed. A warp takes one chunk of channels and a share of the positions; the warps' sums
// are added in one order.
#pragma once
#include "gather.h"

// Sum fragments over the warps w, w + chunks, ... of each chunk; write(chunk, which, lane, sum).
template <int COUNT, class Write>
DEVICE void sum_warps(Backward &p, const float (&sums)[COUNT][4], int chunks, Write write) {
    static_assert(WARPS * COUNT * 512 <= WORK_BYTES, "room for all warps");
    float *all = p.work();
    synchronise();
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        store_four(all + ((p.warp * COUNT + i) * 32 + p.lane) * 4, sums[i]);
    synchronise();
    for (int item = p.thread; item < chunks * COUNT * 32; item += THREADS) {
        int chunk = item / (COUNT * 32), which = item / 32 % COUNT, lane = item % 32;
        float sum[4] = {0, 0, 0, 0};
        for (int w = chunk; w < WARPS; w += chunks)
            add_four(sum, all + ((w * COUNT + which) * 32 + lane) * 4);
        write(chunk, which, lane, sum);
    }
}

// The chunks from `base` on that warps take together.
DEVICE int chunks_from(int base, int groups) { return smaller(chunks_of(groups) - base, WARPS); }

struct Share {  // a warp's chunk of two groups, of one if `single`, and which of `units` it takes
    int chunk, begin, end;
    bool single;
};
DEVICE Share share_of(Backward &p, int base, int groups, int units) {
    int chunks = chunks_from(base, groups), chunk = p.warp % chunks, part = p.warp / chunks;
    int parts = (WARPS - chunk + chunks - 1) / chunks;
    chunk += base;
    return {chunk, part * units / parts, (part + 1) * units / parts, 2 * chunk + 1 == groups};
}

// A phase for the chunks of so many groups, with the first of as many as there are warps.
template <class W, class Phase>
DEVICE void each_base(int groups, Phase phase) {
    if constexpr (chunks_of(groups_of(W::BLOCK)) <= WARPS) phase(0);
    else
        for (int base = 0; base < chunks_of(groups); base += WARPS) phase(base);
}

// Scale and shift, under a norm, of the lane's channel in either group of the chunk.
struct ChunkNorm {
    float scale[2], shift[2];
};
template <class W>
DEVICE ChunkNorm norm_of(Backward &p, int norm, const Share &share) {
    const float *gamma = p.a.affine + affine_at(W::BLOCK) + norm * 2 * W::C;
    ChunkNorm x;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        bool none = i && share.single;
        int c = 16 * share.chunk + (none ? 0 : 8 * i) + p.lane / 4;
        x.scale[i] = none ? 0 : gamma[c] * p.rstd()[c];
        x.shift[i] = none ? 0 : gamma[W::C + c] - p.mean()[c] * x.scale[i];
    }
    return x;
}

// The map's plane whose rows this lane gives to ldmatrix, and which of 16 positions.
template <class W>
DEVICE const unsigned char *chunk_plane(Backward &p, const Share &share) {
    return W::plane(p, 2 * share.chunk + (share.single ? 0 : p.lane / 8 % 2)) + W::INSIDE;
}
DEVICE int row_of(int lane) { return lane % 8 + lane / 16 * 8; }

// The gradients of layer v's weights, (made, tap, channel, 8): of the chunks from `base` on.
template <class W>
DEVICE void weight_gradients(Backward &p, int v, int base) {
    constexpr bool ROWS = W::S % 16 == 0;  // a tile is a row's: its taps' rows are shared downwards
    int groups = W::IN + MADE * v;
    Share share = share_of(p, base, groups, W::ALL);
    ChunkNorm norm = norm_of<W>(p, v, share);
    const unsigned char *map = chunk_plane<W>(p, share);
    for (int made = 0; made < MADE; made++) {
        const unsigned char *dout = W::plane(p, W::IN + v * MADE + made);
        float sums[9][4];
        clear(sums);
        Pair b[3][3];
        for (int unit = share.begin; unit < share.end; unit++) {
            int first = ROWS ? unit % W::S * W::S + unit / W::S * 16 : unit * 16;
            int fresh = !ROWS || unit == share.begin || unit % W::S == 0 ? 0 : 2;
            if (fresh == 2)
#pragma unroll
                for (int kw = 0; kw < 3; kw++) b[0][kw] = b[1][kw], b[1][kw] = b[2][kw];
            const unsigned char *d = dout + W::corner(smaller(first + p.lane % 16, W::N - 1));
#pragma unroll
            for (int kh = 0; kh < 3; kh++)
                if (kh >= fresh) {
                    const unsigned char *from = d + kh * W::PITCH * 16;
                    Record two = columns_4(p, from + p.lane / 16 * 16);
                    Record one = columns_2(p, from + 32);
                    b[kh][0] = {two.w[0], two.w[1]};
                    b[kh][1] = {two.w[2], two.w[3]};
                    b[kh][2] = {one.w[0], one.w[1]};
                }
            int q = smaller(first + row_of(p.lane), W::N - 1);
            Record a = columns_4(p, map + W::corner(q));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                a.w[i] = pack_relu(low(a.w[i]) * norm.scale[i % 2] + norm.shift[i % 2],
                                   high(a.w[i]) * norm.scale[i % 2] + norm.shift[i % 2]);
                if (!W::WHOLE && first + i / 2 * 8 + p.lane % 4 * 2 >= W::N) a.w[i] = 0;
            }
#pragma unroll
            for (int tap = 0; tap < 9; tap++) multiply_16(sums[tap], a, b[tap / 3][tap % 3]);
        }
        float *out = p.columns() + layer_columns_at(W::BLOCK, v) + 576 * groups * made;
#pragma unroll
        for (int kh = 0; kh < 3; kh++)
            sum_warps<3>(p, *(const float(*)[3][4])sums[3 * kh], chunks_from(base, groups),
                         [=](int chunk, int kw, int lane, const float(&sum)[4]) {
                             int tap = (2 - kh) * 3 + 2 - kw;  // the gradient lay at its distance
                             for (int half = 0; half < 2; half++) {
                                 int c = 16 * (base + chunk) + 8 * half + lane / 4;
                                 if (c < 8 * groups)
                                     store_two(out + (tap * 8 * groups + c) * 8 + lane % 4 * 2,
                                               sum[2 * half], sum[2 * half + 1]);
                             }
                         });
    }
}

// The gradients of the weights of the transition behind a block, (channel, channel of the next): of
// the chunks from `base` on.
template <class W>
DEVICE void transition_gradients(Backward &p, int base) {
    constexpr int T = W::S / 2, M = T * T, GROUPS = groups_of(W::BLOCK), OUT = W::OUT;
    constexpr int PARTS = whole(OUT, 3);
    Share share = share_of(p, base, GROUPS, whole(M, 16));
    ChunkNorm norm = norm_of<W>(p, LAYERS, share);
    const unsigned char *map = chunk_plane<W>(p, share), *end = p.end(W::BLOCK);
    float sums[3 * PARTS][4];
    clear(sums);
    for (int unit = share.begin; unit < share.end; unit++) {
        int q = smaller(unit * 16 + row_of(p.lane), M - 1);
        const unsigned char *from = map + W::corner(q / T * 2 * W::S + q % T * 2);
        float mean[4][2] = {{0, 0}, {0, 0}, {0, 0}, {0, 0}};
#pragma unroll
        for (int tap = 0; tap < 4; tap++) {
            Record x = columns_4(p, from + (tap / 2 * W::PITCH + tap % 2) * 16);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                mean[i][0] += positive(low(x.w[i]) * norm.scale[i % 2] + norm.shift[i % 2]);
                mean[i][1] += positive(high(x.w[i]) * norm.scale[i % 2] + norm.shift[i % 2]);
            }
        }
        Record a;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a.w[i] = pack(0.25f * mean[i][0], 0.25f * mean[i][1]);
            if (M % 16 && unit * 16 + i / 2 * 8 + p.lane % 4 * 2 >= M) a.w[i] = 0;
        }
        const unsigned char *d = end + smaller(unit * 16 + p.lane % 16, M - 1) * 16;
#pragma unroll
        for (int g = 0; g < OUT; g++) {
            Record x = columns_2(p, d + g * M * 16);
            multiply_16(sums[g], a, {x.w[0], x.w[1]});
        }
    }
    float *out = p.columns() + layer_columns_at(W::BLOCK, LAYERS);
#pragma unroll
    for (int part = 0; part < PARTS; part++)
        sum_warps<3>(p, *(const float(*)[3][4])sums[3 * part], chunks_from(base, GROUPS),
                     [=](int chunk, int which, int lane, const float(&sum)[4]) {
                         int g = 3 * part + which;
                         for (int half = 0; half < 2; half++) {
                             int c = 16 * (base + chunk) + 8 * half + lane / 4;
                             if (c < 8 * GROUPS && g < OUT)
                                 store_two(out + c * 8 * OUT + 8 * g + lane % 4 * 2, sum[2 * half],
                                           sum[2 * half + 1]);
                         }
                     });
}

// The gradients of the stem's weights, (27, channels): rows are taps and colours.
template <class W>
DEVICE void stem_gradients(Backward &p) {
    constexpr int LINE = 3 * (SIDE + 2), GROUPS = W::IN, AT_ONCE = 3;
    // In a plane of what the layers made, which is done with; a border of zeros around.
    unsigned short *image = (unsigned short *)W::plane(p, GROUPS);
    for (int i = p.thread; i < LINE * (SIDE + 2); i += THREADS) {
        int y = i / LINE - 1, x = i % LINE / 3 - 1;
        bool exists = y >= 0 && y < SIDE && x >= 0 && x < SIDE;
        const unsigned short *source = p.a.images + (long)p.image * SIDE * SIDE * 3;
        image[i] = exists ? source[(y * SIDE + x) * 3 + i % 3] : 0;
    }
    synchronise();
    int offset[4];  // of k = tap * 3 + colour; what those past 26 make is not stored
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int k = smaller(8 * i + p.lane / 4, 26);
        offset[i] = k / 9 * LINE + k % 9;
    }
    for (int first = 0; first < GROUPS; first += AT_ONCE) {
        float sums[2 * AT_ONCE][4];
        clear(sums);
        for (int unit = p.warp; unit < W::ALL; unit += WARPS) {
            Record a[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int q = unit * 16 + 8 * half + p.lane % 4 * 2;
                const unsigned short *at = image + q / SIDE * LINE + q % SIDE * 3;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    a[i / 2].w[i % 2 + 2 * half] = join(at[offset[i]], at[offset[i] + 3]);
            }
#pragma unroll
            for (int g = 0; g < AT_ONCE; g++) {
                if (first + g >= GROUPS) continue;
                Record x = columns_2(p, W::plane(p, first + g) + W::INSIDE +
                                                      W::corner(unit * 16 + p.lane % 16));
                multiply_16(sums[g], a[0], {x.w[0], x.w[1]});
                multiply_16(sums[AT_ONCE + g], a[1], {x.w[0], x.w[1]});
            }
        }
        float *out = p.columns() + 8 * first;
#pragma unroll
        for (int m = 0; m < 2; m++)
            sum_warps<3>(p, *(const float(*)[3][4])sums[3 * m], 1,
                         [=](int, int g, int lane, const float(&sum)[4]) {
                             for (int half = 0; half < 2; half++) {
                                 int k = 16 * m + 8 * half + lane / 4;
                                 if (k < 27 && first + g < GROUPS)
                                     store_two(out + k * 8 * GROUPS + 8 * g + lane % 4 * 2,
                                               sum[2 * half], sum[2 * half + 1]);
                             }
                         });
    }
}
