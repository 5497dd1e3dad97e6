// The network's sizes, and where everything lies: in flat buffers and in a program's memory.
//
// Whoever compiles gives BATCH, SIDE (of the square images), STEM_CHANNELS, GROWTH, LAYERS (a
// block) and RESIDENT. `plan.py` says which are taken, and repeats the sizes of buffers.
//
// A program is a thread block of 16 warps. Where RESIDENT, it owns one image for the whole pass,
// whose maps stay in its shared memory. Else it goes through its images in every phase, and their
// maps lie in memory, which the L2 cache holds: for batches of more images than processors, and
// images that no shared memory holds. The numbers are the same, bit for bit.
//   group   8 channels; of a position they are one record of 16 bytes
//   chunk   two groups: the depth of one tensor-core product
//   tile    16 positions, in memory order: the height of one product
//   plane   a group's positions with a border of zeros, so that a 3x3 tap is a shift
// Channels are counted with gaps: a block's input is padded to whole groups. `parameter_of` drops
// the gap. Maps lie as (groups, images, positions, 8), blocks one after another.
#pragma once
#ifndef EMULATOR
#include "primitives.h"
#endif

constexpr int BLOCKS = 3, WARPS = 16, THREADS = 32 * WARPS;
constexpr int MADE = GROWTH / 8;   // groups that a layer makes
constexpr int NORMS = LAYERS + 1;  // of a block: its layers', and the one behind it
constexpr int MOST_SHARED = 227 * 1024;
#ifndef STRETCH
#define STRETCH 8  // words of an exchange that a lane asks for together, at most
#endif

SHAPE int smaller(int a, int b) { return a < b ? a : b; }
SHAPE int larger(int a, int b) { return a > b ? a : b; }
SHAPE int whole(int count, int size) { return (count + size - 1) / size; }

SHAPE int side_of(int block) { return SIDE >> block; }
SHAPE int positions_of(int block) { return side_of(block) * side_of(block); }
SHAPE int channels_in(int block) {
    int channels = STEM_CHANNELS;
    for (int b = 0; b < block; b++) channels = (channels + LAYERS * GROWTH) / 2;
    return channels;
}
SHAPE int channels_of(int block) { return channels_in(block) + LAYERS * GROWTH; }
SHAPE int groups_in(int block) { return whole(channels_in(block), 8); }
SHAPE int groups_of(int block) { return groups_in(block) + LAYERS * MADE; }
SHAPE int chunks_of(int groups) { return whole(groups, 2); }
SHAPE int plane_of(int block) { return (side_of(block) + 2) * (side_of(block) + 2) * 16; }  // bytes
// The channel that parameters call `c` with gaps; -1 in the gap.
SHAPE int parameter_of(int block, int c) {
    int in = channels_in(block), padded = 8 * groups_in(block);
    return c < in ? c : c < padded ? -1 : c - padded + in;
}

// ---- where a block's part of a flat buffer begins; that of block 3 is the buffer's size ----------

SHAPE long maps_at(int block) {
    long at = 0;
    for (int b = 0; b < block; b++) at += (long)BATCH * positions_of(b) * 8 * groups_of(b);
    return at;
}
// Every block's (2, channels): mean and biased variance.
SHAPE int statistics_at(int block) {
    int at = 0;
    for (int b = 0; b < block; b++) at += 16 * groups_of(b);
    return at;
}
// Every block's (NORMS, 2, channels): gamma and beta.
SHAPE int affine_at(int block) { return NORMS * statistics_at(block); }
// Words of the exchange: every block's (channels, 2, images); then one a program.
SHAPE int exchange_at(int block) { return BATCH * statistics_at(block); }

// Layers before layer `u` of a block read this many groups in all.
SHAPE int groups_before(int block, int u) { return u * groups_in(block) + MADE * u * (u - 1) / 2; }
SHAPE int chunks_before(int block, int u) {
    int chunks = 0;
    for (int v = 0; v < u; v++) chunks += chunks_of(groups_in(block) + MADE * v);
    return chunks;
}
// The forward's weights, fragments of 64 words: the stem (2, groups); then every block's layers
// (groups made, chunks, 9 taps) and its transition (chunks, groups of the next block).
SHAPE int weights_at(int block) {
    int at = 2 * groups_in(0);
    for (int b = 0; b < block; b++) {
        at += 9 * MADE * chunks_before(b, LAYERS);
        if (b + 1 < BLOCKS) at += chunks_of(groups_of(b)) * groups_in(b + 1);
    }
    return 64 * at;
}
SHAPE int layer_weights_at(int block, int u) {
    return weights_at(block) + 64 * 9 * MADE * chunks_before(block, u);
}
// The backward's, words: every block's layers (groups read, groups made, 3 rows, 32 lanes, 4); then
// its transition (groups, chunks of the next block, 32 lanes, 2).
SHAPE int turned_at(int block) {
    int at = 0;
    for (int b = 0; b < block; b++) {
        at += 384 * MADE * groups_before(b, LAYERS);
        if (b + 1 < BLOCKS) at += 64 * groups_of(b) * chunks_of(groups_in(b + 1));
    }
    return at;
}
SHAPE int turned_layer_at(int block, int u) {
    return turned_at(block) + 384 * MADE * groups_before(block, u);
}

// An image's share of every gradient, floats: the stem (27, channels); every block's layers
// (groups made, 9 taps, channels read, 8) and its transition (channels, channels of the next
// block); then every block's norms (NORMS, 2, channels).
SHAPE int columns_at(int block) {
    int at = 27 * 8 * groups_in(0);
    for (int b = 0; b < block; b++) {
        at += 576 * MADE * groups_before(b, LAYERS);
        if (b + 1 < BLOCKS) at += 64 * groups_of(b) * groups_in(b + 1);
    }
    return at;
}
SHAPE int layer_columns_at(int block, int u) {
    return columns_at(block) + 576 * MADE * groups_before(block, u);
}
SHAPE int norm_columns_at(int block) { return columns_at(BLOCKS) + affine_at(block); }
constexpr int NUM_COLUMNS = columns_at(BLOCKS) + affine_at(BLOCKS);

// What a thread of either pass knows.
struct Program {
    unsigned char *shared;
    int thread, warp, lane, image;

    // Whether this is the first of the program's images: what all share is made with it.
    DEVICE bool is_first() { return RESIDENT || image < num_programs(); }
    DEVICE void renew() {
        thread = renewed(thread);
        warp = thread / 32;
        lane = thread % 32;
    }
};
DEVICE Program this_program() {
    int thread = thread_index();
    return {shared_memory(), thread, thread / 32, thread % 32, program_index()};
}

// A phase, for each of the program's images.
template <class Program, class Phase>
DEVICE void each_image(Program &p, Phase phase) {
    if constexpr (RESIDENT) phase();
    else
        for (p.image = program_index(); p.image < BATCH; p.image += num_programs()) {
            p.renew();
            phase();
        }
}
