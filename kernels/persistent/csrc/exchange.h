// Batch statistics of the forward: the one thing that programs tell each other.
//
// A program makes the mean and the squared deviations of each channel over its image and puts each
// in a word that nobody else writes. Every program reads all images' words and merges them in one
// order, so all have the same bits (Chan, Golub and LeVeque 1979: parallel variance).
#pragma once
#include "forward.h"

// Mean and squared deviations of 8 channels over the tiles that a warp holds, y[tile] as a product
// leaves it, into out (8, 2). Where not ALL positions exist, the first `count` do.
template <int TILES, bool ALL>
DEVICE void partial_statistics(int lane, const float (&y)[TILES][4], int count, float *out) {
    for (int e = 0; e < 2; e++) {
        float sum = 0;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                sum += ALL || 16 * t + 8 * half + lane / 4 < count ? y[t][2 * half + e] : 0;
        for (int step = 4; step < 32; step *= 2) sum += shuffle_xor(sum, step);
        float mean = sum / (ALL ? 16 * TILES : smaller(count, 16 * TILES)), squares = 0;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float d = y[t][2 * half + e] - mean;
                squares += ALL || 16 * t + 8 * half + lane / 4 < count ? d * d : 0;
            }
        for (int step = 4; step < 32; step *= 2) squares += shuffle_xor(squares, step);
        if (lane < 4) {
            out[(2 * lane + e) * 2] = mean;
            out[(2 * lane + e) * 2 + 1] = squares;
        }
    }
}

// Merge the program's partials (rows, channels, 2), of EACH positions but for the last, and give
// them to all. The image's own means are its pooled taps of the first two blocks.
template <int BLOCK, int EACH>
DEVICE void publish(Forward &p, int first, int channels) {
    constexpr int N = positions_of(BLOCK), ROWS = whole(N, EACH);
    const float *partials = p.partials() + 2 * p.thread;
    synchronise();
    if (p.thread < channels) {
        float sum = 0, within = 0, between = 0;
        for (int r = 0; r < ROWS; r++)
            sum += smaller(EACH, N - r * EACH) * partials[2 * r * channels];
        float mean = sum / N;
        for (int r = 0; r < ROWS; r++) {
            float d = partials[2 * r * channels] - mean;
            between += smaller(EACH, N - r * EACH) * d * d;
            within += partials[2 * r * channels + 1];
        }
        int c = first + p.thread, parameter = parameter_of(BLOCK, c);
        Word *words = p.a.exchange + exchange_at(BLOCK) + 2 * c * BATCH + p.image;
        store_flagged(words, mean);
        store_flagged(words + BATCH, within + between);
        if (BLOCK + 1 < BLOCKS && parameter >= 0)
            p.a.pooled[BLOCK][p.image * channels_of(BLOCK) + parameter] = mean;
    }
}

// Wait for `channels` from `first` on of all images, and merge them: a channel a warp.
template <int BLOCK>
DEVICE void receive(Forward &p, int first, int channels) {
    constexpr int N = positions_of(BLOCK), EACH = smaller(whole(BATCH, 32), STRETCH);
    constexpr bool AT_ONCE = BATCH <= 32 * EACH;  // else words that have come are read again
    for (int c = first + p.warp; c < first + channels; c += WARPS) {
        const Word *words = p.a.exchange + exchange_at(BLOCK) + 2 * c * BATCH;
        float means[EACH], squares[EACH], sum = 0, within = 0, between = 0;
        for (int at = p.lane; at < BATCH + p.lane; at += 32 * EACH) {
            load_flagged(means, words + at, words + BATCH);
            if (AT_ONCE) load_flagged(squares, words + BATCH + at, words + 2 * BATCH);
#pragma unroll
            for (int i = 0; i < EACH; i++) sum += means[i];
        }
        for (int step = 1; step < 32; step *= 2) sum += shuffle_xor(sum, step);
        float mean = sum / BATCH;
        for (int at = p.lane; at < BATCH + p.lane; at += 32 * EACH) {
            if (!AT_ONCE) {
                load_flagged(means, words + at, words + BATCH);
                load_flagged(squares, words + BATCH + at, words + 2 * BATCH);
            }
#pragma unroll
            for (int i = 0; i < EACH; i++)
                if (at + 32 * i < BATCH) {
                    between += (means[i] - mean) * (means[i] - mean);
                    within += squares[i];
                }
        }
        within += N * between;
        for (int step = 1; step < 32; step *= 2) within += shuffle_xor(within, step);
        if (p.lane == 0) {
            float variance = within / ((float)N * BATCH);
            p.mean()[c] = mean;
            p.rstd()[c] = inverse_root(variance + p.a.eps);
            if (program_index() == 0) {
                float *out = p.a.statistics + statistics_at(BLOCK);
                out[c] = mean;
                out[8 * groups_of(BLOCK) + c] = variance;
            }
        }
    }
    synchronise();
}

// ---- norms of channels whose statistics are known ------------------------------------------------

// Scale and shift of channels first ... last - 1 under norm u; the caller synchronises.
template <int BLOCK>
DEVICE void affine(Forward &p, int u, int first, int last) {
    constexpr int C = 8 * groups_of(BLOCK);
    int c = first + p.thread;
    if (c < last) {
        const float *gamma = p.a.affine + affine_at(BLOCK) + 2 * u * C;
        float scale = gamma[c] * p.rstd()[c];
        p.scale()[c] = scale;
        p.shift()[c] = gamma[C + c] - p.mean()[c] * scale;
    }
}

struct Affine {  // of a group
    float scale[2][4], shift[2][4];
};
DEVICE Affine affine_of(Forward &p, int group) {
    Affine x;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        load_four(x.scale[half], p.scale() + 8 * group + 4 * half);
        load_four(x.shift[half], p.shift() + 8 * group + 4 * half);
    }
    return x;
}

// Channels 2 i and 2 i + 1 of a record, normalised.
DEVICE float lower(const Affine &f, Record x, int i) {
    return low(x.w[i]) * f.scale[i / 2][i % 2 * 2] + f.shift[i / 2][i % 2 * 2];
}
DEVICE float upper(const Affine &f, Record x, int i) {
    return high(x.w[i]) * f.scale[i / 2][i % 2 * 2 + 1] + f.shift[i / 2][i % 2 * 2 + 1];
}
