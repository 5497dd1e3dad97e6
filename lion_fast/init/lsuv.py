"""LSUV (Mishkin and Matas 2016): orthonormal weights, then unit output variance layer by layer."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lion_fast.errors import UserError
from lion_fast.init.calibration import batch_statistics, full_precision, unwrapped
from lion_fast.init.example import BATCH, Example, Inputs, inputs_of
from lion_fast.init.heads import HeadChoice
from lion_fast.init.output_layer import Bias
from lion_fast.init.outputs import Main
from lion_fast.init.plan import plan_heads, zero_
from lion_fast.init.variance import WEIGHT_LAYERS, refill_

NUM_SAMPLES = 256


@torch.no_grad()
def lsuv_(
    model: nn.Module,
    images: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    num_samples: int = NUM_SAMPLES,
    target_variance: float = 1.0,
    tolerance: float = 0.01,
    max_iterations: int = 10,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Scale every convolution and linear weight until its layer's output has `target_variance`.

    images: normalised floats, of which the first `num_samples` are used; or all arguments of the
    model as a tuple or a mapping, of whose tensors these are used. The defaults are LION-DG's
    (arXiv 2601.02105, A.3); LSUV's own tolerance is 0.1.

    Weights start orthonormal: a kernel (C_out, C_in, k, k) is a C_out x (C_in k k) matrix with
    orthonormal rows, or columns where it has more rows. Biases start at 0. Then one forward pass
    goes through the layers in the order of execution, and each is rescaled and run again, at most
    `max_iterations` times, before the pass goes on. Its output is linear in its weight, so one
    correction does unless rounding intervenes. Batch norm normalises by the batch, as in training,
    without touching its running statistics; autocast is off meanwhile. A layer that runs twice is
    scaled at its first run; one that does not run stays orthonormal.

    Raises UserError if a layer's output has no finite, positive variance on these images.
    """
    network = unwrapped(model)
    refill_(network, _orthonormal, generator)
    device = next(network.parameters()).device
    scaled: set[str] = set()

    def rescale(name: str, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if name in scaled:
            return output
        scaled.add(name)
        for _ in range(max_iterations):
            variance = output.var(correction=0).item()
            if not 0 < variance < float("inf"):
                raise UserError(
                    f"layer {name!r} has output variance {variance}: give finite images that differ"
                )
            if abs(variance - target_variance) <= tolerance:
                break
            layer.weight.mul_((target_variance / variance) ** 0.5)
            output = layer.forward(*inputs)
        return output

    hooks = [
        layer.register_forward_hook(partial(rescale, name))
        for name, layer in network.named_modules()
        if isinstance(layer, WEIGHT_LAYERS)
    ]
    try:
        with full_precision(network), batch_statistics(network):
            args, kwargs = _first(inputs_of(network, images), num_samples).fresh(device)
            network(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return model


def lion_lsuv_(
    model: nn.Module,
    images: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    heads: HeadChoice = None,
    main: Main = None,
    bias: Bias = "zero",
    example: Example = None,
    num_samples: int = NUM_SAMPLES,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Apply `lsuv_`, then `lion_dg_`: the paper's hybrid.

    Zeroing comes last, because LSUV sets the heads too, and could not scale an output that is 0.
    The heads are found and verified first, on `example` or on a few of `images`, so that a model
    that is refused is left as it was; biases that are kept are those from before.

    Arguments are those of `lsuv_` and `lion_dg_`, and so are the errors.
    """
    if example is None:
        args, kwargs = _first(inputs_of(unwrapped(model), images), BATCH)
        example = kwargs if kwargs else args
    plan = plan_heads(model, heads, main=main, bias=bias, example=example)
    lsuv_(model, images, num_samples=num_samples, generator=generator)
    zero_(model, plan)
    return model


def _orthonormal(weight: Tensor, layer: nn.Module, generator: torch.Generator | None) -> Tensor:
    return nn.init.orthogonal_(weight, generator=generator)


def _first(inputs: Inputs, num_samples: int) -> Inputs:
    """Return the first samples of every tensor that has as many as the first one."""
    tensors = [t for t in tree_leaves((inputs.args, inputs.kwargs)) if _has_samples(t)]

    def cut(value: Any) -> Any:
        of_batch = _has_samples(value) and len(value) == len(tensors[0])
        return value[:num_samples] if of_batch else value

    return Inputs(*tree_map(cut, (inputs.args, inputs.kwargs)))


def _has_samples(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0
