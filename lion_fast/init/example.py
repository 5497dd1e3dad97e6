"""What a model is run on: the caller's example, or inputs made up from its first layer."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lion_fast.init.variance import WEIGHT_LAYERS

Example = Tensor | Sequence[Any] | Mapping[str, Any] | None

BATCH = 2
"""Images in a made-up batch; batch norm over 1x1 maps needs more than one."""
SIDES = {
    1: (32, 64, 128, 256, 1024),
    2: (32, 64, 128, 224, 256, 299, 384, 512),
    3: (16, 32, 64, 96),
}
"""Pixels a side of a made-up input, by its number of spatial dimensions."""
LARGE = 2**17
"""Numbers in an example from which on a made-up input of its kind is tried in its place."""

# What another author's forward raises on a shape that it was not written for.
MISFIT = (
    *(RuntimeError, ValueError, TypeError, LookupError),
    *(AttributeError, AssertionError, ArithmeticError),
)


class Inputs(NamedTuple):
    """Arguments of a model's forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def fresh(self, device: torch.device) -> "Inputs":
        """Return copies on a device, since a model may write into its inputs."""

        def copied(value: Any) -> Any:
            return value.detach().to(device).clone() if isinstance(value, Tensor) else value

        return Inputs(*tree_map(copied, (self.args, self.kwargs)))


def inputs_of(model: nn.Module, example: Example) -> Inputs:
    """Return the arguments that an example stands for.

    A tensor is the only argument, a mapping holds keyword arguments, a sequence positional ones; a
    string at its end is passed as `mode` where forward has an argument of that name.
    """
    if isinstance(example, Tensor):
        return Inputs((example,), {})
    if isinstance(example, Mapping):
        return Inputs((), dict(example))
    args = tuple(example or ())
    if args and isinstance(args[-1], str) and "mode" in inspect.signature(model.forward).parameters:
        return Inputs(args[:-1], {"mode": args[-1]})
    return Inputs(args, {})


def smaller(given: Inputs) -> Iterator[Inputs]:
    """Yield made-up inputs in place of one large batch of images: a check needs no more."""
    if len(given.args) == 1 and not given.kwargs and isinstance(image := given.args[0], Tensor):
        if image.ndim in (4, 5) and image.is_floating_point() and image.numel() > LARGE:
            for shape in _image_shapes(image.shape[1], image.ndim - 2):
                if 4 * shape.numel() < image.numel():
                    yield Inputs((torch.randn(shape, dtype=image.dtype),), {})


def made_up(model: nn.Module) -> Iterator[Inputs]:
    """Yield images of several sizes, of the width of the first convolution or linear layer."""
    layers: list[Any] = [m for m in model.modules() if is_weight_layer(m)]
    images = [layer for layer in layers if hasattr(layer, "in_channels")]
    # Registered first, or fewest channels: a head may be registered before the stem.
    firsts = [images[0], min(images, key=lambda m: m.in_channels)] if images else layers[:1]
    shapes = dict.fromkeys(shape for layer in firsts for shape in input_shapes(layer))
    parameter = next(model.parameters())
    for shape in sorted(shapes, key=lambda shape: (shape[0] * shape[2:].numel(), shape[0])):
        yield Inputs((torch.randn(shape, dtype=parameter.dtype),), {})


def input_shapes(layer: Any) -> list[torch.Size]:
    """Return shapes of inputs that a layer takes; none for a layer of no known kind."""
    if hasattr(layer, "in_channels"):
        return _image_shapes(layer.in_channels, layer.weight.ndim - 2)
    return [torch.Size((BATCH, layer.in_features))] if hasattr(layer, "in_features") else []


def _image_shapes(channels: int, dims: int) -> list[torch.Size]:
    cubes = [torch.Size((BATCH, channels, *[side] * dims)) for side in SIDES[dims]]
    if dims < 3:
        return cubes
    # One volume, twice as long: where five halvings leave 1x1x2 voxels, norms have two of them.
    long = [torch.Size((1, channels, side, side, 2 * side)) for side in SIDES[dims]]
    return [shape for pair in zip(long, cubes, strict=True) for shape in pair]


def is_weight_layer(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer or a convolution, transposed ones included."""
    return isinstance(module, (*WEIGHT_LAYERS, nn.Bilinear))
