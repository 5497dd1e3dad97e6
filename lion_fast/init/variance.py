"""He and Xavier initialisation: variance that depends on a layer's shape alone.

Convolutions, linear layers and normalisations are set; any other parameter and every buffer is left
as it is. Layers are visited in registration order, so one generator gives one set of weights.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lion_fast.init.calibration import check_materialised

WEIGHT_LAYERS = (_ConvNd, nn.Linear)
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


@torch.no_grad()
def refill_(
    model: nn.Module, fill: Callable[..., Tensor], generator: torch.Generator | None
) -> nn.Module:
    """Fill weights with `fill(tensor, generator=generator)`; biases 0, norms gamma 1 and beta 0."""
    check_materialised(model)
    for layer in model.modules():
        if isinstance(layer, WEIGHT_LAYERS):
            # Contiguous, on the generator's device: the same weights whatever the model's
            # memory format and device.
            device = layer.weight.device if generator is None else generator.device
            draw = torch.empty(layer.weight.shape, dtype=layer.weight.dtype, device=device)
            layer.weight.copy_(fill(draw, generator=generator))
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
    return refill_(model, partial(nn.init.kaiming_normal_, nonlinearity="relu"), generator)


def xavier_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw weights from U(-a, a), a = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    return refill_(model, nn.init.xavier_uniform_, generator)
