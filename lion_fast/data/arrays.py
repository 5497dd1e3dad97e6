"""What the readers of data sets share: the arrays they return, already checked, and a helper."""

from typing import NamedTuple

import numpy as np


class LabelledArrays(NamedTuple):
    """A labelled set of equally sized RGB images, at least one in each split."""

    train_images: np.ndarray
    """(N, H, W, 3) uint8, C-contiguous"""
    train_labels: np.ndarray
    """(N,) int64, 0 <= label < K"""
    test_images: np.ndarray
    """(M, H, W, 3) uint8, C-contiguous"""
    test_labels: np.ndarray
    """(M,) int64, 0 <= label < K"""
    class_names: tuple[str, ...]
    """K names"""
    num_skipped: int = 0
    """Unreadable images left out."""


def reason(error: BaseException) -> str:
    """Return what a library's exception says, on one line, to be quoted in a UserError."""
    return " ".join(str(error).split()) or type(error).__name__
