// DenseNet-DS backward in one launch, one image a program, with all gradients of weights.
//
// Groups are pulled from the last layer's output to the block's input, block by block. While a
// group's two sums travel between the programs, the gradients of the weights that read it are made.
// Every program writes its share of every gradient; when all have, each sums a stretch of them, in
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
        ((Record *)(p.shared + PLANES))[i] = exists ? map[y * S + x] : zero;
    }
    if (p.thread < W::C) {
        const float *statistics = p.a.statistics + statistics_at(W::BLOCK);
        p.mean()[p.thread] = statistics[p.thread];
        p.rstd()[p.thread] = inverse_root(statistics[W::C + p.thread] + p.a.eps);
    }
    synchronise();
}

template <class W>
DEVICE void block_backward(Backward &p) {
    load_maps<W>(p);
    if constexpr (!W::LAST) transition_gradients<W>(p);
    // -1: the block's input. Each piece of code stands here once: code is fetched too.
    for (int u = LAYERS - 1; u >= -1; u--) {
        int first = u < 0 ? 0 : W::IN + MADE * u, groups = u < 0 ? W::IN : MADE;
        synchronise();
        for (int g = 0; g < groups; g++) pull<W>(p, first + g, u, g);
        if (u + 1 < LAYERS) weight_gradients<W>(p, u + 1);
        for (int g = 0; g < groups; g++) {
            unsigned char *end = nullptr;
            if constexpr (W::BLOCK > 0)
                if (u < 0) end = p.shared + end_at(W::BLOCK - 1) + g * W::N * 16;
            correct<W>(p, first + g, g, end);
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
        store_flagged(written + p.image, 0);
    }
    float none[whole(BATCH, 32)];
    load_flagged(none, written + p.lane, written + BATCH);
    fence();
    synchronise();
    constexpr int EACH = whole(NUM_COLUMNS, BATCH);
    for (int i = p.thread; i < EACH; i += THREADS) {
        int column = p.image * EACH + i;
        int place = column < NUM_COLUMNS ? p.a.order[column] : -1;
        if (place < 0) continue;
        float sum = 0;
#pragma unroll 16
        for (int program = 0; program < BATCH; program++)
            sum += p.a.columns[(long)program * NUM_COLUMNS + column];
        p.a.grads[place] = sum;
    }
}

KERNEL(THREADS) dense_persistent_backward(const BackwardArguments a) {
    Backward p = {a,
                  shared_memory(),
                  thread_index(),
                  thread_index() / 32,
                  thread_index() % 32,
                  program_index()};
    block_backward<Walk<2>>(p);
    block_backward<Walk<1>>(p);
    block_backward<Walk<0>>(p);
    stem_gradients<Walk<0>>(p);
    sum_programs(p);
}
