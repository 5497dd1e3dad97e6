"""Accuracy of every head on the test split: each tap is an early exit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lion_fast.data.batches import normalised
from lion_fast.data.dataset import DataSet
from lion_fast.models import DeeplySupervised
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
    """Fraction of images, main head last."""

    @property
    def accuracy(self) -> float:
        """Main head."""
        return self.accuracy_per_head[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready, under the names that summary.json uses."""
        return {
            "val_accuracy": self.accuracy,
            "val_accuracy_per_head": list(self.accuracy_per_head),
            "val_loss": self.loss,
        }

    def lines(self) -> list[str]:
        """Return the outcome in words."""
        heads = "  ".join(f"{100 * accuracy:.2f}" for accuracy in self.accuracy_per_head)
        return [
            f"validation accuracy {100 * self.accuracy:.2f} %   (per head, main last: {heads})",
            f"validation loss {self.loss:.4f}",
        ]


@torch.no_grad()
def validate(
    model: DeeplySupervised,
    images: DataSet,
    resolved: Resolved,
    batch_size: int,
    between_batches: Callable[[], None] = lambda: None,
) -> Validation:
    """Return loss and per-head accuracy over the test split, with the model in eval mode.

    batch_size: of training. On a CPU no more images are taken at a time: what its steps have freed
    is kept, and then serves here too. `between_batches` may raise to end it early.
    """
    device = resolved.device
    at_once = min(_BATCH_SIZE, batch_size) if device.type == "cpu" else _BATCH_SIZE
    was_training = model.training
    model.eval()
    loss = torch.zeros((), device=device)
    correct: Any = 0
    total = 0
    for pixels, labels in images.test_chunks(at_once):
        between_batches()
        batch, labels = normalised(
            pixels, labels, images, device, resolved.compute_dtype, impl=resolved.impl
        )
        total += len(labels)
        with autocast(resolved):
            losses = model.loss(batch, labels, 0.0, impl=resolved.impl)
        loss += losses.per_head[-1].float() * len(labels)
        correct = correct + losses.correct.long()
    model.train(was_training)
    return Validation((loss / total).item(), tuple((correct / total).tolist()))
