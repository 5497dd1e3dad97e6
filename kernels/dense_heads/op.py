"""dense_supervision_loss: 1x1 convolution, cross-entropy, Dice and weighting of every head.

    z_h      = weight_h map_h + bias_h at every position                      (B, K, P_h)
    y_h      = target, taken at the positions of the level                    (B, P_h)
    loss_h   = cross_entropy(z_h, y_h) + dice * (1 - mean over images and classes of Dice_h)
    Dice_h   = (2 sum q [y = k] + smooth) / (sum q + sum [y = k] + smooth),  q = softmax(z_h)
    loss     = sum over heads of loss_weight_h * loss_h

Ignored positions are in no sum. An image that is ignored whole adds nothing and gets no gradient.
Stock code makes logits, their softmax, labels as one-hot maps and gradients of each; here no more
than a block of positions of any is in memory at a time.

Shape letters: H heads, B images, K classes, C_h channels and P_h positions of head h's map.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .check import check_dense_inputs, check_options
from .chunks import (
    DenseForward,
    chunked_backward,
    chunked_forward,
    empty_forward,
    empty_gradients,
)
from .options import Options
from .reference import reference_losses

DenseImpl = Literal["auto", "chunked", "reference"]


class DenseLosses(NamedTuple):
    """What the heads say of one batch."""

    loss: Tensor
    """() sum over heads of weight * (cross-entropy + dice * Dice loss)"""
    per_head: Tensor
    """(H,) unweighted, without a gradient"""
    correct: Tensor
    """(H,) int64: positions at which the largest logit is the label's, of those in `valid`"""
    valid: Tensor
    """(H,) int64: positions of the level that are not ignored and, unless `background`, not of
    class 0"""
    dice: Tensor
    """(H, K) soft Dice of each class, the mean over images; NaN where dice is 0"""


def dense_supervision_loss(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    target: Tensor,
    loss_weights: Tensor,
    *,
    ignore_index: int = 255,
    dice: float = 0.0,
    batch_dice: bool = False,
    background: bool = False,
    smooth: float = 1e-5,
    class_weights: Tensor | None = None,
    sampling: str = "nearest-exact",
    impl: DenseImpl = "auto",
) -> DenseLosses:
    """Sum over the heads loss_weight * (cross-entropy + dice * Dice loss) of a 1x1 convolution.

    features: H maps (B, C_h, height_h, width_h), or (B, C_h, depth_h, height_h, width_h), of any
    layout. weights: H of (K, C_h), or a convolution's (K, C_h, 1, 1). biases: H of (K,), or None.
    target: (B, height, width), or with a depth, of any integer type, at full resolution: each level
    takes the labels that `F.interpolate(mode=sampling)` would. loss_weights: (H,) on the device; a
    head of weight 0 gets gradients of 0.

    ignore_index: positions of this label are in no sum. class_weights: (K,) for the cross-entropy,
    as in `F.cross_entropy`. Dice is that of MONAI's `DiceLoss` and of nnU-Net's `SoftDiceLoss` + 1:
    the mean over images and classes, or with `batch_dice` over classes of all images as one; class
    0 takes part with `background`, which also decides whether its positions are counted in
    `correct` and `valid`.

    Arithmetic is fp32 whatever the dtype of the maps, also under autocast, and fp64 for fp64. The
    same inputs give the same bits. A label that is neither a class nor ignored makes the loss NaN:
    nothing waits for the device to look. Only `loss` has a gradient, a first-order one.

    impl: "chunked", which "auto" takes, holds no more logits than of a block of positions and
    computes them again in the backward; "reference" holds them all.

    Raises ValueError on inputs that do not fit each other.
    """
    if impl not in get_args(DenseImpl):
        raise ValueError(f"impl is {impl!r}: take one of {', '.join(get_args(DenseImpl))}")
    options = Options(ignore_index, dice, batch_dice, background, smooth, sampling)
    check_options(options)
    check_dense_inputs(features, weights, biases, target, loss_weights, class_weights)
    matrices = [weight.flatten(1) for weight in weights]
    vectors = [
        weight.new_zeros(len(weight)) if bias is None else bias
        for weight, bias in zip(weights, biases, strict=True)
    ]
    parts = (list(features), matrices, vectors, target, loss_weights, class_weights)
    if impl == "reference":
        return DenseLosses(*reference_losses(*parts, options))
    return DenseLosses(*_dense_supervision_loss(*parts, *options)[:5])


def dense_supervision_loss_ref(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    target: Tensor,
    loss_weights: Tensor,
    **options: Any,
) -> DenseLosses:
    """Compute `dense_supervision_loss` in plain PyTorch with all logits in memory: the truth."""
    parts = (features, weights, biases, target, loss_weights)
    return dense_supervision_loss(*parts, **options, impl="reference")


@torch.library.custom_op("lion_fast::dense_supervision_loss", mutates_args=())
def _dense_supervision_loss(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    dice: float,
    batch_dice: bool,
    background: bool,
    smooth: float,
    sampling: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the fields of `DenseForward`."""
    options = Options(ignore_index, dice, batch_dice, background, smooth, sampling)
    with torch.autocast(target.device.type, enabled=False):
        return chunked_forward(
            features, weights, biases, target, loss_weights, class_weights, options
        )


@_dense_supervision_loss.register_fake
def _(features, weights, biases, target, loss_weights, class_weights, *options):
    return empty_forward(features, weights, Options(*options))


@torch.library.custom_op("lion_fast::dense_supervision_loss_backward", mutates_args=())
def _dense_supervision_loss_backward(
    grad_loss: Tensor,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
    class_weights: Tensor | None,
    weight_sums: Tensor,
    coefficients: Tensor,
    denominators: Tensor,
    ignore_index: int,
    dice: float,
    batch_dice: bool,
    background: bool,
    smooth: float,
    sampling: str,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the gradients of maps, weights and biases."""
    options = Options(ignore_index, dice, batch_dice, background, smooth, sampling)
    with torch.autocast(target.device.type, enabled=False):
        return chunked_backward(
            grad_loss,
            features,
            weights,
            biases,
            target,
            loss_weights,
            class_weights,
            weight_sums,
            coefficients,
            denominators,
            options,
        )


@_dense_supervision_loss_backward.register_fake
def _(grad_loss, features, weights, biases, *others):
    return empty_gradients(features, weights, biases)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, weights, biases, target, loss_weights, class_weights, *options = inputs
    out = DenseForward(*output)
    ctx.num_heads, ctx.options = len(features), options
    ctx.has_class_weights = class_weights is not None
    ctx.save_for_backward(
        *features,
        *weights,
        *biases,
        target,
        loss_weights,
        out.per_head,
        out.weight_sums,
        out.coefficients,
        out.denominators,
        *([class_weights] if class_weights is not None else []),
    )
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Any, ...]:
    count, nothing = ctx.num_heads, [None] * len(ctx.options)
    none = [None] * count
    if grad_loss is None:
        return none, none, none, None, None, None, *nothing
    saved = list(ctx.saved_tensors)
    features, weights, biases = (saved[i * count : (i + 1) * count] for i in range(3))
    target, loss_weights, per_head, *sums = saved[3 * count :]
    class_weights = sums.pop() if ctx.has_class_weights else None
    needs_maps, needs_weights, needs_biases, _, needs_loss_weights, *_ = ctx.needs_input_grad
    d_maps, d_weights, d_biases = none, none, none
    if any((*needs_maps, *needs_weights, *needs_biases)):
        d_maps, d_weights, d_biases = _dense_supervision_loss_backward(
            grad_loss,
            features,
            weights,
            biases,
            target,
            loss_weights,
            class_weights,
            *sums,
            *ctx.options,
        )
    d_loss_weights = grad_loss * per_head if needs_loss_weights else None
    return d_maps, d_weights, d_biases, None, d_loss_weights, None, *nothing


_dense_supervision_loss.register_autograd(_backward, setup_context=_setup_context)
