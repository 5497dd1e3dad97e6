// Every access of a launch, looked at: bounds, reads of what nobody wrote, and races.
//
// The kernels are compiled with -fsanitize=thread, which puts a call before every access; the calls
// are answered here, not by ThreadSanitizer, which knows no barrier of ours. Every two bytes of
// shared memory and of every buffer have a shadow: who wrote them last, who has read them since,
// and in which epoch, the number of barriers that the program had passed.
//
// A race, in a program: two threads touch the same bytes in the same epoch, and one writes. Between
// programs (PTX ISA, "Memory Consistency Model", "Causality Order"): a program sees what another
// did once a word has come, if its sender had a barrier and a fence before it, and if a fence and a
// barrier follow here. An access beyond that is a race, in whatever order the threads ran.
#include <cstring>
#include "fibres.h"

namespace emulator {

namespace {

constexpr unsigned short NOBODY = 0, HOST = 0xffff, SEVERAL = 0x8000;

struct Cell {
    unsigned written = 0, read = 0;             // in which epoch
    unsigned short writer = NOBODY, reader = NOBODY;  // thread of the grid + 1
};

struct Shadow {
    const unsigned char *begin = nullptr, *end = nullptr;
    int program = -1;  // whose shared memory it is
    const Buffer *buffer = nullptr;
    std::vector<Cell> cells;
    std::vector<std::pair<int, unsigned>> words;  // who sent it, and what it tells of
};

std::vector<Shadow> shadows;

Shadow *shadow_of(const unsigned char *address) {
    static size_t last = 0;
    if (last < shadows.size() && address >= shadows[last].begin && address < shadows[last].end)
        return &shadows[last];
    for (size_t i = 0; i < shadows.size(); i++)
        if (address >= shadows[i].begin && address < shadows[i].end) return &shadows[last = i];
    return nullptr;
}

int program_of(unsigned short who) { return ((who & ~SEVERAL) - 1) / launch->threads; }

// What thread `who` of program `other` did in `epoch` does not come before what we do.
bool is_unordered(int program, unsigned short me, unsigned short who, unsigned epoch) {
    if (who == NOBODY || who == HOST) return false;
    int other = program_of(who);
    if (other != program) return epoch >= grid[program].knows[other];
    return epoch == grid[program].epoch && who != me;
}

void race(int thread, int program, unsigned short who, const void *at, const char *did,
          const char *does, const char *file, int line) {
    int other = program_of(who);
    std::string name = name_of(at), whom = who & SEVERAL ? "several threads" : "thread " +
        std::to_string(((who & ~SEVERAL) - 1) % launch->threads);
    fault("race: thread %d of program %d %s %s after %s:%d, which %s of program %d %s, and %s", thread,
          program, does, name.c_str(), file, line, whom.c_str(), other,
          did, other == program ? "no barrier is between" : "no word with its fences is between");
}

}  // namespace

std::string name_of(const void *address) {
    auto *at = (const unsigned char *)address;
    for (size_t p = 0; p < grid.size(); p++)
        if (at >= grid[p].shared && at < grid[p].shared + launch->shared_bytes)
            return "byte " + std::to_string(at - grid[p].shared) +
                   " of shared memory of program " + std::to_string(p);
    for (int i = 0; i < launch->num_buffers; i++) {
        const Buffer &b = launch->buffers[i];
        if (at >= b.begin && at < b.begin + b.bytes)
            return "byte " + std::to_string(at - b.begin) + " of " + b.name;
    }
    return "an address outside of every buffer";
}

void start_checks(Buffer arguments) {
    static Buffer given;
    given = arguments;
    shadows.clear();
    if (!launch->is_checked) return;
    auto add = [](const unsigned char *begin, long bytes, int program, const Buffer *buffer) {
        Shadow s;
        s.begin = begin, s.end = begin + bytes, s.program = program, s.buffer = buffer;
        s.cells.resize((bytes + 1) / 2);
        if (buffer && buffer->is_input)
            for (auto &c : s.cells) c.writer = HOST;
        s.words.resize(bytes / 8);
        shadows.push_back(std::move(s));
    };
    for (size_t p = 0; p < grid.size(); p++)
        add(grid[p].shared, launch->shared_bytes, (int)p, nullptr);
    for (int i = 0; i < launch->num_buffers; i++)
        add(launch->buffers[i].begin, launch->buffers[i].bytes, -1, &launch->buffers[i]);
    add(given.begin, given.bytes, -1, &given);
}

void touch(int thread, const void *address, int bytes, bool writes) {
    if (!launch->is_checked) return;
    auto *at = (const unsigned char *)address;
    int program = now->program;
    const Fibre &f = fibres[program * launch->threads + thread];
    if (at >= f.stack && at < f.stack + STACK) return;
    if (at >= (const unsigned char *)&f.lane && at < (const unsigned char *)(&f.lane + 1)) return;
    Shadow *s = shadow_of(at);
    const char *does = writes ? "writes" : "reads", *file = f.site.file ? f.site.file : "start";
    int line = f.site.line;
    if (!s || at + bytes > s->end || (s->program >= 0 && s->program != program))
        return fault("out of bounds: thread %d of program %d %s %d bytes at %s (after %s:%d)", thread,
                     program, does, bytes, name_of(address).c_str(), file, line);
    if (writes && s->buffer && s->buffer->is_input)
        return fault("thread %d of program %d writes %s, an input (after %s:%d)", thread, program,
                     name_of(address).c_str(), file, line);
    if ((at - (const unsigned char *)nullptr) % bytes)
        return fault("misaligned: thread %d of program %d %s %d bytes at %s (after %s:%d)", thread,
                     program, does, bytes, name_of(address).c_str(), file, line);
    unsigned short me = program * launch->threads + thread + 1;
    unsigned epoch = grid[program].epoch;
    Cell *first = &s->cells[(at - s->begin) / 2], *end = first + (bytes + 1) / 2;
    for (Cell *c = first; c < end; c++) {
        if (!writes && c->writer == NOBODY)
            return fault("unwritten: thread %d of program %d reads %s, which nobody wrote (after %s:%d)",
                         thread, program, name_of(address).c_str(), file, line);
        if (is_unordered(program, me, c->writer, c->written))
            return race(thread, program, c->writer, address, "wrote", does, file, line);
        if (writes) {
            if (is_unordered(program, me, c->reader, c->read))
                return race(thread, program, c->reader, address, "read", does, file, line);
            c->writer = me, c->written = epoch, c->reader = NOBODY;
        } else if (c->reader != NOBODY && c->read == epoch && c->reader != me &&
                   program_of(c->reader) == program) {
            c->reader |= SEVERAL;
        } else {
            c->reader = me, c->read = epoch;
        }
    }
}

// A word tells of all that its sender's program did before the barrier before the fence before it.
void word_put(const unsigned long long *word) {
    if (!launch->is_checked) return;
    Shadow *s = shadow_of((const unsigned char *)word);
    if (!s) return fault("out of bounds: a word at %s", name_of(word).c_str());
    unsigned epoch = grid[now->program].epoch;
    s->words[((const unsigned char *)word - s->begin) / 8] = {
        now->program, now->fenced == epoch ? epoch : 0};
}

void word_taken(const unsigned long long *word) {
    if (!launch->is_checked) return;
    Shadow *s = shadow_of((const unsigned char *)word);
    if (!s) return fault("out of bounds: a word at %s", name_of(word).c_str());
    auto [sender, epoch] = s->words[((const unsigned char *)word - s->begin) / 8];
    if (epoch > now->found[sender]) now->found[sender] = epoch;
}

// Behind a barrier all threads see what one of them had found before its fence.
void barrier_passed(Program &program) {
    program.epoch++;
    if (!launch->is_checked) return;
    Fibre *mine = &fibres[now->program * launch->threads];
    for (int i = 0; i < launch->threads; i++)
        for (size_t p = 0; p < mine[i].ordered.size(); p++)
            if (mine[i].ordered[p] > program.knows[p]) program.knows[p] = mine[i].ordered[p];
}

}  // namespace emulator

// ---- what -fsanitize=thread calls ------------------------------------------------------------------

#define CALLS(bytes)                                                                         \
    extern "C" void __tsan_read##bytes(void *p) {                                            \
        if (emulator::now) emulator::touch(emulator::now->thread, p, bytes, false);      \
    }                                                                                        \
    extern "C" void __tsan_write##bytes(void *p) {                                           \
        if (emulator::now) emulator::touch(emulator::now->thread, p, bytes, true);       \
    }
CALLS(1)
CALLS(2)
CALLS(4)
CALLS(8)
CALLS(16)
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
