"""deep_supervision_loss: pooling, linear, cross-entropy and weighting of every head as one op.

    pooled_h = mean over positions of tap_h              (B, C_h)
    logits_h = pooled_h @ weight_h.T + bias_h            (B, K)
    loss     = sum over heads of loss_weight_h * mean over images of cross_entropy(logits_h, target)

The loss is a scalar, so the forward already knows d loss / d logits and d loss / d pooled up to one
factor. It saves these (B, K) and (B, C) values and no logits. In the backward every position of a
map has the same gradient, d pooled / (height * width), so a tap is handed a (B, C) tensor expanded
over its map: stride 0, nothing of a tap's size written. Whoever reads it next (an add, a ReLU or
batch-norm backward) reads B * C values instead of a map.

`pooled_supervision_loss` is the same from pooled_h on, for a backbone that pools where it makes a
tap: one launch less, and no tap is read.

Shape letters: H heads, B images, K classes, C_h channels of head h.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import Impl, resolve_impl
from .check import check_inputs
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
    biases: Sequence[Tensor | None],
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
    check_inputs("features", 4, features, weights, biases, target, loss_weights, label_smoothing)
    return _reference(features, weights, biases, target, loss_weights, label_smoothing)


def pooled_supervision_loss_ref(
    pooled: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    target: Tensor,
    loss_weights: Tensor,
    *,
    label_smoothing: float = 0.0,
) -> HeadLosses:
    """Compute `pooled_supervision_loss` in plain PyTorch, as `deep_supervision_loss_ref` does."""
    check_inputs("pooled", 2, pooled, weights, biases, target, loss_weights, label_smoothing)
    return _reference(pooled, weights, biases, target, loss_weights, label_smoothing)


def _reference(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    target: Tensor,
    loss_weights: Tensor,
    label_smoothing: float,
) -> HeadLosses:
    per_head, correct = [], []
    dtype = torch.promote_types(features[0].dtype, torch.float32)
    with torch.autocast(target.device.type, enabled=False):
        for feature, weight, bias in zip(features, weights, biases, strict=True):
            is_map = feature.ndim == 4
            pooled = feature.mean((2, 3), dtype=dtype) if is_map else feature.to(dtype)
            logits = F.linear(pooled, weight.to(dtype), None if bias is None else bias.to(dtype))
            try:
                # No label means "ignore": -100, PyTorch's default, is out of range like any other.
                loss = F.cross_entropy(
                    logits, target, ignore_index=_IGNORE_NONE, label_smoothing=label_smoothing
                )
            except IndexError as error:
                raise ValueError(
                    f"target lies in {int(target.min())} ... {int(target.max())}: "
                    f"labels of {len(weight)} classes run from 0 to {len(weight) - 1}"
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
    """Return the fields of `HeadsForward`: those of `HeadLosses`, then what the backward needs.

    Features are maps (B, C, height, width) or already pooled (B, C).
    """
    out = empty_forward(weights, target)
    for launch in forward_launches(
        out, features, weights, biases, target, loss_weights, label_smoothing
    ):
        launch.run(device_of=target)
    return out


@_deep_supervision_loss.register_fake
def _(features, weights, biases, target, loss_weights, label_smoothing):
    return empty_forward(weights, target)


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
    ctx.shapes = [feature.shape for feature in features]
    ctx.tap_dtype, ctx.linear_dtype = features[0].dtype, weights[0].dtype


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Any, ...]:
    needs_taps, needs_weights, needs_biases, _, needs_loss_weights, _ = ctx.needs_input_grad
    none = [None] * len(ctx.shapes)
    if grad_loss is None:
        return none, none, none, None, None, None
    d_logits, pooled, d_pooled, per_head = ctx.saved_tensors
    d_weights, d_biases, d_taps = none, none, none
    if any(needs_taps + needs_weights + needs_biases):
        channels = [shape[1] for shape in ctx.shapes]
        needs_linear = [w or b for w, b in zip(needs_weights, needs_biases, strict=True)]
        d_weights, d_biases, d_pools = _deep_supervision_loss_backward(
            grad_loss, d_logits, pooled, d_pooled, channels, needs_linear, any(needs_taps),
            ctx.linear_dtype, ctx.tap_dtype,
        )  # fmt: skip
        if any(needs_taps):
            d_taps = [
                d[:, :, None, None].expand(shape) if len(shape) == 4 else d
                for d, shape in zip(d_pools.split(channels, 1), ctx.shapes, strict=True)
            ]
    d_loss_weights = grad_loss * per_head if needs_loss_weights else None

    def wanted(grads: list[Any], needs: list[bool]) -> list[Any]:
        return [grad if need else None for grad, need in zip(grads, needs, strict=True)]

    linear = wanted(d_weights, needs_weights), wanted(d_biases, needs_biases)
    return wanted(d_taps, needs_taps), *linear, None, d_loss_weights, None


_deep_supervision_loss.register_autograd(_backward, setup_context=_setup_context)


def deep_supervision_loss(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    target: Tensor,
    loss_weights: Tensor,
    *,
    label_smoothing: float = 0.0,
    impl: Impl = "auto",
) -> HeadLosses:
    """Sum loss_weight * `F.cross_entropy(pool(map) @ weight.T + bias, target)` over the heads.

    features: H maps (B, C_h, height_h, width_h). Contiguous, channels_last, sliced and expanded
    maps are read where they lie; a map with holes (a crop) is copied first. weights: H of (K, C_h).
    biases: H of (K,), or None where a head has none. target: (B,) int64. loss_weights: (H,) float32
    on the device, 1.0 for the main head and alpha for auxiliary ones.

    Arithmetic is fp32 whatever the dtypes of features and weights, also under autocast; fp64
    features take the reference, which keeps fp64. The same inputs give the same bits. Only `loss`
    has a gradient. With impl="triton" it is a first-order one: differentiating it again raises,
    take impl="torch" for that. A target outside 0 ... K - 1 raises ValueError in the reference on a
    CPU and makes the loss NaN in the kernels, which do not wait for the device to look.

    Raises ValueError on inputs that do not fit each other, the same for every impl, and on
    impl="triton" where Triton cannot run.
    """
    check_inputs("features", 4, features, weights, biases, target, loss_weights, label_smoothing)
    return _losses(features, weights, biases, target, loss_weights, label_smoothing, impl)


def pooled_supervision_loss(
    pooled: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    target: Tensor,
    loss_weights: Tensor,
    *,
    label_smoothing: float = 0.0,
    impl: Impl = "auto",
) -> HeadLosses:
    """Compute `deep_supervision_loss` of features that their producer has pooled already.

    pooled: H of (B, C_h), each the mean of a map over its positions, in fp32 where digits count.
    Rows may lie any distance apart, as columns of one (B, sum of C_h) buffer do; channels that are
    not neighbours in memory are copied first. All else is as there. The gradient of `pooled` is
    (B, C_h) in its dtype, d loss / d pooled, a slice of one (B, sum of C_h) buffer.
    """
    check_inputs("pooled", 2, pooled, weights, biases, target, loss_weights, label_smoothing)
    return _losses(pooled, weights, biases, target, loss_weights, label_smoothing, impl)


def _losses(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    target: Tensor,
    loss_weights: Tensor,
    label_smoothing: float,
    impl: Impl,
) -> HeadLosses:
    if resolve_impl(impl, target.device, features[0].dtype) == "torch":
        return _reference(features, weights, biases, target, loss_weights, label_smoothing)
    num_classes = weights[0].shape[0]
    if num_classes > MAX_CLASSES:
        raise ValueError(
            f"{num_classes} classes are more than the {MAX_CLASSES} that impl='triton' takes: "
            "take impl='torch'"
        )
    if any(f.shape[0] * f.shape[1] >= 2**31 for f in features):
        raise ValueError(
            f"{features[0].shape[0]} images have 2^31 channels or more in one map: "
            "take a smaller batch or impl='torch'"
        )
    full_biases = [
        weight.new_zeros(num_classes) if bias is None else bias
        for weight, bias in zip(weights, biases, strict=True)
    ]
    loss, per_head, correct, *_ = _deep_supervision_loss(
        features, weights, full_biases, target, loss_weights, label_smoothing
    )
    return HeadLosses(loss, per_head, correct)
