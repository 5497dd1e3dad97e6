// How long words take between programs: so often every program gives one and takes all.
#include "primitives.h"

constexpr int MOST_PROGRAMS = 256;

struct Rounds {
    Word *words;  // (rounds, programs), cleared
    float *out;   // (programs,): their mean index, which every round's words say
    int rounds;
};

KERNEL(512) dense_persistent_rounds(const Rounds a) {
    int programs = num_programs(), lane = thread_index() % 32;
    float x = program_index();
    for (int round = 0; round < a.rounds; round++) {
        Word *words = a.words + round * programs;
        if (thread_index() == 0) store_flagged(words + program_index(), x);
        float found[MOST_PROGRAMS / 32], sum = 0;
        load_flagged(found, words + lane, words + programs);
        for (int i = 0; i < MOST_PROGRAMS / 32; i++) sum += found[i];
        for (int step = 1; step < 32; step *= 2) sum += shuffle_xor(sum, step);
        x = sum / programs;
        synchronise();
    }
    if (thread_index() == 0) a.out[program_index()] = x;
}
