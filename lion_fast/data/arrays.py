"""What the readers of data sets share: the arrays they return, already checked, and a helper."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lion_fast.errors import UserError


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
    left_out: Mapping[str, int] = {}
    """Other files that were not taken, counted by why."""
    fingerprints: tuple[str, str] | None = None
    """Of both splits, as they are read: classes and images left out of them later do not count."""


def reason(error: BaseException) -> str:
    """Return what a library's exception says, on one line, to be quoted in a UserError."""
    return " ".join(str(error).split()) or type(error).__name__


def as_rgb(images: np.ndarray, where: str) -> np.ndarray:
    """Return (N, H, W, 3) uint8, without a copy where the array is that already.

    Grey images, (N, H, W) or (N, H, W, 1), are repeated to three channels. Raise UserError,
    beginning with `where`, on anything else.
    """
    if images.dtype != np.uint8:
        raise UserError(
            f"{where} is {images.dtype}: store pixels as uint8 from 0 to 255 "
            "(pixels from 0 to 1: (255 * x).round().astype('uint8'))"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        hint = ""
        if images.ndim == 4 and images.shape[1] in (1, 3):
            hint = " (channels stand first here: x.transpose(0, 2, 3, 1))"
        raise UserError(
            f"{where} has shape {images.shape}: it must be (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
            + hint
        )
    if not images.size:
        raise UserError(f"{where} has shape {images.shape}, no pixels: store at least one image")
    if images.shape[3] == 1:
        images = images.repeat(3, axis=3)
    return np.ascontiguousarray(images)


def as_labels(labels: np.ndarray, num_images: int, where: str) -> np.ndarray:
    """Return (N,) int64, not negative, of integers (N,) or (N, 1); raise UserError otherwise."""
    if labels.dtype.kind not in "iu":
        hint = " (one-hot labels: y.argmax(1))" if labels.ndim == 2 and labels.shape[1] > 1 else ""
        raise UserError(f"{where} is {labels.dtype}: labels must be integers, 0 to K - 1{hint}")
    if labels.shape not in ((num_images,), (num_images, 1)):
        raise UserError(
            f"{where} has shape {labels.shape} for {num_images} images: it must be ({num_images},) "
            f"or ({num_images}, 1), one class number an image (one-hot labels: y.argmax(1))"
        )
    if labels.min() < 0:
        raise UserError(f"{where} holds the label {labels.min()}: number the classes from 0")
    return labels.reshape(-1).astype(np.int64)


def assemble(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    class_names: tuple[str, ...] | None,
    called: Sequence[str],
) -> LabelledArrays:
    """Check images and labels of both splits against each other; classes without names get numbers.

    called: what messages call the four arrays. Raise UserError as `as_rgb` and `as_labels` do, and
    on images of two sizes and labels out of range.
    """
    train_images, test_images = as_rgb(x_train, called[0]), as_rgb(x_test, called[2])
    if train_images.shape[1:] != test_images.shape[1:]:
        raise UserError(
            f"{called[2]}: images are {_size(test_images)} here, but {_size(train_images)} for"
            " training: bring both to one size"
        )
    train_labels = as_labels(y_train, len(x_train), called[1])
    test_labels = as_labels(y_test, len(x_test), called[3])
    if class_names is None:
        # Each class needs a training image, so a label beyond their number is a mistake.
        num_classes = min(int(train_labels.max()) + 1, len(train_labels))
        class_names = tuple(map(str, range(num_classes)))
    check_labels(train_labels, class_names, called[1])
    check_labels(test_labels, class_names, called[3])
    return LabelledArrays(train_images, train_labels, test_images, test_labels, class_names)


def check_labels(labels: np.ndarray, class_names: tuple[str, ...], where: str) -> None:
    """Raise UserError if a label is beyond the classes."""
    if labels.max() >= len(class_names):
        raise UserError(
            f"{where} holds the label {labels.max()}, out of range for "
            f"{len(class_names)} classes: number them 0 to {len(class_names) - 1}"
        )


def _size(images: np.ndarray) -> str:
    return f"{images.shape[1]}x{images.shape[2]}"
