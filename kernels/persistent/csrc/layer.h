// A dense layer: h = conv3x3(relu(norm(channels so far))), 8 outputs at a time.
//
// Every channel is normalised once, into a plane with a border of zeros, of which ldmatrix reads
// any shifted rows: a 3x3 convolution is nine products of depth 16 a chunk. A layer starts on
// the channels whose statistics are known and takes the newest last, so that most of their way
// between the programs is hidden. Each piece of code stands here once: code is fetched too.
#pragma once
#include "stem.h"

// relu(norm) of a record of 8 channels, rounded once.
DEVICE Record activated(const Affine &f, Record x) {
    Record y;
#pragma unroll
    for (int i = 0; i < 4; i++) y.w[i] = pack_relu(lower(f, x, i), upper(f, x, i));
    return y;
}

// Byte of position q inside a plane of side S, behind the border.
template <int S>
DEVICE int inside(int q) {
    return ((q / S + 1) * (S + 2) + q % S + 1) * 16;
}

// Normalise groups first ... last - 1 of the map into their planes.
template <int BLOCK>
DEVICE void activate(Forward &p, int first, int last) {
    constexpr int S = side_of(BLOCK), N = S * S, PLANE = plane_of(BLOCK);
    unsigned char *active = p.shared + ACTIVE;
    constexpr bool TURNS = takes_turns(BLOCK);
    constexpr int PLANES = TURNS ? 4 * stage_of(BLOCK) : planes_of(BLOCK);
    if constexpr (TURNS && PLANES == 4) {  // a chunk: half the warps a group, or all of them
        int sharing = last - first == 2 ? WARPS / 2 : WARPS, group = first + p.warp / sharing;
        Affine f = affine_of(p, group);
        const Record *map = p.map<BLOCK>(group);
#pragma unroll
        for (int i = 0; i < whole(N, 16 * WARPS); i++) {
            int q = (i * sharing + p.warp % sharing) * 32 + p.lane;
            Record *at = (Record *)(active + group % PLANES * PLANE + inside<S>(q));
            if (q < N) *at = activated(f, map[q]);
        }
    } else {
        for (int i = p.thread; i < (last - first) * N; i += THREADS) {
            int group = first + i / N, q = i % N;
            Affine f = affine_of(p, group);
            *(Record *)(active + (TURNS ? group % PLANES : group) * PLANE + inside<S>(q)) =
                activated(f, p.map<BLOCK>(group)[q]);
        }
    }
}

// sums += the nine taps of chunk `chunk`, of groups 2 chunk and 2 chunk + 1; of one if `single`.
template <int BLOCK, class C>
DEVICE void multiply(Forward &p, float (&sums)[C::COLUMNS][C::TILES][4], const unsigned *weights,
                     int chunk, bool single) {
    constexpr int S = side_of(BLOCK), PITCH = S + 2, PLANE = plane_of(BLOCK);
    int owner = p.warp % C::OWNERS;
    int plane = 2 * (takes_turns(BLOCK) ? chunk % (2 * C::SPLIT) : chunk);
    const unsigned char *active = p.shared + ACTIVE + (plane + p.lane / 16) * PLANE;
    Pair b[9];
#pragma unroll
    for (int tap = 0; tap < 9; tap++)
        b[tap] = load_pair(weights + ((chunk * 9 + tap) * 32 + p.lane) * 2);
    if constexpr (C::ROWS) {
        constexpr int ROWS = C::TILES / C::ACROSS;
        active += (owner * ROWS * PITCH + 1 + p.lane % 16) * 16;
#pragma unroll
        for (int row = 0; row < ROWS + 2; row++)
#pragma unroll
            for (int x = 0; x < C::ACROSS; x++) {
                const unsigned char *from = active + (row * PITCH + 16 * x) * 16;
                Record a = single ? load_matrices_2(from) : load_matrices_4(from);
#pragma unroll
                for (int kh = 0; kh < 3; kh++)
                    if (row - kh >= 0 && row - kh < ROWS)
#pragma unroll
                        for (int kw = 0; kw < 3; kw++) {
                            float(&sum)[4] = sums[kw][(row - kh) * C::ACROSS + x];
                            if (single) multiply_8(sum, a, b[3 * kh + kw].a);
                            else multiply_16(sum, a, b[3 * kh + kw]);
                        }
            }
    } else {
#pragma unroll
        for (int t = 0; t < C::TILES; t++) {
            int q = smaller((owner * C::TILES + t) * 16 + p.lane % 16, S * S - 1);
            const unsigned char *at = active + (q / S * PITCH + q % S) * 16;
#pragma unroll
            for (int tap = 0; tap < 9; tap++) {
                const unsigned char *from = at + (tap / 3 * PITCH + tap % 3) * 16;
                Record a = single ? load_matrices_2(from) : load_matrices_4(from);
                if (single) multiply_8(sums[0][t], a, b[tap].a);
                else multiply_16(sums[0][t], a, b[tap]);
            }
        }
    }
}

// y = the middle column's sums, the left one's from one position before, the right one's from one
// behind. A lane holds positions lane / 4 and lane / 4 + 8 of a tile.
template <class C>
DEVICE void gather_columns(int lane, const float (&sums)[C::COLUMNS][C::TILES][4],
                           float (&y)[C::TILES][4]) {
#pragma unroll
    for (int t = 0; t < C::TILES; t++)
#pragma unroll
        for (int e = 0; e < 4; e++) y[t][e] = sums[C::COLUMNS / 2][t][e];
    if constexpr (C::ROWS) {
        bool first = lane < 4, last = lane >= 28;
#pragma unroll
        for (int row = 0; row < C::TILES; row += C::ACROSS)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float before = 0;  // of the tile before in the row, its last position's
#pragma unroll
                for (int t = row; t < row + C::ACROSS; t++) {
                    float above = shuffle(sums[0][t][e], (lane + 28) % 32);
                    float below = shuffle(sums[0][t][e + 2], (lane + 28) % 32);
                    y[t][e] += first ? before : above;
                    y[t][e + 2] += first ? above : below;
                    before = below;
                }
                float behind = 0;  // of the tile behind, its first position's
#pragma unroll
                for (int t = row + C::ACROSS - 1; t >= row; t--) {
                    float above = shuffle(sums[2][t][e], (lane + 4) % 32);
                    float below = shuffle(sums[2][t][e + 2], (lane + 4) % 32);
                    y[t][e] += last ? below : above;
                    y[t][e + 2] += last ? behind : below;
                    behind = above;
                }
            }
    }
}

// Add up the sums of the warps that share an owner; its first warp has them all.
template <int BLOCK, class C>
DEVICE void gather_split(Forward &p, float (&y)[C::TILES][4]) {
    int owner = p.warp % C::OWNERS, part = p.warp / C::OWNERS;
    float *all = (float *)(p.shared + split_at(BLOCK)) + owner * C::TILES * 128 + p.lane * 4;
    constexpr int STEP = C::OWNERS * C::TILES * 128;
    if (part > 0 && part < C::SPLIT)
#pragma unroll
        for (int t = 0; t < C::TILES; t++) store_four(all + (part - 1) * STEP + t * 128, y[t]);
    synchronise();
    if (part == 0)
        for (int s = 0; s < C::SPLIT - 1; s++)
#pragma unroll
            for (int t = 0; t < C::TILES; t++) add_four(y[t], all + s * STEP + t * 128);
}

// Layer u of a block.
template <int BLOCK>
DEVICE void layer(Forward &p, int u) {
    typedef Cut<side_of(BLOCK)> C;
    constexpr int IN = groups_in(BLOCK), N = positions_of(BLOCK), TILES = C::TILES;
    constexpr bool ALL = N % 16 == 0, TURNS = takes_turns(BLOCK);
    int groups = IN + MADE * u, chunks = chunks_of(groups), fresh = u == 0 ? 0 : groups - MADE;
    int owner = p.warp % C::OWNERS, part = p.warp / C::OWNERS;
    if (p.is_first()) {
        affine<BLOCK>(p, u, 0, 8 * fresh);
        synchronise();
    }
    for (int made = 0; made < MADE; made++) {
        const unsigned *weights = p.a.weights + layer_weights_at(BLOCK, u) + made * chunks * 9 * 64;
        float sums[C::COLUMNS][TILES][4], y[TILES][4];
#pragma unroll
        for (int kw = 0; kw < C::COLUMNS; kw++)
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[kw][t][i] = 0;
        // Stages: of SPLIT chunks where planes take turns, else all chunks that are known, then the
        // others. A stage is normalised while slower warps still multiply the one before. A chunk
        // is always the same warp's, so that sums do not depend on what was known.
        bool waits = made == 0 && p.is_first();
        int done = 0, next = 0, known = waits ? fresh / 2 : chunks, chunk = part;
        while (true) {
            for (; chunk < next && part < C::SPLIT; chunk += C::SPLIT)
                multiply<BLOCK, C>(p, sums, weights, chunk, 2 * chunk + 1 == groups);
            done = next;
            if (done == chunks) break;
            next = done < known ? known : chunks;
            if (TURNS) next = smaller(next, done + C::SPLIT);
            if (done == known) {
                receive<BLOCK>(p, 8 * fresh, 8 * (groups - fresh));
                affine<BLOCK>(p, u, 8 * fresh, 8 * groups);
                synchronise();
            }
            if (TURNS || made == 0) {
                activate<BLOCK>(p, 2 * done, smaller(2 * next, groups));
                synchronise();
            }
        }
        gather_columns<C>(p.lane, sums, y);
        if constexpr (C::SPLIT > 1) gather_split<BLOCK, C>(p, y);
        int group = groups + made;
        if (part == 0) {
#pragma unroll
            for (int t = 0; t < TILES; t++) store_tile<BLOCK>(p, group, owner * TILES + t, y[t]);
            partial_statistics<TILES, ALL>(p.lane, y, N - owner * TILES * 16,
                                           p.partials() + 16 * owner);
        }
        publish<BLOCK, 16 * TILES>(p, 8 * group, 8);
    }
}
