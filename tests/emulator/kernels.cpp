// The backbone's kernels, for the emulator.
#include "primitives.h"

#include "backward.cu"
#include "forward.cu"
#include "pack.cu"

#define EMULATE(kernel, Arguments)                                                              \
    extern "C" const char *emulate_##kernel(const void *arguments, const emulator::Launch *launch) { \
        return emulator::run([](const void *a) { kernel(*(const Arguments *)a); }, arguments,      \
                             sizeof(Arguments), *launch);                                        \
    }
EMULATE(dense_persistent_pack, PackArguments)
EMULATE(dense_persistent_forward, ForwardArguments)
EMULATE(dense_persistent_backward, BackwardArguments)

// The sizes that plan.py repeats.
#define SIZE(name, value) extern "C" const int size_##name = value;
SIZE(forward_shared, FORWARD_SHARED)
SIZE(columns, NUM_COLUMNS)
SIZE(words, exchange_at(BLOCKS))
SIZE(maps, maps_at(BLOCKS))
SIZE(forward_halves, 2 * weights_at(BLOCKS))
SIZE(backward_halves, 2 * turned_at(BLOCKS))
SIZE(backward_shared, BACKWARD_SHARED)
SIZE(scratch_groups, SCRATCH_GROUPS)
SIZE(scratch_tiles, SCRATCH_TILES)
SIZE(image_bytes, IMAGE_BYTES)
