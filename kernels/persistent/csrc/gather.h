// The gradient of 8 channels, pulled once from all who read them.
//
//     dz_u = (z_u > 0) * da_u        da_u: the transposed convolution of reader u's gradient
//     d beta_u = sum dz_u            d gamma_u = sum dz_u xhat
//     S1 = sum_u gamma_u d beta_u    S2 = sum_u gamma_u d gamma_u      over the batch
//     dh = rstd (sum_u gamma_u dz_u - S1 / N - xhat S2 / N) + what comes from the tap
//
// The raw gradient, all but S1 and S2, stays in fp32 until these two sums have come from all
// programs; then it is rounded, once, into the plane that held the map.
#pragma once
#include "backward.h"

// Add d, what a reader gave, through its norm to the sum over readers; and its norm's own sums, of
// d beta and d gamma of 8 channels.
template <class W>
DEVICE void through_norm(Backward &p, const float *gamma, const float (&d)[W::R][4],
                         const float (&xhat)[W::R][4], float (&total)[W::R][4], float *sums) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float g = gamma[e], b = gamma[W::C + e], beta_sum = 0, gamma_sum = 0;
#pragma unroll
        for (int r = 0; r < W::R; r++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int i = 2 * half + e;
                bool counts = xhat[r][i] * g + b > 0;
                if (!W::WHOLE)
                    counts = counts && W::position(p.warp, r, p.lane / 4 + 8 * half) < W::N;
                float dz = counts ? d[r][i] : 0;
                beta_sum += dz;
                gamma_sum += dz * xhat[r][i];
                total[r][i] += g * dz;
            }
        for (int step = 4; step < 32; step *= 2) {
            beta_sum += shuffle_xor(beta_sum, step);
            gamma_sum += shuffle_xor(gamma_sum, step);
        }
        if (p.lane < 4) {
            sums[2 * p.lane + e] = beta_sum;
            sums[8 + 2 * p.lane + e] = gamma_sum;
        }
    }
}

// d += what layer v gave to a group: its gradient, convolved with its weights turned round. Two
// kernel columns are one product of depth 16, the third is one of depth 8.
template <class W>
DEVICE void from_layer(Backward &p, int group, int v, float (&d)[W::R][4]) {
    for (int made = 0; made < MADE; made++) {
        const unsigned char *dout = W::plane(p, W::IN + v * MADE + made);
        const unsigned *w = p.a.weights + turned_layer_at(W::BLOCK, v) +
                            (group * MADE + made) * 384 + p.lane * 4;
        Record b[3];
#pragma unroll
        for (int kh = 0; kh < 3; kh++) b[kh] = load_record(w + kh * 128);
        if constexpr (W::STACKED) {
            dout += W::corner(W::position(p.warp, 0, p.lane % 16));
#pragma unroll
            for (int row = 0; row < W::R + 2; row++) {
                const unsigned char *from = dout + row * W::PITCH * 16;
                Record two = rows_4(p, from + p.lane / 16 * 16);
                Record one = rows_2(p, from + 32);
#pragma unroll
                for (int kh = 0; kh < 3; kh++)
                    if (row - kh >= 0 && row - kh < W::R) {
                        multiply_16(d[row - kh], two, {b[kh].w[0], b[kh].w[1]});
                        multiply_8(d[row - kh], one, b[kh].w[2]);
                    }
            }
        } else {
#pragma unroll
            for (int r = 0; r < W::R; r++) {
                int q = smaller(W::position(p.warp, r, p.lane % 16), W::N - 1);
#pragma unroll
                for (int kh = 0; kh < 3; kh++) {
                    const unsigned char *from = dout + W::corner(q) + kh * W::PITCH * 16;
                    Record two = rows_4(p, from + p.lane / 16 * 16);
                    multiply_16(d[r], two, {b[kh].w[0], b[kh].w[1]});
                    multiply_8(d[r], rows_2(p, from + 32), b[kh].w[2]);
                }
            }
        }
    }
}

// d += what the transition gave: of every position a quarter of its 2x2's gradient.
template <class W>
DEVICE void from_transition(Backward &p, int group, float (&d)[W::R][4]) {
    constexpr int T = W::S / 2, M = T * T, CHUNKS = chunks_of(W::OUT);
    const unsigned char *end = p.end(W::BLOCK) + p.lane / 16 * M * 16;
    const unsigned *w = p.a.weights + turned_layer_at(W::BLOCK, LAYERS) + group * CHUNKS * 64;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        Pair b = load_pair(w + chunk * 64 + p.lane * 2);
#pragma unroll
        for (int r = 0; r < W::R; r++) {
            if (W::STACKED && r % 2) continue;  // under the same positions as the one above
            int q = smaller(W::position(p.warp, r, p.lane % 16), W::N - 1);
            const unsigned char *from = end + (2 * chunk * M + q / W::S / 2 * T + q % W::S / 2) * 16;
            if (2 * chunk + 1 < W::OUT) multiply_16(d[r], rows_4(p, from), b);
            else multiply_8(d[r], rows_2(p, from), b.a);
        }
    }
#pragma unroll
    for (int r = 0; r < W::R; r++)
#pragma unroll
        for (int i = 0; i < 4; i++) d[r][i] = W::STACKED && r % 2 ? d[r - 1][i] : 0.25f * d[r][i];
}

template <int R>
DEVICE void clear(float (&x)[R][4]) {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int i = 0; i < 4; i++) x[r][i] = 0;
}

// This thread's part of the scratch: group g's tile r.
DEVICE float *scratch_at(Backward &p, int g, int r) {
    return p.a.scratch +
           ((((long)p.image * SCRATCH_GROUPS + g) * SCRATCH_TILES + r) * THREADS + p.thread) * 4;
}

// The raw gradient of a group that layer `maker` made (-1: the block's input), into the scratch as
// its g-th; and this image's share of S1 and S2 to all.
template <class W>
DEVICE void pull(Backward &p, int group, int maker, int g) {
    constexpr int R = W::R, BLOCK = W::BLOCK, C = W::C;
    const float *affine = p.a.affine + affine_at(BLOCK);
    p.renew();
    int readers = LAYERS - maker, pair = p.lane % 4, c = 8 * group + 2 * pair;
    if (p.warp < W::OWNERS) {
        float xhat[R][4], total[R][4], m[2], s[2], direct[2];
        float *sums = p.work() + p.warp * 16;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int parameter = parameter_of(BLOCK, c + e);
            const float *d_pooled = p.a.d_pooled[BLOCK] + p.image * channels_of(BLOCK);
            m[e] = p.mean()[c + e], s[e] = p.rstd()[c + e];
            direct[e] = parameter < 0 ? 0 : d_pooled[parameter] / W::N;
        }
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int q = smaller(W::position(p.warp, r, p.lane / 4 + 8 * half), W::N - 1);
                unsigned h = *(const unsigned *)(W::plane(p, group) + W::corner(q) + W::INSIDE +
                                                 pair * 4);
                xhat[r][2 * half] = (low(h) - m[0]) * s[0];
                xhat[r][2 * half + 1] = (high(h) - m[1]) * s[1];
            }
        clear(total);
        for (int v = maker + 1; v < LAYERS; v++) {
            float d[R][4];
            clear(d);
            from_layer<W>(p, group, v, d);
            through_norm<W>(p, affine + v * 2 * C + c, d, xhat, total, sums);
            sums += W::OWNERS * 16;
        }
        float d[R][4];
        clear(d);
        if constexpr (W::LAST) {
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int i = 0; i < 4; i++) d[r][i] = direct[i % 2];
        } else {
            from_transition<W>(p, group, d);
        }
        through_norm<W>(p, affine + LAYERS * 2 * C + c, d, xhat, total, sums);
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                total[r][i] = s[i % 2] * total[r][i] + (W::LAST ? 0 : direct[i % 2]);
            store_four(scratch_at(p, g, r), total[r]);
        }
    }
    synchronise();
    int reader = p.thread / 16, value = p.thread % 16;
    if (reader < readers) {
        int v = maker + 1 + reader, k = 8 * group + value % 8;
        float sum = 0;
        for (int w = 0; w < W::OWNERS; w++)
            sum += p.work()[(reader * W::OWNERS + w) * 16 + value];
        p.merged()[p.thread] = sum * affine[v * 2 * C + k];
        p.columns()[norm_columns_at(BLOCK) + v * 2 * C + (value < 8 ? C : 0) + k] = sum;
    }
    synchronise();
    if (p.thread < 16) {
        float sum = 0;
        for (int r = 0; r < readers; r++) sum += p.merged()[r * 16 + p.thread];
        int word = 2 * (8 * group + p.thread % 8) + p.thread / 8;
        store_flagged(p.a.exchange + exchange_at(BLOCK) + word * BATCH + p.image, sum);
    }
}

// Wait for a group's S1 and S2 of all images, a value a warp.
template <class W>
DEVICE void receive_sums(Backward &p, int group) {
    constexpr int EACH = smaller(whole(BATCH, 32), STRETCH);
    const Word *words = p.a.exchange + exchange_at(W::BLOCK) + (16 * group + p.warp) * BATCH;
    float found[EACH], sum = 0, rstd = p.rstd()[8 * group + p.warp / 2];
    for (int at = p.lane; at < BATCH + p.lane; at += 32 * EACH) {
        load_flagged(found, words + at, words + BATCH);
#pragma unroll
        for (int i = 0; i < EACH; i++) sum += found[i];
    }
    for (int step = 1; step < 32; step *= 2) sum += shuffle_xor(sum, step);
    synchronise();
    if (p.lane == 0)
        p.correction()[p.warp] = sum / ((float)W::N * BATCH) * (p.warp % 2 ? rstd * rstd : rstd);
    synchronise();
}

// Subtract what they are: the gradient, rounded, in the place of the group's map; and in `end`,
// (N, 8), if given.
template <class W>
DEVICE void correct(Backward &p, int group, int g, unsigned char *end) {
    if (p.warp >= W::OWNERS) return;
    int pair = p.lane % 4;
    float mean[2], a[4];  // a: S1 and S2 of one channel, then of the other
    load_four(a, p.correction() + 4 * pair);
#pragma unroll
    for (int e = 0; e < 2; e++) mean[e] = p.mean()[8 * group + 2 * pair + e];
#pragma unroll
    for (int r = 0; r < W::R; r++) {
        float raw[4];
        load_four(raw, scratch_at(p, g, r));
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int q = W::position(p.warp, r, p.lane / 4 + 8 * half);
            if (!W::WHOLE && q >= W::N) continue;
            unsigned *at =
                (unsigned *)(W::plane(p, group) + W::corner(q) + W::INSIDE + pair * 4);
            unsigned h = *at;
            h = pack(raw[2 * half] - a[0] - (low(h) - mean[0]) * a[1],
                     raw[2 * half + 1] - a[2] - (high(h) - mean[1]) * a[3]);
            *at = h;
            if (end) *(unsigned *)(end + 16 * q + pair * 4) = h;
        }
    }
}
