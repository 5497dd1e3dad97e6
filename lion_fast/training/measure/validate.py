"""What every head makes of the test split: each tap is an early exit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lion_fast.data.batches import normalised
from lion_fast.data.dataset import DataSet
from lion_fast.kernels import Impl, dense_supervision_loss
from lion_fast.models import DeeplySupervised, masks_of
from lion_fast.training.machine.resolve import Resolved
from lion_fast.training.step.step import autocast

_BATCH_SIZE = 512
"""On a GPU, where it is a small part of the memory."""


@dataclass(frozen=True)
class Validation:
    """One pass over the test split."""

    loss: float
    """Mean cross-entropy of the main head."""
    accuracy_per_head: tuple[float, ...]
    """Fraction of images, main head last; of masks, the mean over classes of IoU."""
    iou_per_class: list[float | None] | None = None
    """Of masks: intersection over union of each class, of the main head; None for a class that the
    test split has no pixel of."""

    @property
    def accuracy(self) -> float:
        """Main head."""
        return self.accuracy_per_head[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready, under the names that summary.json uses."""
        told = {
            "val_accuracy": self.accuracy,
            "val_accuracy_per_head": list(self.accuracy_per_head),
            "val_loss": self.loss,
        }
        if self.iou_per_class is not None:
            told["val_iou_per_class"] = self.iou_per_class
        return told


class _Tally(Protocol):
    """What is counted on the device, batch by batch."""

    def add(self, model: DeeplySupervised, batch: Tensor, labels: Tensor, impl: Impl) -> None:
        """Count one batch."""

    def result(self) -> Validation:
        """Return what all batches came to."""


class _Hits:
    """Counts the images that each head is right on."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), device=device)
        self._correct: Any = 0
        self._total = 0

    def add(self, model: DeeplySupervised, batch: Tensor, labels: Tensor, impl: Impl) -> None:
        losses = model.loss(batch, labels, 0.0, impl=impl)
        self._total += len(labels)
        self._loss += losses.per_head[-1].float() * len(labels)
        self._correct = self._correct + losses.correct.long()

    def result(self) -> Validation:
        shares = (self._correct / self._total).tolist()
        return Validation((self._loss / self._total).item(), tuple(shares))


class _Confusion:
    """Counts which class each head takes the pixels of each class for; ignored ones are not."""

    def __init__(self, num_heads: int, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        # One more cell takes the ignored pixels, so that none has to be looked for.
        size = num_classes**2 + 1
        self._counts = torch.zeros(num_heads, size, dtype=torch.int64, device=device)
        self._loss, self._num_valid = torch.zeros(2, dtype=torch.float64, device=device).unbind()

    def add(self, model: DeeplySupervised, batch: Tensor, labels: Tensor, impl: Impl) -> None:
        taps = model.taps(batch)
        weights, biases = model.heads.weights_and_biases()
        one = torch.ones(1, device=labels.device)
        main = dense_supervision_loss(
            taps[-1:], weights[-1:], biases[-1:], labels, one, background=True
        )
        self._loss += main.loss.double() * main.valid[0]
        self._num_valid += main.valid[0]
        truth, num_classes = labels.long(), self._num_classes
        levels = [head(tap) for head, tap in zip(model.heads, taps, strict=True)]
        size = (labels.shape[1], labels.shape[2])
        for counts, mask in zip(self._counts, masks_of(levels, size), strict=True):
            cell = torch.where(truth < num_classes, truth * num_classes + mask, num_classes**2)
            counts.scatter_add_(0, cell.flatten(), torch.ones_like(cell).flatten())

    def result(self) -> Validation:
        matrices = self._counts[:, :-1].unflatten(1, (self._num_classes, -1))
        both = matrices.diagonal(dim1=1, dim2=2)
        truth, taken = matrices.sum(2), matrices.sum(1)
        there = truth[0] > 0
        iou = both / (truth + taken - both).clamp(min=1)
        main = [
            value if is_there else None
            for value, is_there in zip(iou[-1].tolist(), there.tolist(), strict=True)
        ]
        loss = (self._loss / self._num_valid.clamp(min=1)).item()
        return Validation(loss, tuple(iou[:, there].mean(1).tolist()), main)


@torch.no_grad()
def masks_of_heads(
    model: DeeplySupervised, pixels: Tensor, images: DataSet, resolved: Resolved
) -> list[np.ndarray]:
    """Return the classes (B, H, W) uint8 that each head gives uint8 pixels (B, H, W, 3)."""
    order = torch.arange(len(pixels))
    batch, _ = normalised(
        pixels, order, images, resolved.device, resolved.compute_dtype, impl=resolved.impl
    )
    was_training = model.training
    model.eval()
    with autocast(resolved):
        levels = model(batch)
    model.train(was_training)
    size = (pixels.shape[1], pixels.shape[2])
    return [mask.cpu().numpy() for mask in masks_of(levels, size)]


@torch.no_grad()
def validate(
    model: DeeplySupervised,
    images: DataSet,
    resolved: Resolved,
    batch_size: int,
    between_batches: Callable[[], None] = lambda: None,
) -> Validation:
    """Return the main head's loss and how right every head is, with the model in eval mode.

    Of images that is accuracy. Of masks it is the mean, over the classes that the test split has,
    of intersection over union at full resolution, where a coarse level's classes are repeated over
    the pixels that they stand for.

    batch_size: of training. On a CPU no more images are taken at a time: what its steps have freed
    is kept, and then serves here too. `between_batches` may raise to end it early.
    """
    device = resolved.device
    at_once = min(_BATCH_SIZE, batch_size) if device.type == "cpu" else _BATCH_SIZE
    was_training = model.training
    model.eval()
    tally: _Tally = _Hits(device)
    if model.heads.is_dense:
        tally = _Confusion(1 + len(model.heads.aux), model.heads.num_classes, device)
    for pixels, labels in images.test_chunks(at_once):
        between_batches()
        batch, labels = normalised(
            pixels, labels, images, device, resolved.compute_dtype, impl=resolved.impl
        )
        with autocast(resolved):
            tally.add(model, batch, labels, resolved.impl)
    model.train(was_training)
    return tally.result()
