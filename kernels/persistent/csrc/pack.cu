// The parameters as the two passes read them, in one launch: rounded, in fragments, with gaps.
//
// A table says for every element which parameter's which element it is (pack.py makes it). The
// launch also clears the forward's exchange, so that each forward begins with words that are not
// there yet: a launch that was cut off leaves nothing behind.
#include "plan.h"

constexpr int PACK_THREADS = 256, PARAMETERS = 3 * (BLOCKS * LAYERS + BLOCKS);

struct PackArguments {
    const float *parameters[PARAMETERS];  // convolutions, gammas, betas, in forward order
    const int *halves_from;               // parameter * 2^20 + element, or -1: zero
    unsigned short *halves;               // the forward's fragments, then the backward's
    const int *affine_from;
    float *affine;
    Word *exchange;
    int num_halves, num_affine, num_words;
};

DEVICE float taken(const PackArguments &a, int from) {
    return from < 0 ? 0 : a.parameters[from >> 20][from & ((1 << 20) - 1)];
}

KERNEL(PACK_THREADS) dense_persistent_pack(const PackArguments a) {
    int first = program_index() * PACK_THREADS + thread_index();
    int step = num_programs() * PACK_THREADS;
    for (int i = first; i < a.num_halves / 2; i += step) {
        float lower = taken(a, a.halves_from[2 * i]), upper = taken(a, a.halves_from[2 * i + 1]);
        *(unsigned *)(a.halves + 2 * i) = pack(lower, upper);
    }
    for (int i = first; i < a.num_affine; i += step) a.affine[i] = taken(a, a.affine_from[i]);
    for (int i = first; i < a.num_words; i += step) a.exchange[i] = 0;
}
