// Kernels that are right with `fault` 0, and of which every other number has one fault.
#include "primitives.h"

constexpr int N = 64;

struct Faulty {
    const float *in;  // (N,)
    float *out;       // (programs, N)
    Word *words;      // (programs,), cleared
    int fault;
};

// Every thread hands a value to its neighbour, and every program its sum to all others.
KERNEL(N) hand_on(const Faulty a) {
    int t = thread_index(), fault = a.fault;
    float *shared = (float *)shared_memory(), *out = a.out + program_index() * N;
    if (fault != 1) shared[t] = 0;
    synchronise();
    if (fault != 1) shared[t] = a.in[t];
    if (fault == 2) shared[N + t] = 0;                         // past the end
    if (fault == 3) shared[t] += a.in[t + 1];                  // past the end of an input
    if (fault == 4) *(float *)(a.in + t) = 0;                  // an input
    if (fault == 5) *(float *)((char *)shared + 2) = 0;        // misaligned
    if (fault == 6 && t == 9) return;                          // without a barrier that all wait at
    if (fault == 7 && t == 9) synchronise();                   // at another barrier than the others
    if (fault != 8) synchronise();
    float x = shared[(t + 1) % N];
    if (fault == 9 && t == 9) x = shuffle(x, 8);  // elsewhere than the warp's other lanes
    else x = shuffle_xor(x, 1);
    out[t] = x;
    if (fault != 10) fence();
    synchronise();
    if (t == 0) {
        if (fault != 10) fence();
        if (fault != 11 || program_index() != 1) store_flagged(a.words + program_index(), x);
        if (fault == 12) store_flagged(a.words + program_index(), x);  // a second time
    }
    int other = (program_index() + 1) % num_programs();
    float found[1];
    load_flagged(found, a.words + other, a.words + other + 1);
    if (fault != 13) fence();
    if (fault != 14) synchronise();
    x = a.out[other * N + t];
    synchronise();  // in its own place: others still read this program's
    shared[t] = x + found[0];
}

extern "C" const char *emulate_hand_on(const void *arguments, const emulator::Launch *launch) {
    return emulator::run([](const void *a) { hand_on(*(const Faulty *)a); }, arguments,
                         sizeof(Faulty), *launch);
}
