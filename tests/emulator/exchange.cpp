// The kernel that times an exchange, for the emulator.
#include "primitives.h"

#include "../../bench/gpu/exchange.cu"

extern "C" const char *emulate_dense_persistent_rounds(const void *arguments,
                                                       const emulator::Launch *launch) {
    return emulator::run([](const void *a) { dense_persistent_rounds(*(const Rounds *)a); },
                         arguments, sizeof(Rounds), *launch);
}
