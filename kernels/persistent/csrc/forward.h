// The forward's arguments, its shared memory, and what a program of it knows.
#pragma once
#include "plan.h"

struct ForwardArguments {
    const unsigned short *images;  // (B, SIDE, SIDE, 3)
    const unsigned *weights;       // fragments, plan.h says in which order
    const float *affine;           // every block's (NORMS, 2, channels)
    unsigned short *maps;          // every block's (groups, B, positions, 8)
    float *statistics;             // every block's (2, channels)
    float *pooled[BLOCKS];         // (B, channels as parameters count them)
    Word *exchange;                // every block's (channels, 2, B), cleared
    float eps;
};

// How a block's positions are cut for the warps: OWNERS of TILES tiles each, in memory order, and
// SPLIT warps that share an owner's sum over channels.
//
// Where a row is 16 or 32 wide, a tile is (half) a row: then a fragment of the input, loaded once,
// serves three output rows, and all three kernel columns, whose sums are kept where the input
// lies and moved once a layer. Elsewhere each tap loads its own.
template <int S>
struct Cut {
    static constexpr int ALL = whole(S * S, 16);
    static constexpr int OWNERS = S == 32   ? 16
                                  : S == 24 ? 12
                                  : S == 8  ? 4
                                  : S == 16 ? 4
                                  : S == 4  ? 1
                                            : 3;
    static constexpr int SPLIT = WARPS / OWNERS, TILES = ALL / OWNERS;
    static constexpr bool ROWS = S % 16 == 0;
    static constexpr int COLUMNS = ROWS ? 3 : 1;  // sums that a tile keeps
    static constexpr int ACROSS = ROWS ? S / 16 : 1;
    static_assert(OWNERS * TILES == ALL, "warps cover the image");
};

// ---- shared memory, bytes --------------------------------------------------------------------------

// Planes of what a layer reads, normalised. Large ones take turns: two stages of some chunks. So do
// all where shared memory need not hold the maps, for GPUs that have little of it.
SHAPE int stage_of(int block) {
    int s = side_of(block);
    return s == 32   ? Cut<32>::SPLIT
           : s == 24 ? Cut<24>::SPLIT
           : s == 16 ? Cut<16>::SPLIT
           : s == 12 ? Cut<12>::SPLIT
           : s == 8  ? Cut<8>::SPLIT
           : s == 6  ? Cut<6>::SPLIT
                     : Cut<4>::SPLIT;
}
SHAPE int planes_of(int block) { return 2 * chunks_of(groups_of(block) - MADE); }
SHAPE bool takes_turns(int block) {
    return planes_of(block) > 4 * stage_of(block) && (side_of(block) > 16 || !RESIDENT);
}
SHAPE int active_bytes(int block) {
    return (takes_turns(block) ? 4 * stage_of(block) : planes_of(block)) * plane_of(block);
}
// Sums that warps give to another: of a layer whose sum over channels is split.
template <int S>
SHAPE int split_bytes() {
    return (Cut<S>::SPLIT - 1) * Cut<S>::OWNERS * Cut<S>::TILES * 512;
}
SHAPE int split_bytes_of(int block) {
    int s = side_of(block);
    return s == 32   ? split_bytes<32>()
           : s == 24 ? split_bytes<24>()
           : s == 16 ? split_bytes<16>()
           : s == 12 ? split_bytes<12>()
           : s == 8  ? split_bytes<8>()
           : s == 6  ? split_bytes<6>()
                     : split_bytes<4>();
}
SHAPE int map_bytes(int block) { return 16 * groups_of(block) * positions_of(block); }
SHAPE int most_map_bytes() { return larger(map_bytes(0), larger(map_bytes(1), map_bytes(2))); }
SHAPE int most_active_bytes() {
    int most = (SIDE + 2) * (SIDE + 2) * 3 * 2;  // the image
    for (int b = 0; b < BLOCKS; b++) {
        most = larger(most, active_bytes(b));
        if (!RESIDENT) most = larger(most, active_bytes(b) + split_bytes_of(b));
        if (b + 1 < BLOCKS) most = larger(most, 16 * groups_of(b) * positions_of(b + 1));
    }
    return whole(most, 16) * 16;
}
// Partial statistics, two floats a channel: of a tile of a block's input, of a warp of the stem.
SHAPE int partial_bytes() {
    int most = WARPS * 8 * groups_in(0) * 8;
    for (int b = 1; b < BLOCKS; b++)
        most = larger(most, whole(positions_of(b), 16) * 8 * groups_in(b) * 8);
    return larger(most, WARPS * 8 * 8);
}
SHAPE int most_channels() { return 8 * larger(groups_of(0), larger(groups_of(1), groups_of(2))); }

constexpr int MAP = 0, ACTIVE = RESIDENT ? most_map_bytes() : 0;
constexpr int PARTIALS = ACTIVE + most_active_bytes();
constexpr int STATISTICS = PARTIALS + partial_bytes();  // mean, rstd, scale, shift
constexpr int FORWARD_END = STATISTICS + 4 * 4 * most_channels();
// Behind the block's map where that is shorter than the longest, else behind everything; where no
// map is, behind the block's planes.
SHAPE int split_at(int block) {
    if (!RESIDENT) return active_bytes(block);
    return map_bytes(block) + split_bytes_of(block) <= ACTIVE ? map_bytes(block) : FORWARD_END;
}
SHAPE int forward_shared() {
    int most = FORWARD_END;
    for (int b = 0; b < BLOCKS; b++) most = larger(most, split_at(b) + split_bytes_of(b));
    return most;
}
constexpr int FORWARD_SHARED = forward_shared();
static_assert(FORWARD_SHARED <= MOST_SHARED, "a program's memory");

struct Forward : Program {
    const ForwardArguments &a;

    DEVICE float *mean() { return (float *)(shared + STATISTICS); }
    DEVICE float *rstd() { return mean() + most_channels(); }
    DEVICE float *scale() { return rstd() + most_channels(); }
    DEVICE float *shift() { return scale() + most_channels(); }
    DEVICE float *partials() { return (float *)(shared + PARTIALS); }
    template <int BLOCK>
    DEVICE Record *map(int group) {
        constexpr int N = positions_of(BLOCK);
        if constexpr (RESIDENT) return (Record *)(shared + MAP) + group * N;
        else return (Record *)(a.maps + maps_at(BLOCK)) + ((long)group * BATCH + image) * N;
    }
};
