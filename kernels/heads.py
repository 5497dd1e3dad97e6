"""deep_supervision_loss: global average pool, linear, cross-entropy and weighting of every head as one op."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Impl, resolve_impl


class HeadLosses(NamedTuple):
    """What the heads say of one batch."""

    loss: Tensor
    """() sum over heads of weight * mean cross-entropy"""
    per_head: Tensor
    """(H,) unweighted mean cross-entropy"""
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

    Arithmetic is fp32 for fp16, bf16 and fp32 features, and fp64 for fp64.
    """
    per_head, correct = [], []
    for feature, weight, bias in zip(features, weights, biases, strict=True):
        dtype = torch.float64 if feature.dtype == torch.float64 else torch.float32
        pooled = feature.mean((2, 3), dtype=dtype)
        logits = F.linear(pooled, weight.to(dtype), bias.to(dtype))
        per_head.append(F.cross_entropy(logits, target, label_smoothing=label_smoothing))
        correct.append((logits.argmax(1) == target).sum(dtype=torch.int32))
    losses = torch.stack(per_head)
    return HeadLosses(
        (losses * loss_weights.to(losses.dtype)).sum(), losses.detach(), torch.stack(correct)
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
    """Compute the weighted sum over heads of `F.cross_entropy(pool(feature) @ weight.T + bias, target)`.

    features: H maps (B, C_h, H_h, W_h), any dense layout. weights: H of (K, C_h). biases: H of (K,). target: (B,)
    int64. loss_weights: (H,) float32 on the device, 1.0 for the main head and alpha for auxiliary ones.
    """
    resolve_impl(impl, features[0].device)
    return deep_supervision_loss_ref(
        features, weights, biases, target, loss_weights, label_smoothing=label_smoothing
    )
