// State that the scheduler (processor.cpp) and the checks (checks.cpp) share.
#pragma once
#include <string>
#include <vector>
#include "processor.h"

namespace emulator {

constexpr long STACK = 1 << 16;

// Whom a fibre waits for: a meeting of so many, of which this is the n-th.
struct Gate {
    int size, arrived = 0;
    unsigned turn = 0;
    Site site{};
};

struct Fibre {
    void *stack_pointer;
    unsigned char *stack;
    int thread, program;
    Gate *waits = nullptr;  // and for which turn of it
    unsigned turn = 0;
    const unsigned long long *word = nullptr;  // or for a word
    Site site{};  // of the operation it came to last
    bool done = false;
    Lane lane;
    // What it has found out of other programs, see checks.cpp: their barriers passed.
    unsigned fenced = 0;
    std::vector<unsigned> found, ordered;
};

struct Program {
    unsigned char *shared;
    Gate gate;
    std::vector<Gate> warps;
    unsigned epoch = 1;           // barriers passed, from 1
    std::vector<unsigned> knows;  // of every program: what it did in earlier epochs is seen
};

extern Fibre *now;
extern std::vector<Fibre> fibres;
extern std::vector<Program> grid;
extern const Launch *launch;

// Say what the launch did wrong, once, and leave it.
void fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
std::string name_of(const void *address);  // of the buffer it lies in, and where in it

void start_checks(Buffer arguments);
void touch(int thread, const void *address, int bytes, bool writes);
void word_put(const unsigned long long *word);
void word_taken(const unsigned long long *word);
void barrier_passed(Program &program);

}  // namespace emulator
