// The primitives of kernels/persistent/csrc/primitives.h in plain C++, with the sections of the
// PTX ISA (9.0) that say what they do. The kernels are compiled with either.
#pragma once
#include <cmath>
#include <cstring>
#include "processor.h"
#define EMULATOR
#define DEVICE inline
#define SHAPE constexpr
#define KERNEL(threads) extern "C" void

typedef unsigned long long Word;
struct alignas(16) Record {
    unsigned w[4];
};
struct alignas(8) Pair {
    unsigned a, b;
};

#define HERE emulator::Site{file, line}
#define AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

DEVICE unsigned char *shared_memory() { return emulator::shared(); }
// "Special Registers": %tid, %ctaid, %nctaid
DEVICE int thread_index() { return emulator::thread(); }
DEVICE int program_index() { return emulator::program(); }
DEVICE int num_programs() { return emulator::programs(); }
DEVICE int renewed(int x) { return x; }
// "Parallel Synchronization and Communication Instructions: bar, barrier": all threads of a CTA
// wait, and see each other's earlier accesses.
DEVICE void synchronise(AT) { emulator::barrier(HERE); }
// "membar, fence": fence.acq_rel.gpu
DEVICE void fence() { emulator::fence(); }

// "Data Movement and Conversion Instructions: shfl.sync", modes bfly and idx
DEVICE float shuffle(float x, int lane, AT) {
    emulator::Lane &mine = emulator::lane();
    mine.value = x, mine.number = lane;
    emulator::meet(emulator::SHUFFLE, HERE);
    return mine.value;
}
DEVICE unsigned shuffle(unsigned x, int lane, AT) {
    float y;
    memcpy(&y, &x, 4);
    y = shuffle(y, lane, file, line);
    memcpy(&x, &y, 4);
    return x;
}
DEVICE float shuffle_xor(float x, int step, AT) {
    return shuffle(x, (emulator::thread() % 32) ^ step, file, line);
}

DEVICE float positive(float x) { return x > 0 ? x : 0; }
DEVICE float inverse_root(float x) { return 1 / sqrtf(x); }
DEVICE unsigned join(unsigned short lower, unsigned short upper) {
    return lower | (unsigned)upper << 16;
}

// "Data Movement and Conversion Instructions: cvt", .rn: to nearest, ties to even
DEVICE float float_of(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
DEVICE unsigned bits_of(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
#if HALF_IS_FP16
DEVICE float widened(unsigned half) {
    unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, digits = half & 1023;
    if (exponent == 31) return float_of(sign | 0x7f800000u | digits << 13);
    if (exponent == 0) return (sign ? -1.f : 1.f) * digits * 0x1p-24f;
    return float_of(sign | (exponent + 112) << 23 | digits << 13);
}
DEVICE unsigned rounded(float x) {
    unsigned bits = bits_of(x), sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return sign | 0x7fffu;                // not a number
    if (bits >= 0x477ff000u) return sign | 0x7c00u;               // 65520 and more: infinite
    if (bits < 0x38800000u)                                       // below 2^-14: steps of 2^-24
        return sign | (unsigned)nearbyintf(float_of(bits) * 0x1p24f);
    return sign | (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1)) >> 13;
}
#else
DEVICE float widened(unsigned half) { return float_of(half << 16); }
DEVICE unsigned rounded(float x) {
    unsigned bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
#endif
DEVICE float low(unsigned x) { return widened(x & 0xffffu); }
DEVICE float high(unsigned x) { return widened(x >> 16); }
DEVICE unsigned pack(float lower, float upper) { return rounded(lower) | rounded(upper) << 16; }
// .relu: "clamps negative values to 0"
DEVICE unsigned pack_relu(float lower, float upper) {
    return pack(lower < 0 ? 0 : lower, upper < 0 ? 0 : upper);
}

// "Data Movement and Conversion Instructions: ld.global.nc", .v2 and .v4
DEVICE Pair load_pair(const unsigned *p) { return *(const Pair *)p; }
DEVICE Record load_record(const unsigned *p) { return *(const Record *)p; }
struct alignas(16) Four {
    float x[4];
};
struct alignas(8) Two {
    float x, y;
};
DEVICE void load_four(float (&x)[4], const float *p) {
    Four four = *(const Four *)p;
    for (int i = 0; i < 4; i++) x[i] = four.x[i];
}
DEVICE void add_four(float (&x)[4], const float *p) {
    Four four = *(const Four *)p;
    for (int i = 0; i < 4; i++) x[i] += four.x[i];
}
DEVICE void store_four(float *p, const float (&x)[4]) { *(Four *)p = {{x[0], x[1], x[2], x[3]}}; }
DEVICE void store_two(float *p, float x, float y) { *(Two *)p = {x, y}; }

// "Warp Level Matrix Load Instruction: ldmatrix", .m8n8 .b16, .x2 and .x4: lane i gives row i % 8
// of matrix i / 8, and takes of each matrix the two values from row i / 4, column i % 4 * 2 on;
// .trans: with rows and columns exchanged.
DEVICE Record load_matrices(const void *row, int matrices, bool transposed, emulator::Site site) {
    emulator::Lane &mine = emulator::lane();
    mine.row = row, mine.number = matrices;
    emulator::meet(transposed ? emulator::MATRICES_TRANSPOSED : emulator::MATRICES, site);
    return {{mine.words[0], mine.words[1], mine.words[2], mine.words[3]}};
}
DEVICE Record load_matrices_4(const void *row, AT) { return load_matrices(row, 4, false, HERE); }
DEVICE Record load_matrices_2(const void *row, AT) { return load_matrices(row, 2, false, HERE); }
DEVICE Record load_matrices_4_transposed(const void *row, AT) {
    return load_matrices(row, 4, true, HERE);
}
DEVICE Record load_matrices_2_transposed(const void *row, AT) {
    return load_matrices(row, 2, true, HERE);
}

// "Matrix Transpose Instruction: movmatrix", .m8n8 .trans .b16: a lane holds row i / 4, and columns
// i % 4 * 2 and the one behind it.
DEVICE unsigned transposed(unsigned x, AT) {
    emulator::Lane &mine = emulator::lane();
    mine.words[0] = x, mine.number = 1;
    emulator::meet(emulator::TRANSPOSITION, HERE);
    return mine.words[0];
}

// "Matrix multiply-accumulate operation using mma instruction", "Matrix Fragments for mma.m16n8k16"
// and ".m16n8k8". In which order and how exactly the products of one instruction are summed is the
// GPU's own; here one after another, in fp32.
DEVICE void multiply(float (&sums)[4], Record a, Pair b, int depth, emulator::Site site) {
    emulator::Lane &mine = emulator::lane();
    mine.number = depth;
    for (int i = 0; i < 4; i++) mine.words[i] = a.w[i], mine.sums[i] = sums[i];
    mine.weights[0] = b.a, mine.weights[1] = b.b;
    emulator::meet(emulator::PRODUCT, site);
    for (int i = 0; i < 4; i++) sums[i] = mine.sums[i];
}
DEVICE void multiply_16(float (&sums)[4], Record a, Pair b, AT) { multiply(sums, a, b, 16, HERE); }
DEVICE void multiply_8(float (&sums)[4], Record a, unsigned b, AT) {
    multiply(sums, a, {b, 0}, 8, HERE);
}

// "Memory Consistency Model": ld and st.relaxed.gpu of 8 bytes, "single-copy atomicity"
DEVICE void store_flagged(Word *word, float x, AT) { emulator::put_word(word, x, HERE); }
template <int COUNT>
DEVICE void load_flagged(float (&x)[COUNT], const Word *first, const Word *end, AT) {
    for (int i = 0; i < COUNT; i++)
        x[i] = first + 32 * i < end ? emulator::take_word(first + 32 * i, HERE) : 0;
}
#undef AT
#undef HERE
