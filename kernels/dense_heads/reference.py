"""dense_supervision_loss in plain PyTorch, all logits in memory: the truth in tests.

Shape letters as in `op.py`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import Labels, Options, labels_of_level


def reference_losses(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
    class_weights: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the fields of `DenseLosses`; differentiable as often as wanted."""
    dtype = torch.promote_types(features[0].dtype, torch.float32)
    losses, hits, counts, coefficients = [], [], [], []
    with torch.autocast(target.device.type, enabled=False):
        for feature, weight, bias in zip(features, weights, biases, strict=True):
            level = labels_of_level(target, feature.shape[2:], options.sampling).flatten(1)
            labels = Labels.of(level, len(weight), options.ignore_index)
            logits = weight.to(dtype) @ feature.flatten(2).to(dtype) + bias.to(dtype)[:, None]
            loss = _cross_entropy(logits, labels, class_weights)
            dice = logits.new_full((len(weight),), torch.nan)
            if options.dice:
                every = _dice(logits, labels, options)
                loss = loss + options.dice * (1 - every[:, options.first_class :].mean())
                dice = every.mean(0).detach()
            counted = labels.counted(options)
            losses.append(loss)
            hits.append(((logits.argmax(1) == labels.classes) & counted).sum())
            counts.append(counted.sum())
            coefficients.append(dice)
        per_head = torch.stack(losses)
        loss = (per_head * loss_weights.to(dtype)).sum()
    return (
        loss,
        per_head.detach(),
        torch.stack(hits),
        torch.stack(counts),
        torch.stack(coefficients),
    )


def _cross_entropy(logits: Tensor, labels: Labels, class_weights: Tensor | None) -> Tensor:
    """Return () of logits (B, K, P): the weighted mean over valid positions, 0 without any."""
    wanted = torch.where(labels.valid, labels.classes, -100)
    weights = None if class_weights is None else class_weights.to(logits.dtype)
    total = F.cross_entropy(logits, wanted, weights, ignore_index=-100, reduction="sum")
    share = labels.valid.to(logits.dtype)
    weight = (share if weights is None else share * weights[labels.classes]).sum()
    loss = total / torch.where(weight > 0, weight, 1)
    return torch.where(labels.wrong.any(), torch.nan, loss)


def _dice(logits: Tensor, labels: Labels, options: Options) -> Tensor:
    """Return soft Dice of each image, or of all as one, and class: (B or 1, K)."""
    valid = labels.valid[:, None]
    shares = logits.softmax(1).where(valid, 0)
    truth = F.one_hot(labels.classes, logits.shape[1]).movedim(-1, 1).to(logits.dtype) * valid
    axes = (0, 2) if options.batch_dice else (2,)
    both, ours, theirs = (each.sum(axes) for each in (shares * truth, shares, truth))
    dice = (2 * both + options.smooth) / (ours + theirs + options.smooth).clamp(min=1e-8)
    return dice.reshape(-1, logits.shape[1])
