// The backward's arguments, its shared memory, and how a block's positions are cut for it.
#pragma once
#include "plan.h"

struct BackwardArguments {
    const unsigned short *images;     // (B, SIDE, SIDE, 3)
    const unsigned short *maps;       // every block's (groups, B, positions, 8)
    const float *statistics;          // every block's (2, channels)
    const float *affine;              // every block's (NORMS, 2, channels)
    const unsigned *weights;          // fragments turned round, plan.h says in which order
    const float *d_pooled[BLOCKS];    // (B, channels as parameters count them)
    const int *order;                 // (NUM_COLUMNS,): where in grads, or -1
    float *columns;                   // (B, NUM_COLUMNS): an image's share of every gradient
    float *grads;                     // the flat gradient
    float *scratch;                   // (B, groups, tiles of a warp, THREADS, 4): each its own
    unsigned char *planes;            // (B, IMAGE_BYTES) where not RESIDENT
    Word *exchange;                   // every block's (channels, 2, B), then (B), cleared
    float eps;
};

// An image's memory, bytes; a part of the program's where RESIDENT. A plane a group: its map until
// the gradient of what made it is known, and that gradient from then on. A layer's output is read
// by later layers alone, whose weights' gradients are made by then.
SHAPE int planes_bytes(int block) { return groups_of(block) * plane_of(block); }
constexpr int PLANES = 0;
constexpr int ENDS = larger(planes_bytes(0), larger(planes_bytes(1), planes_bytes(2)));
// Gradient of the next block's input, as the transition reads it, (groups, positions, 8).
SHAPE int end_at(int block) {
    int at = ENDS;
    for (int b = 1; b <= block; b++) at += 16 * groups_in(b) * positions_of(b);
    return at;
}
constexpr int IMAGE_BYTES = end_at(BLOCKS - 1);

// ---- shared memory, bytes --------------------------------------------------------------------------

constexpr int WORK = RESIDENT ? IMAGE_BYTES : 0, WORK_BYTES = larger(24576, 1024 * NORMS);
constexpr int MERGED = WORK + WORK_BYTES, CORRECTION = MERGED + 64 * NORMS;
constexpr int B_STATISTICS = CORRECTION + 64;
constexpr int MOST_GROUPS = larger(groups_of(0), larger(groups_of(1), groups_of(2)));
constexpr int BACKWARD_SHARED = B_STATISTICS + 64 * MOST_GROUPS;
static_assert(BACKWARD_SHARED <= MOST_SHARED, "a program's memory");

constexpr int SCRATCH_GROUPS =
    larger(MADE, larger(groups_in(0), larger(groups_in(1), groups_in(2))));
constexpr int SCRATCH_TILES = whole(whole(positions_of(0), 16), WARPS);

struct Backward : Program {
    const BackwardArguments &a;

    DEVICE float *mean() { return (float *)(shared + B_STATISTICS); }
    DEVICE float *rstd() { return mean() + 8 * MOST_GROUPS; }
    DEVICE float *work() { return (float *)(shared + WORK); }
    DEVICE float *merged() { return (float *)(shared + MERGED); }
    DEVICE float *correction() { return (float *)(shared + CORRECTION); }
    // An image's planes and ends.
    DEVICE unsigned char *memory() {
        if constexpr (RESIDENT) return shared;
        else return a.planes + (long)image * IMAGE_BYTES;
    }
    DEVICE unsigned char *end(int block) { return memory() + end_at(block); }
    DEVICE float *columns() { return a.columns + (long)image * NUM_COLUMNS; }
};

// A block as the backward walks it: OWNERS warps of R tiles each. Where a row is 32 wide these
// stand above each other, and a row's fragment serves three of them.
template <int BLOCK_>
struct Walk {
    static constexpr int BLOCK = BLOCK_, S = side_of(BLOCK), N = S * S, PITCH = S + 2;
    static constexpr int PLANE = plane_of(BLOCK), IN = groups_in(BLOCK), C = 8 * groups_of(BLOCK);
    static constexpr int ALL = whole(N, 16), R = whole(ALL, WARPS), OWNERS = ALL / R;
    static constexpr bool STACKED = S == 32, WHOLE = N % 16 == 0, LAST = BLOCK + 1 == BLOCKS;
    static constexpr int OUT = LAST ? 0 : groups_in(smaller(BLOCK + 1, BLOCKS - 1));
    static_assert(OWNERS * R == ALL, "warps cover the image");

    static DEVICE unsigned char *plane(Backward &p, int group) {
        return p.memory() + PLANES + group * PLANE;
    }
    // Position i of tile r of a warp; past the last one where they are not WHOLE.
    static DEVICE int position(int warp, int r, int i) {
        return STACKED ? (warp / 2 * R + r) * S + warp % 2 * 16 + i : (warp * R + r) * 16 + i;
    }
    // Byte of position q in a plane moved up and left by one: where the 3x3 taps around it begin.
    static DEVICE int corner(int q) { return (q / S * PITCH + q % S) * 16; }
    static constexpr int INSIDE = (PITCH + 1) * 16;  // and from there to q itself
};

// Matrices of 8 rows of 16 bytes of an image's memory: lane i gives row i % 8 of matrix i / 8.
// Where that is global memory, a lane loads its own word of each, from whoever gave the row.
template <int MATRICES, bool TRANSPOSED>
DEVICE Record matrices_of(Backward &p, const unsigned char *row) {
    if constexpr (RESIDENT && TRANSPOSED)
        return MATRICES == 4 ? load_matrices_4_transposed(row) : load_matrices_2_transposed(row);
    if constexpr (RESIDENT) return MATRICES == 4 ? load_matrices_4(row) : load_matrices_2(row);
    const unsigned char *memory = p.memory();
    unsigned offset = row - memory;
    Record x = {{0, 0, 0, 0}};
#pragma unroll
    for (int m = 0; m < MATRICES; m++) {
        unsigned from = shuffle(offset, 8 * m + p.lane / 4) + p.lane % 4 * 4;
        x.w[m] = *(const unsigned *)(memory + from);
        if (TRANSPOSED) x.w[m] = transposed(x.w[m]);
    }
    return x;
}
DEVICE Record rows_4(Backward &p, const unsigned char *row) {
    return matrices_of<4, false>(p, row);
}
DEVICE Record rows_2(Backward &p, const unsigned char *row) {
    return matrices_of<2, false>(p, row);
}
DEVICE Record columns_4(Backward &p, const unsigned char *row) {
    return matrices_of<4, true>(p, row);
}
DEVICE Record columns_2(Backward &p, const unsigned char *row) {
    return matrices_of<2, true>(p, row);
}
