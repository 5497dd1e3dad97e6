// A processor that runs CUDA C++ on a CPU: what the emulated primitives ask of it.
//
// Every thread of every program is a fibre, all alive at once, so programs may wait for each other.
// Barriers and the operations of a warp suspend a fibre until the others have come. Which fibre
// runs next is drawn from a seed. What a launch did wrong is said in one line: threads that meet at
// different operations, a word that never comes, and, where every access is seen (checks.cpp),
// accesses outside of buffers, reads of what nobody wrote, and races.
//
// Not emulated: time, and memory that shows writes out of order. checks.cpp asks instead that the
// fences are there which order them.
#pragma once

namespace emulator {

// Where an operation stands in the source.
struct Site {
    const char *file;
    int line;
};

enum Operation { SHUFFLE, MATRICES, MATRICES_TRANSPOSED, TRANSPOSITION, PRODUCT };

// What a lane brings to an operation of its warp, and what it takes from it.
struct Lane {
    Operation operation;
    Site site;
    int number;       // the lane to take from; matrices; depth of the product
    float value;      // to give away, then what was taken
    const void *row;  // of a matrix
    unsigned words[4], weights[2];  // fragments A, which a load fills, and B
    float sums[4];
};

int thread();
int program();
int programs();
unsigned char *shared();
Lane &lane();
void meet(Operation operation, Site site);  // the warp's; performed when its last lane comes
void barrier(Site site);                    // the program's
void fence();
void put_word(unsigned long long *word, float value, Site site);
float take_word(const unsigned long long *word, Site site);

// A buffer that a launch may touch.
struct Buffer {
    const unsigned char *begin;
    long bytes;
    const char *name;
    int is_input;  // written beforehand, and not to be written
};

struct Launch {
    int programs, threads, shared_bytes;
    unsigned seed;          // of the order in which threads run; 0: their own
    int is_checked;         // whether every access is looked at
    const char *skip_file;  // a barrier that is left out, or null
    int skip_line;
    int num_buffers;
    const Buffer *buffers;
};

// Run a launch; return what it did wrong, in one line, or "".
const char *run(void (*kernel)(const void *), const void *arguments, long bytes,
                const Launch &launch);

}  // namespace emulator
