// What the kernels ask of a GPU, one line of PTX each. Needs no headers, so that NVRTC takes it.
//
// tests/emulator/primitives.h says the same in plain C++, with the sections of the PTX ISA that
// define it: the kernels are compiled with either. A change here is a change there.
//
// Letters of a fragment, as mma.sync names them: A (16 positions, 16 channels) in four words a
// lane, B (16 channels, 8 outputs) in two, the sums (16 positions, 8 outputs) in four floats. A
// word holds two 16-bit values, bf16, or fp16 where HALF_IS_FP16 is 1.
#pragma once
#define DEVICE __device__ __forceinline__
#define SHAPE __host__ __device__ constexpr
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)

#if HALF_IS_FP16
#define HALF "f16"
#else
#define HALF "bf16"
#endif

typedef unsigned long long Word;  // of the exchange: a value, and whether it is there
struct alignas(16) Record {
    unsigned w[4];
};
struct alignas(8) Pair {
    unsigned a, b;
};

DEVICE unsigned char *shared_memory() {
    extern __shared__ __align__(128) unsigned char memory[];
    return memory;
}
DEVICE int thread_index() { return threadIdx.x; }
DEVICE int program_index() { return blockIdx.x; }
DEVICE int num_programs() { return gridDim.x; }
// x, of which the compiler knows nothing here: what follows from it is computed where it is needed,
// and not kept in registers that a loop has no use for.
DEVICE int renewed(int x) {
    asm volatile("" : "+r"(x));
    return x;
}
DEVICE void synchronise() { __syncthreads(); }
DEVICE void fence() { __threadfence(); }
DEVICE float shuffle_xor(float x, int step) { return __shfl_xor_sync(0xffffffffu, x, step); }
DEVICE float shuffle(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
DEVICE unsigned shuffle(unsigned x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
DEVICE float positive(float x) { return fmaxf(x, 0.f); }
DEVICE float inverse_root(float x) { return 1 / sqrtf(x); }
DEVICE unsigned join(unsigned short lower, unsigned short upper) {
    return lower | (unsigned)upper << 16;
}

#if HALF_IS_FP16
DEVICE float low(unsigned x) {
    float y;
    asm("{.reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(y) : "r"(x));
    return y;
}
DEVICE float high(unsigned x) {
    float y;
    asm("{.reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(y) : "r"(x));
    return y;
}
#else
DEVICE float low(unsigned x) { return __uint_as_float(x << 16); }
DEVICE float high(unsigned x) { return __uint_as_float(x & 0xffff0000u); }
#endif
// Two values rounded to nearest even; of pack_relu, negative ones become 0.
DEVICE unsigned pack(float lower, float upper) {
    unsigned y;
    asm("cvt.rn." HALF "x2.f32 %0, %1, %2;" : "=r"(y) : "f"(upper), "f"(lower));
    return y;
}
DEVICE unsigned pack_relu(float lower, float upper) {
    unsigned y;
    asm("cvt.rn.relu." HALF "x2.f32 %0, %1, %2;" : "=r"(y) : "f"(upper), "f"(lower));
    return y;
}

// Of weights, which no launch writes that reads them.
DEVICE Pair load_pair(const unsigned *p) {
    Pair x;
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(x.a), "=r"(x.b) : "l"(p));
    return x;
}
DEVICE Record load_record(const unsigned *p) {
    Record x;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3])
                 : "l"(p));
    return x;
}
DEVICE void load_four(float (&x)[4], const float *p) {
    float4 y = *(const float4 *)p;
    x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
}
DEVICE void add_four(float (&x)[4], const float *p) {
    float4 y = *(const float4 *)p;
    x[0] += y.x, x[1] += y.y, x[2] += y.z, x[3] += y.w;
}
DEVICE void store_four(float *p, const float (&x)[4]) {
    *(float4 *)p = make_float4(x[0], x[1], x[2], x[3]);
}
DEVICE void store_two(float *p, float x, float y) { *(float2 *)p = make_float2(x, y); }

// Matrices of 8 rows of 16 bytes: lane i gives row i % 8 of matrix i / 8.
DEVICE unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
DEVICE Record load_matrices_4(const void *row) {
    Record x;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3])
                 : "r"(shared_address(row))
                 : "memory");
    return x;
}
DEVICE Record load_matrices_2(const void *row) {
    Record x = {{0, 0, 0, 0}};
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(x.w[0]), "=r"(x.w[1])
                 : "r"(shared_address(row))
                 : "memory");
    return x;
}
DEVICE Record load_matrices_4_transposed(const void *row) {
    Record x;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3])
                 : "r"(shared_address(row))
                 : "memory");
    return x;
}
DEVICE Record load_matrices_2_transposed(const void *row) {
    Record x = {{0, 0, 0, 0}};
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(x.w[0]), "=r"(x.w[1])
                 : "r"(shared_address(row))
                 : "memory");
    return x;
}

// A matrix of 8x8, a word a lane, with its rows and columns exchanged.
DEVICE unsigned transposed(unsigned x) {
    unsigned y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// sums += A B; of multiply_8, A has 8 channels, in its first two words, and B one word.
DEVICE void multiply_16(float (&sums)[4], Record a, Pair b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." HALF "." HALF
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a.w[0]), "r"(a.w[1]), "r"(a.w[2]), "r"(a.w[3]), "r"(b.a), "r"(b.b));
}
DEVICE void multiply_8(float (&sums)[4], Record a, unsigned b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32." HALF "." HALF
        ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a.w[0]), "r"(a.w[1]), "r"(b));
}

// A value and the word that it has come, in one access of 8 bytes, which is never torn: whoever
// finds the upper half set has the value, with no fence. Every launch begins with cleared words.
DEVICE void store_flagged(Word *word, float x) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word),
                 "l"((Word)1 << 32 | __float_as_uint(x))
                 : "memory");
}
// The words first, first + 32, ... below `end`, asked for together until all have come; 0 behind.
template <int COUNT>
DEVICE void load_flagged(float (&x)[COUNT], const Word *first, const Word *end) {
    Word found[COUNT];
    bool waits = true;
#pragma unroll
    for (int i = 0; i < COUNT; i++) found[i] = 0;
    while (waits) {
        waits = false;
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (first + 32 * i < end && !(found[i] >> 32)) {
                asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];"
                             : "=l"(found[i])
                             : "l"(first + 32 * i)
                             : "memory");
                waits = waits || !(found[i] >> 32);
            }
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) x[i] = __uint_as_float((unsigned)found[i]);
}
