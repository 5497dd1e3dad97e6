"""What dense_supervision_loss is told besides its tensors, and how labels become a level's."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLINGS = ("nearest-exact", "nearest")


class Options(NamedTuple):
    """See `dense_supervision_loss`."""

    ignore_index: int
    dice: float
    batch_dice: bool
    background: bool
    smooth: float
    sampling: str

    @property
    def first_class(self) -> int:
        """The first class of Dice, and of those whose hits are counted."""
        return 0 if self.background else 1


def labels_of_level(target: Tensor, size: torch.Size, sampling: str) -> Tensor:
    """Return the labels (B, *size), in their own type, of a target at full resolution.

    Those of `F.interpolate(target, size, mode=sampling)`.
    """
    for axis, (full, wanted) in enumerate(zip(target.shape[1:], size, strict=True), start=1):
        if full != wanted:
            places = torch.arange(full, dtype=torch.float32, device=target.device)
            chosen = F.interpolate(places[None, None], (wanted,), mode=sampling)[0, 0]
            target = target.index_select(axis, chosen.long())
    return target


class Labels(NamedTuple):
    """The labels of some positions, told apart."""

    classes: Tensor
    """int64; 0 where a position has none"""
    valid: Tensor
    """Whether a position is not ignored."""
    wrong: Tensor
    """Whether its label is no class, which the loss tells by being NaN."""

    @classmethod
    def of(cls, labels: Tensor, num_classes: int, ignore_index: int) -> "Labels":
        """Return what integers of any type and shape say."""
        labels = labels.long()
        valid = labels != ignore_index
        wrong = valid & ((labels < 0) | (labels >= num_classes))
        return cls(torch.where(valid & ~wrong, labels, 0), valid, wrong)

    def counted(self, options: Options) -> Tensor:
        """Whether a hit at a position counts."""
        return self.valid & (self.classes >= options.first_class)
