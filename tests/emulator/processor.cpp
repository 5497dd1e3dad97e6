// The scheduler of processor.h: fibres, meetings, orders by seed, deadlocks; and what warps do.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include "fibres.h"
#include "primitives.h"
#include "stacks.h"

namespace emulator {

Fibre *now;
std::vector<Fibre> fibres;
std::vector<Program> grid;
const Launch *launch;

static void *scheduler;
static std::string faulted;
static void (*entry)(const void *);
static const void *given;

static void leave() {
    void **mine = &now->stack_pointer;
    emulator_switch(mine, scheduler);
}

void fault(const char *format, ...) {
    char text[500];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    if (faulted.empty()) faulted = text;
    if (now) {
        now->done = true;  // never entered again
        leave();
    }
}

int thread() { return now->thread; }
int program() { return now->program; }
int programs() { return launch->programs; }
unsigned char *shared() { return grid[now->program].shared; }
Lane &lane() { return now->lane; }

// ---- meetings --------------------------------------------------------------------------------------

static bool is_last(Gate &gate, Site site) {
    if (gate.arrived > 0 && gate.site.line != site.line)
        fault("threads of program %d meet at %s:%d and at %s:%d", now->program, gate.site.file,
              gate.site.line, site.file, site.line);
    gate.site = site;
    return ++gate.arrived == gate.size;
}

static void open_gate(Gate &gate) {
    gate.arrived = 0;
    gate.turn++;
}

static void wait_at(Gate &gate) {
    now->waits = &gate;
    now->turn = gate.turn;
    leave();
}

void barrier(Site site) {
    now->site = site;
    if (launch->skip_file && site.line == launch->skip_line &&
        std::string(site.file).find(launch->skip_file) != std::string::npos)
        return;
    Program &mine = grid[now->program];
    if (!is_last(mine.gate, site)) return wait_at(mine.gate);
    barrier_passed(mine);
    open_gate(mine.gate);
}

void fence() {
    now->fenced = grid[now->program].epoch;
    now->ordered = now->found;
}

// ---- what a warp does when its last lane has come --------------------------------------------------

static void load_matrices_of(Fibre *warp, bool transposed) {
    int matrices = warp->lane.number;
    for (int i = 0; i < 8 * matrices; i++)
        touch(warp[i].thread, warp[i].lane.row, 16, false);
    for (int i = 0; i < 32; i++)
        for (int m = 0; m < 4; m++) {
            unsigned &word = warp[i].lane.words[m];
            word = 0;
            if (m >= matrices) continue;
            if (transposed) {
                auto *row = (const unsigned short *)warp[8 * m + i % 4 * 2].lane.row;
                auto *after = (const unsigned short *)warp[8 * m + i % 4 * 2 + 1].lane.row;
                word = join(row[i / 4], after[i / 4]);
            } else {
                word = ((const unsigned *)warp[8 * m + i / 4].lane.row)[i % 4];
            }
        }
}

static void transpose_of(Fibre *warp) {
    unsigned words[32];
    for (int i = 0; i < 32; i++) words[i] = warp[i].lane.words[0];
    auto at = [&](int row, int column) {
        return (unsigned short)(words[row * 4 + column / 2] >> column % 2 * 16);
    };
    for (int i = 0; i < 32; i++)
        warp[i].lane.words[0] = join(at(i % 4 * 2, i / 4), at(i % 4 * 2 + 1, i / 4));
}

static void multiply_of(Fibre *warp) {
    int depth = warp->lane.number;
    float a[16][16], b[16][8];
    for (int i = 0; i < 32; i++)
        for (int w = 0; w < depth / 4; w++) {
            int row = i / 4 + w % 2 * 8, k = i % 4 * 2 + w / 2 * 8;
            a[row][k] = low(warp[i].lane.words[w]);
            a[row][k + 1] = high(warp[i].lane.words[w]);
            if (w % 2) continue;
            b[k][i / 4] = low(warp[i].lane.weights[w / 2]);
            b[k + 1][i / 4] = high(warp[i].lane.weights[w / 2]);
        }
    for (int i = 0; i < 32; i++)
        for (int e = 0; e < 4; e++) {
            float &sum = warp[i].lane.sums[e];
            for (int k = 0; k < depth; k++)
                sum += a[i / 4 + e / 2 * 8][k] * b[k][i % 4 * 2 + e % 2];
        }
}

void meet(Operation operation, Site site) {
    Fibre *warp = &fibres[now - fibres.data() - now->thread % 32];
    Gate &gate = grid[now->program].warps[now->thread / 32];
    now->lane.operation = operation;
    now->lane.site = now->site = site;
    if (!is_last(gate, site)) return wait_at(gate);
    for (int i = 0; i < 32; i++)
        if (warp[i].lane.operation != operation ||
            (operation != SHUFFLE && warp[i].lane.number != now->lane.number))
            fault("lanes of program %d meet at %s:%d for different operations", now->program,
                  site.file, site.line);
    if (operation == SHUFFLE) {
        float values[32];
        for (int i = 0; i < 32; i++) values[i] = warp[i].lane.value;
        for (int i = 0; i < 32; i++) warp[i].lane.value = values[warp[i].lane.number];
    } else if (operation == PRODUCT) {
        multiply_of(warp);
    } else if (operation == TRANSPOSITION) {
        transpose_of(warp);
    } else {
        load_matrices_of(warp, operation == MATRICES_TRANSPOSED);
    }
    open_gate(gate);
}

// ---- words between programs ------------------------------------------------------------------------

static bool has_come(const unsigned long long *word) {
    return *(const volatile unsigned long long *)word >> 32;
}

void put_word(unsigned long long *word, float value, Site site) {
    if (has_come(word))
        fault("thread %d of program %d writes %s a second time at %s:%d", now->thread, now->program,
              name_of(word).c_str(), site.file, site.line);
    word_put(word);
    *word = 1ull << 32 | bits_of(value);
}

float take_word(const unsigned long long *word, Site site) {
    now->site = site;
    while (!has_come(word)) {
        now->word = word;
        leave();
    }
    word_taken(word);
    return float_of((unsigned)*word);
}

// ---- the scheduler ---------------------------------------------------------------------------------

struct Random {
    unsigned state;
    unsigned below(unsigned n) {
        state ^= state << 13, state ^= state >> 17, state ^= state << 5;
        return state % n;
    }
};

static void begin() {
    entry(given);
    now->done = true;
    leave();
}

static bool can_run(const Fibre &f) {
    return !f.done && !(f.waits && f.waits->turn == f.turn) && !(f.word && !has_come(f.word));
}

// Run what can run of a warp, its lanes from `first` on, until nothing can or `most` rounds passed.
static bool run_warp(Fibre *warp, unsigned first, unsigned stride, int most) {
    bool ran = false, again = true;
    for (int round = 0; round < most && again && faulted.empty(); round++) {
        again = false;
        for (unsigned i = 0; i < 32 && faulted.empty(); i++) {
            Fibre &f = warp[(first + i * stride) % 32];
            if (!can_run(f)) continue;
            f.waits = nullptr, f.word = nullptr;
            now = &f;
            emulator_switch(&scheduler, f.stack_pointer);
            now = nullptr;
            again = ran = true;
        }
    }
    return ran;
}

static std::string deadlock() {
    std::string text = "deadlock";
    for (size_t p = 0; p < grid.size(); p++) {
        // The first of each kind of waiting, with how many do the same.
        std::vector<std::pair<const Fibre *, int>> kinds;
        for (auto &f : fibres) {
            if (f.program != (int)p || f.done) continue;
            auto same = [&](const std::pair<const Fibre *, int> &k) {
                return k.first->site.line == f.site.line && !k.first->word == !f.word;
            };
            size_t k = 0;
            while (k < kinds.size() && !same(kinds[k])) k++;
            if (k == kinds.size()) kinds.push_back({&f, 0});
            kinds[k].second++;
        }
        for (auto &[f, count] : kinds)
            text += "; program " + std::to_string(p) + ": " + std::to_string(count) +
                    " threads wait at " + f->site.file + ":" + std::to_string(f->site.line) +
                    (f->word ? " for " + name_of(f->word) : std::string(" for the others"));
    }
    return text;
}

static void schedule(unsigned seed) {
    Random random{seed * 2654435761u + 1};
    int warps = (int)fibres.size() / 32, held = -1;
    std::vector<int> order(warps);
    for (int w = 0; w < warps; w++) order[w] = w;
    while (faulted.empty()) {
        bool ran = false, all_done = true;
        for (auto &f : fibres) all_done = all_done && f.done;
        if (all_done) return;
        if (seed) {
            for (int i = warps - 1; i > 0; i--) std::swap(order[i], order[random.below(i + 1)]);
            // A warp is held back for a while, as a slow one would be.
            if (random.below(8) == 0) held = (int)random.below(warps);
        }
        for (int w : order) {
            if (w == held) continue;
            unsigned first = seed ? random.below(32) : 0, stride = seed ? 2 * random.below(16) + 1 : 1;
            int most = seed && random.below(2) ? 1 + (int)random.below(20) : 1 << 30;
            ran = run_warp(&fibres[32 * w], first, stride, most) || ran;
        }
        if (!ran && held < 0 && faulted.empty()) faulted = deadlock();
        if (!ran) held = -1;
    }
}

static unsigned char *take_memory(size_t bytes) {
    return (unsigned char *)mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

const char *run(void (*kernel)(const void *), const void *arguments, long bytes,
                const Launch &asked) {
    entry = kernel, given = arguments, launch = &asked, now = nullptr;
    faulted.clear();
    int count = asked.programs * asked.threads;
    size_t shared_bytes = (asked.shared_bytes + 127) / 128 * 128 + 128;
    unsigned char *stacks = take_memory((size_t)STACK * count);
    unsigned char *shared = take_memory(shared_bytes * asked.programs);
    memset(shared, 0xff, shared_bytes * asked.programs);  // not a number, in every dtype
    grid.assign(asked.programs, {});
    fibres.assign(count, {});
    for (int p = 0; p < asked.programs; p++) {
        grid[p].shared = shared + shared_bytes * p;
        grid[p].gate.size = asked.threads;
        grid[p].warps.assign(asked.threads / 32, Gate{32});
        grid[p].knows.assign(asked.programs, 0);
    }
    for (int i = 0; i < count; i++) {
        fibres[i].thread = i % asked.threads, fibres[i].program = i / asked.threads;
        fibres[i].stack = stacks + (size_t)STACK * i;
        fibres[i].stack_pointer = fresh_stack(fibres[i].stack + STACK, begin);
        fibres[i].found.assign(asked.programs, 0);
    }
    start_checks({(const unsigned char *)arguments, bytes, "arguments", true});
    schedule(asked.seed);
    munmap(stacks, (size_t)STACK * count);
    munmap(shared, shared_bytes * asked.programs);
    return faulted.c_str();
}

}  // namespace emulator
