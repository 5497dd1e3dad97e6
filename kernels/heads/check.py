"""What the heads' losses ask of their inputs: one check for kernels and references."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_HALF_AND_SINGLE = (torch.float16, torch.bfloat16, torch.float32)
_FLOATS = (*_HALF_AND_SINGLE, torch.float64)

_SHAPES = {4: "(B, C, height, width)", 2: "(B, C)"}


def check_inputs(
    name: str,
    ndim: int,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    target: Tensor,
    loss_weights: Tensor,
    label_smoothing: float,
) -> None:
    """Raise ValueError where inputs do not fit each other. Looks at shapes, not at values.

    `features` are called `name` in the messages and have `ndim` dimensions: 4 of maps, 2 of pooled
    ones.
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}: it must lie between 0 and 1")
    for key, value in ((name, features), ("weights", weights), ("biases", biases)):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{key} is a {type(value).__name__}: give a list, one entry per head")
    for key, tensor in (("target", target), ("loss_weights", loss_weights)):
        _check_tensor(key, tensor)
    num_heads = len(features)
    if num_heads == 0:
        raise ValueError(f"{name} is empty: give one entry per head")
    if not num_heads == len(weights) == len(biases):
        raise ValueError(
            f"{num_heads} {name}, {len(weights)} weights, {len(biases)} biases: "
            "give one of each per head, None for the bias of a head that has none"
        )
    if target.ndim != 1:
        raise ValueError(f"target is {_shape(target)}: give (B,) labels")
    if target.shape[0] == 0:
        raise ValueError("target is empty: the mean loss of no image is undefined")
    for h, (feature, weight, bias) in enumerate(zip(features, weights, biases, strict=True)):
        _check_tensor(f"{name}[{h}]", feature)
        _check_tensor(f"weights[{h}]", weight)
        if bias is not None:
            _check_tensor(f"biases[{h}]", bias)
        if feature.ndim != ndim or feature.numel() == 0:
            raise ValueError(f"{name}[{h}] is {_shape(feature)}: give {_SHAPES[ndim]}, none of 0")
        if weight.ndim != 2 or weight.numel() == 0:
            raise ValueError(f"weights[{h}] is {_shape(weight)}: give (K, C), none of 0")
    _check_rows(name, features, weights, biases, target, loss_weights)


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}: give a tensor")


def _check_rows(
    name: str,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    target: Tensor,
    loss_weights: Tensor,
) -> None:
    num_heads, num_images, num_classes = len(features), target.shape[0], weights[0].shape[0]
    # The kernels compute in fp32; the reference computes in fp64 where the features are.
    floats = _FLOATS if features[0].dtype == torch.float64 else _HALF_AND_SINGLE
    rows: list[tuple[str, Tensor, tuple[int, ...], tuple[torch.dtype, ...]]] = [
        ("target", target, (num_images,), (torch.int64,)),
        ("loss_weights", loss_weights, (num_heads,), floats),
    ]
    for h, (feature, weight, bias) in enumerate(zip(features, weights, biases, strict=True)):
        tap_dtypes = (features[0].dtype,) if h else _FLOATS
        linear_dtypes = (weights[0].dtype,) if h else floats
        channels = feature.shape[1]
        rows.append((f"{name}[{h}]", feature, (num_images, *feature.shape[1:]), tap_dtypes))
        rows.append((f"weights[{h}]", weight, (num_classes, channels), linear_dtypes))
        if bias is not None:
            rows.append((f"biases[{h}]", bias, (num_classes,), (weights[0].dtype,)))
    for key, tensor, shape, dtypes in rows:
        if tensor.shape != shape or tensor.dtype not in dtypes or tensor.device != target.device:
            raise ValueError(
                f"{key} is {_shape(tensor)} {tensor.dtype} on {tensor.device}: "
                f"give {shape} {' or '.join(map(str, dtypes))} on {target.device}, "
                f"one dtype for all {name} and one for all weights and biases"
            )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
