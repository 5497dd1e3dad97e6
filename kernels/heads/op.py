"""deep_supervision_loss: pooling, linear, cross-entropy and weighting of every head as one op.

    pooled_h = mean over positions of tap_h              (B, C_h)
    logits_h = pooled_h @ weight_h.T + bias_h            (B, K)
    loss     = sum over heads of loss_weight_h * mean over images of cross_entropy(logits_h, target)

The loss is a scalar, so the forward already knows d loss / d logits and d loss / d pooled up to one
factor. It saves these (B, K) and (B, C) values and no logits. In the backward every position of a
map has the same gradient, d pooled / (height * width), so a tap is handed a (B, C) tensor expanded
over its map: stride 0, nothing of a tap's size written. Whoever reads it next (an add, a ReLU or
batch-norm backward) reads B * C values instead of a map.

Shape letters: H heads, B images, K classes, C_h channels of head h.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import Impl, resolve_impl
from .launch import (
    MAX_CLASSES,
    HeadsForward,
    backward_launch,
    empty_forward,
    empty_gradients,
    forward_launches,
)


class HeadLosses(NamedTuple):
    """What the heads say of one batch."""

    loss: Tensor
    """() sum over heads of weight * mean cross-entropy"""
    per_head: Tensor
    """(H,) unweighted mean cross-entropy, without a gradient"""
    correct: Tensor
    """(H,) int32, top-1 hits in the batch"""


def deep_supervision_loss_ref(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
    *,
    label_smoothing: float = 0.0,
) -> HeadLosses:
    """Compute `deep_supervision_loss` in plain PyTorch: the truth in tests and the CPU path.

    Arithmetic is fp32 for fp16, bf16 and fp32 features, and fp64 for fp64, also under autocast. A
    target outside 0 ... K - 1 raises ValueError on the CPU; on a GPU it trips PyTorch's own device
    assertion.
    """
    per_head, correct = [], []
    with torch.autocast(features[0].device.type, enabled=False):
        for feature, weight, bias in zip(features, weights, biases, strict=True):
            dtype = torch.float64 if feature.dtype == torch.float64 else torch.float32
            pooled = feature.mean((2, 3), dtype=dtype)
            logits = F.linear(pooled, weight.to(dtype), bias.to(dtype))
            try:
                # No label means "ignore": -100, PyTorch's default, is out of range like any other.
                loss = F.cross_entropy(
                    logits, target, ignore_index=_IGNORE_NONE, label_smoothing=label_smoothing
                )
            except IndexError as error:
                raise ValueError(
                    f"target lies in {int(target.min())} ... {int(target.max())}: "
                    f"labels of {len(bias)} classes run from 0 to {len(bias) - 1}"
                ) from error
            per_head.append(loss)
            correct.append((logits.argmax(1) == target).sum(dtype=torch.int32))
        losses = torch.stack(per_head)
        weighted = (losses * loss_weights.to(losses.dtype)).sum()
    return HeadLosses(weighted, losses.detach(), torch.stack(correct))


_IGNORE_NONE = torch.iinfo(torch.int64).min


@torch.library.custom_op("lion_fast::deep_supervision_loss", mutates_args=())
def _deep_supervision_loss(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the fields of `HeadsForward`: those of `HeadLosses`, then what the backward needs."""
    _check(features, weights, biases, target, loss_weights)
    out = empty_forward(features, biases, target)
    for launch in forward_launches(
        out, features, weights, biases, target, loss_weights, label_smoothing
    ):
        launch.run(device_of=target)
    return out


@_deep_supervision_loss.register_fake
def _(features, weights, biases, target, loss_weights, label_smoothing):
    _check(features, weights, biases, target, loss_weights)
    return empty_forward(features, biases, target)


@torch.library.custom_op("lion_fast::deep_supervision_loss_backward", mutates_args=())
def _deep_supervision_loss_backward(
    grad_loss: Tensor,
    d_logits: Tensor,
    pooled: Tensor,
    d_pooled: Tensor,
    channels: Sequence[int],
    needs_linear: Sequence[bool],
    needs_taps: bool,
    linear_dtype: torch.dtype,
    tap_dtype: torch.dtype,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return d_weights, d_biases and d_taps (B, sum of C_h); those not needed are empty."""
    grads = empty_gradients(
        d_logits, d_pooled, channels, needs_linear, needs_taps, linear_dtype, tap_dtype
    )
    backward_launch(grads, grad_loss, d_logits, pooled, d_pooled).run(device_of=grad_loss)
    return grads


@_deep_supervision_loss_backward.register_fake
def _(grad_loss, d_logits, pooled, d_pooled, *needs_and_dtypes):
    return empty_gradients(d_logits, d_pooled, *needs_and_dtypes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, weights = inputs[:2]
    out = HeadsForward(*output)
    ctx.save_for_backward(out.d_logits, out.pooled, out.d_pooled, out.per_head)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.maps = [feature.shape for feature in features]
    ctx.tap_dtype, ctx.linear_dtype = features[0].dtype, weights[0].dtype


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Any, ...]:
    needs_taps, needs_weights, needs_biases, _, needs_loss_weights, _ = ctx.needs_input_grad
    none = [None] * len(ctx.maps)
    if grad_loss is None:
        return none, none, none, None, None, None
    d_logits, pooled, d_pooled, per_head = ctx.saved_tensors
    d_weights, d_biases, d_taps = none, none, none
    if any(needs_taps + needs_weights + needs_biases):
        channels = [shape[1] for shape in ctx.maps]
        needs_linear = [w or b for w, b in zip(needs_weights, needs_biases, strict=True)]
        d_weights, d_biases, d_pools = _deep_supervision_loss_backward(
            grad_loss, d_logits, pooled, d_pooled, channels, needs_linear, any(needs_taps),
            ctx.linear_dtype, ctx.tap_dtype,
        )  # fmt: skip
        if any(needs_taps):
            d_taps = [
                d[:, :, None, None].expand(shape)
                for d, shape in zip(d_pools.split(channels, 1), ctx.maps, strict=True)
            ]
    d_loss_weights = grad_loss * per_head if needs_loss_weights else None

    def wanted(grads: list[Any], needs: list[bool]) -> list[Any]:
        return [grad if need else None for grad, need in zip(grads, needs, strict=True)]

    linear = wanted(d_weights, needs_weights), wanted(d_biases, needs_biases)
    return wanted(d_taps, needs_taps), *linear, None, d_loss_weights, None


_deep_supervision_loss.register_autograd(_backward, setup_context=_setup_context)


def _check(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
) -> None:
    """Raise ValueError where a kernel would misread its inputs. Looks at shapes, not at values."""
    num_heads, num_images, num_classes = len(features), len(target), len(biases[0])
    if not num_heads == len(weights) == len(biases) == loss_weights.numel():
        raise ValueError(
            f"{num_heads} features, {len(weights)} weights, {len(biases)} biases and "
            f"{loss_weights.numel()} loss_weights: give one of each per head"
        )
    if num_images == 0:
        raise ValueError("target is empty: the mean loss of no image is undefined")
    if num_classes > MAX_CLASSES:
        raise ValueError(
            f"{num_classes} classes are more than the {MAX_CLASSES} that impl='triton' takes: "
            "take impl='torch'"
        )
    floats = (torch.float16, torch.bfloat16, torch.float32)
    rows: list[tuple[str, Tensor, tuple[int, ...], tuple[torch.dtype, ...]]] = [
        ("target", target, (num_images,), (torch.int64,)),
        ("loss_weights", loss_weights, (num_heads,), floats),
    ]
    for h, (feature, weight, bias) in enumerate(zip(features, weights, biases, strict=True)):
        if feature.ndim != 4:
            raise ValueError(f"features[{h}] is {tuple(feature.shape)}: give (B, C, height, width)")
        channels = feature.shape[1]
        tap_dtypes = (features[0].dtype,) if h else floats
        linear_dtypes = (weights[0].dtype,) if h else floats
        rows += [
            (f"features[{h}]", feature, (num_images, *feature.shape[1:]), tap_dtypes),
            (f"weights[{h}]", weight, (num_classes, channels), linear_dtypes),
            (f"biases[{h}]", bias, (num_classes,), (weights[0].dtype,)),
        ]
    for name, tensor, shape, dtypes in rows:
        if tensor.shape != shape or tensor.dtype not in dtypes or tensor.device != target.device:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}: "
                f"impl='triton' needs {shape} {' or '.join(map(str, dtypes))} on {target.device}, "
                "one dtype for all features and one for all weights and biases"
            )


def deep_supervision_loss(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
    *,
    label_smoothing: float = 0.0,
    impl: Impl = "auto",
) -> HeadLosses:
    """Sum loss_weight * `F.cross_entropy(pool(map) @ weight.T + bias, target)` over the heads.

    features: H maps (B, C_h, height_h, width_h). Contiguous, channels_last, sliced and expanded
    maps are read where they lie; a map with holes (a crop) is copied first. weights: H of (K, C_h).
    biases: H of (K,). target: (B,) int64. loss_weights: (H,) float32 on the device, 1.0 for the
    main head and alpha for auxiliary ones.

    Arithmetic is fp32 whatever the dtypes of features and weights, also under autocast; fp64
    features take the reference, which keeps fp64. The same inputs give the same bits. Only `loss`
    has a gradient. With impl="triton" it is a first-order one: differentiating it again raises,
    take impl="torch" for that. A target outside 0 ... K - 1 raises ValueError in the reference on a
    CPU and makes the loss NaN in the kernels, which do not wait for the device to look.

    Raises ValueError on inputs that do not fit each other, and on impl="triton" where Triton cannot
    run.
    """
    if not features:
        raise ValueError("features is empty: give one map per head")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}: it must lie between 0 and 1")
    if resolve_impl(impl, features[0].device, features[0].dtype) == "torch":
        return deep_supervision_loss_ref(
            features, weights, biases, target, loss_weights, label_smoothing=label_smoothing
        )
    loss, per_head, correct, *_ = _deep_supervision_loss(
        features, weights, biases, target, loss_weights, label_smoothing
    )
    return HeadLosses(loss, per_head, correct)
