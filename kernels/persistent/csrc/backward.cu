// DenseNet-DS backward in one launch, a program's images its own, with all gradients of weights.
//
// Groups are pulled from the last layer's output to the block's input, block by block. While a
// group's two sums travel between the programs, the gradients of the weights that read it are made.
// Every image's share of every gradient is written; when all are, each sums a stretch of them, in
// one order: the same bits whoever ran when.
#include "weights.h"

// Fill the planes with the block's maps, and zeros around them.
template <class W>
DEVICE void load_maps(Backward &p) {
    constexpr int S = W::S, PITCH = W::PITCH;
    const Record *maps = (const Record *)(p.a.maps + maps_at(W::BLOCK));
    for (int i = p.thread; i < groups_of(W::BLOCK) * PITCH * PITCH; i += THREADS) {
        int y = i / PITCH % PITCH - 1, x = i % PITCH - 1, group = i / (PITCH * PITCH);
        const Record *map = maps + ((long)group * BATCH + p.image) * W::N;
        Record zero = {{0, 0, 0, 0}};
        bool exists = y >= 0 && y < S && x >= 0 && x < S;
        ((Record *)(p.memory() + PLANES))[i] = exists ? map[y * S + x] : zero;
    }
    if (p.is_first() && p.thread < W::C) {
        const float *statistics = p.a.statistics + statistics_at(W::BLOCK);
        p.mean()[p.thread] = statistics[p.thread];
        p.rstd()[p.thread] = inverse_root(statistics[W::C + p.thread] + p.a.eps);
    }
    synchronise();
}

template <class W>
DEVICE void block_backward(Backward &p) {
    each_image(p, [&] { load_maps<W>(p); });
    if constexpr (!W::LAST)
        each_image(p, [&] {
            each_base<W>(groups_of(W::BLOCK), [&](int base) { transition_gradients<W>(p, base); });
        });
    // -1: the block's input. Each piece of code stands here once: code is fetched too.
    for (int u = LAYERS - 1; u >= -1; u--) {
        int first = u < 0 ? 0 : W::IN + MADE * u, groups = u < 0 ? W::IN : MADE;
        synchronise();
        each_image(p, [&] {
            for (int g = 0; g < groups; g++) pull<W>(p, first + g, u, g);
        });
        if (u + 1 < LAYERS)
            each_image(p, [&] {
                each_base<W>(W::IN + MADE * (u + 1),
                             [&](int base) { weight_gradients<W>(p, u + 1, base); });
            });
        for (int g = 0; g < groups; g++) {
            receive_sums<W>(p, first + g);
            each_image(p, [&] {
                unsigned char *end = nullptr;
                if constexpr (W::BLOCK > 0)
                    if (u < 0) end = p.end(W::BLOCK - 1) + g * W::N * 16;
                correct<W>(p, first + g, g, end);
            });
        }
    }
    synchronise();
}

DEVICE void sum_programs(Backward &p) {
    Word *written = p.a.exchange + exchange_at(BLOCKS);
    fence();
    synchronise();
    if (p.thread == 0) {
        fence();
        store_flagged(written + program_index(), 0);
    }
    for (int at = p.lane; at < num_programs(); at += 32) {
        float none[1];
        load_flagged(none, written + at, written + num_programs());
    }
    fence();
    synchronise();
    int each = whole(NUM_COLUMNS, num_programs());
    for (int i = p.thread; i < each; i += THREADS) {
        int column = program_index() * each + i;
        int place = column < NUM_COLUMNS ? p.a.order[column] : -1;
        if (place < 0) continue;
        float sum = 0;
#pragma unroll 16
        for (int image = 0; image < BATCH; image++)
            sum += p.a.columns[(long)image * NUM_COLUMNS + column];
        p.a.grads[place] = sum;
    }
}

KERNEL(THREADS) dense_persistent_backward(const BackwardArguments a) {
    Backward p = {this_program(), a};
    block_backward<Walk<2>>(p);
    block_backward<Walk<1>>(p);
    block_backward<Walk<0>>(p);
    each_image(p, [&] { stem_gradients<Walk<0>>(p); });
    sum_programs(p);
}
