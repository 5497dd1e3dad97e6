"""He and Xavier initialisation: variance that depends on a layer's shape alone.

fan_in is the number of products that an output sums, on average over its positions: in_channels /
groups x kernel, and of a transposed convolution that over the product of its strides, since each
output meets every stride-th tap. (torch.nn.init takes a transposed weight for a plain one.)

Convolutions, linear layers and normalisations are set; any other parameter and every buffer is left
as it is. Layers are visited in registration order, so one generator gives one set of weights.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lion_fast.init.calibration import check_materialised

WEIGHT_LAYERS = (_ConvNd, nn.Linear)
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


@torch.no_grad()
def refill_(
    model: nn.Module, fill: Callable[..., Tensor], generator: torch.Generator | None
) -> nn.Module:
    """Fill weights with `fill(tensor, layer, generator)`; biases 0, norms gamma 1 and beta 0."""
    check_materialised(model)
    for layer in model.modules():
        if isinstance(layer, WEIGHT_LAYERS):
            # Contiguous, on the generator's device: the same weights whatever the model's
            # memory format and device.
            device = layer.weight.device if generator is None else generator.device
            draw = torch.empty(layer.weight.shape, dtype=layer.weight.dtype, device=device)
            layer.weight.copy_(fill(draw, layer, generator))
        elif isinstance(layer, NORMS):
            if layer.weight is not None:
                layer.weight.fill_(1)
        else:
            continue
        if layer.bias is not None:
            layer.bias.zero_()
    # autocast would go on with its cast of the old weights.
    torch.clear_autocast_cache()
    return model


def he_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw every weight, the heads' included, from N(0, 2 / fan_in).

    He et al. 2015, eq. 10, the forward case: fan_in is what keeps the variance of activations from
    ReLU to ReLU. The linear heads get it too: that is the untrained, disturbing auxiliary head of
    the baseline.
    """

    def fill(weight: Tensor, layer: nn.Module, generator: torch.Generator | None) -> Tensor:
        if isinstance(layer, _ConvTransposeNd):
            return weight.normal_(0, (2 / _transposed_fans(layer)[0]) ** 0.5, generator=generator)
        return nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)

    return refill_(model, fill, generator)


def xavier_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw weights from U(-a, a), a = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""

    def fill(weight: Tensor, layer: nn.Module, generator: torch.Generator | None) -> Tensor:
        if isinstance(layer, _ConvTransposeNd):
            bound = (6 / sum(_transposed_fans(layer))) ** 0.5
            return weight.uniform_(-bound, bound, generator=generator)
        return nn.init.xavier_uniform_(weight, generator=generator)

    return refill_(model, fill, generator)


def _transposed_fans(layer: _ConvTransposeNd) -> tuple[float, float]:
    """Return fan_in and fan_out: products summed an output, and an input's gradient."""
    taps = prod(layer.kernel_size)
    fan_in = layer.in_channels / layer.groups * taps / prod(layer.stride)
    return fan_in, layer.out_channels / layer.groups * taps
