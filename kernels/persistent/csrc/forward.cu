// DenseNet-DS forward in one launch: a program owns one image for the whole network.
//
// The maps of the block at hand stay in the program's shared memory, and are written once to
// memory for the backward. Programs exchange batch statistics, 8 channels a layer, and no more.
#include "transition.h"

KERNEL(THREADS) dense_persistent_forward(const ForwardArguments a) {
    Forward p = {a,
                 shared_memory(),
                 thread_index(),
                 thread_index() / 32,
                 thread_index() % 32,
                 program_index()};
    stem(p);
    for (int u = 0; u < LAYERS; u++) layer<0>(p, u);
    transition<0>(p);
    for (int u = 0; u < LAYERS; u++) layer<1>(p, u);
    transition<1>(p);
    for (int u = 0; u < LAYERS; u++) layer<2>(p, u);
    last_tap(p);
}
