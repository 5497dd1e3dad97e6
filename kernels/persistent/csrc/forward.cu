// DenseNet-DS forward in one launch: a program owns its images for the whole network.
//
// The maps of the block at hand stay in the program's shared memory where it has one image, and are
// written once to memory for the backward. Programs exchange batch statistics, 8 channels a layer,
// and no more.
#include "transition.h"

// The layers of a block. What came before used the planes' place up to a barrier of publish.
template <int BLOCK>
DEVICE void layers(Forward &p) {
    clear_active(p);
    for (int u = 0; u < LAYERS; u++) {
        p.renew();
        each_image(p, [&] { layer<BLOCK>(p, u); });
    }
}

KERNEL(THREADS) dense_persistent_forward(const ForwardArguments a) {
    Forward p = {this_program(), a};
    clear_active(p);
    synchronise();
    each_image(p, [&] { stem(p); });
    layers<0>(p);
    each_image(p, [&] { transition<0>(p); });
    layers<1>(p);
    each_image(p, [&] { transition<1>(p); });
    layers<2>(p);
    each_image(p, [&] { last_tap(p); });
}
