"""What the dense loss asks of its inputs: one check for every implementation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .options import SAMPLINGS, Options

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_options(options: Options) -> None:
    """Raise ValueError on a value that cannot be meant."""
    for name in ("dice", "smooth"):
        if not 0 <= getattr(options, name) < float("inf"):
            raise ValueError(f"{name} is {getattr(options, name)}: give a finite number, 0 or more")
    if options.sampling not in SAMPLINGS:
        raise ValueError(
            f"sampling is {options.sampling!r}: take one of {', '.join(SAMPLINGS)}, of"
            " F.interpolate"
        )


def check_dense_inputs(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    target: Tensor,
    loss_weights: Tensor,
    class_weights: Tensor | None,
) -> None:
    """Raise ValueError where inputs do not fit each other. Looks at shapes, not at values."""
    num_heads = len(features)
    if not num_heads or not num_heads == len(weights) == len(biases):
        raise ValueError(
            f"{num_heads} features, {len(weights)} weights, {len(biases)} biases: give one of each"
            " per head, None for the bias of a head that has none"
        )
    ndim = target.ndim + 1
    if ndim not in (4, 5) or target.dtype not in _INTEGERS or not target.numel():
        raise ValueError(
            f"target is {_told(target)}: give integers (B, height, width) or (B, depth, height,"
            " width), none of 0"
        )
    num_classes = weights[0].shape[0]
    if num_classes < 2:
        raise ValueError(f"weights[0] is {_told(weights[0])}: a loss takes at least 2 classes")
    for h, (feature, weight, bias) in enumerate(zip(features, weights, biases, strict=True)):
        if feature.ndim != ndim or len(feature) != len(target) or not feature.numel():
            raise ValueError(
                f"features[{h}] is {_told(feature)}: give (B, C, *size) of {len(target)} images"
                f" and {ndim - 2} dimensions, as target {_told(target)}"
            )
        if feature.dtype not in _FLOATS or feature.dtype != features[0].dtype:
            raise ValueError(f"features[{h}] is {_told(feature)}: give one float dtype for all")
        if tuple(weight.flatten(1).shape) != (num_classes, feature.shape[1]):
            raise ValueError(
                f"weights[{h}] is {_told(weight)}: give ({num_classes}, {feature.shape[1]}), or"
                " that of a 1x1 convolution"
            )
        if bias is not None and tuple(bias.shape) != (num_classes,):
            raise ValueError(f"biases[{h}] is {_told(bias)}: give ({num_classes},)")
    if tuple(loss_weights.shape) != (num_heads,):
        raise ValueError(f"loss_weights is {_told(loss_weights)}: give ({num_heads},)")
    if class_weights is not None and tuple(class_weights.shape) != (num_classes,):
        raise ValueError(f"class_weights is {_told(class_weights)}: give ({num_classes},)")
    others = [*features, *weights, loss_weights, *filter(_is_tensor, (*biases, class_weights))]
    for other in others:
        assert other is not None
        if other.device != target.device:
            raise ValueError(f"target is on {target.device} and another on {other.device}")


def _is_tensor(value: Tensor | None) -> bool:
    return value is not None


def _told(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
