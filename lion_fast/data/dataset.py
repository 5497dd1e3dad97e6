"""What every set of images offers, decoded in memory or encoded on disk, and what it must be."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from torch import Tensor

from lion_fast.data.facts import DataFacts
from lion_fast.errors import UserError

MIN_IMAGE_SIZE = 8
"""Pixels that the networks need in each direction."""


class DataSet(Protocol):
    """RGB images of one size, split for training and testing, with a label or a mask each."""

    @property
    def name(self) -> str:
        """What the set is called: its built-in name, or that of its file or folder."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names; a label is an index into them."""

    @property
    def num_classes(self) -> int:
        """Number of classes K."""

    @property
    def has_masks(self) -> bool:
        """Whether every pixel is labelled, not every image."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Per-channel mean of the training images, in units of full scale (0 to 1)."""

    @property
    def std(self) -> tuple[float, float, float]:
        """Per-channel standard deviation of the training images' pixels, in the same units."""

    @property
    def num_train(self) -> int:
        """Number of training images N."""

    @property
    def num_test(self) -> int:
        """Number of test images M."""

    @property
    def num_skipped(self) -> int:
        """Unreadable images left out."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """Other files that were not taken, counted by why."""

    def class_counts(self) -> Tensor:
        """Return how many training images, or pixels of masks, are of each class: (K,) int64."""

    def facts(self) -> DataFacts:
        """Return what a run remembers of this set."""

    def describe(self) -> str:
        """Return in one line what the set holds, and what was left out of it."""

    def train_rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the training images (B, H, W, 3) uint8 `indices` and their labels.

        These are (B,) int64, or masks (B, H, W) uint8.
        """

    def test_chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels of the test split, at most `size` images at a time."""


def description(images: DataSet) -> str:
    """Return counts, image size and what was left out, in one line."""
    height, width = images.image_size
    words = [
        f"{images.num_train:,} training images",
        f"{images.num_test:,} test images",
        f"{images.num_classes:,} classes{' of pixels' if images.has_masks else ''}",
        f"{height}x{width}",
    ]
    skipped = {why: number for why, number in images.left_out.items() if number}
    if images.num_skipped:
        skipped["unreadable"] = images.num_skipped
    if skipped:
        reasons = ", ".join(f"{number:,} {why}" for why, number in skipped.items())
        words.append(f"{sum(skipped.values()):,} skipped ({reasons})")
    return ", ".join(words)


def facts_of(images: DataSet, train_fingerprint: str, test_fingerprint: str) -> DataFacts:
    """Return the facts of a set whose splits have these digests."""
    return DataFacts(
        class_names=images.class_names,
        mean=images.mean,
        std=images.std,
        image_size=images.image_size,
        num_train=images.num_train,
        num_test=images.num_test,
        train_fingerprint=train_fingerprint,
        test_fingerprint=test_fingerprint,
    )


def check_trainable(
    where: str,
    image_size: tuple[int, int],
    class_names: tuple[str, ...],
    train_labels: Tensor,
    std: tuple[float, float, float],
    enlarge: str = "enlarge them",
) -> None:
    """Raise UserError if no classifier can be trained: too small, too few classes, a flat channel.

    where: what the message begins with. train_labels: (N,) int64. enlarge: the remedy for images
    that are too small.
    """
    check_size(where, image_size, enlarge)
    if len(class_names) < 2:
        raise UserError(f"{where}: the only class is {class_names[0]!r}: a classifier needs two")
    counts = np.bincount(train_labels.numpy(), minlength=len(class_names))
    if not counts.all():
        label = int(counts.argmin())
        raise UserError(
            f"{where}: class {label} ({class_names[label]}) has no training image: "
            "add some, or number the classes from 0 without gaps"
        )
    check_varied(where, std)


def check_varied(where: str, std: tuple[float, float, float]) -> None:
    """Raise UserError if a channel is the same in every pixel, which nothing can normalise."""
    if min(std) == 0:
        raise UserError(
            f"{where}: channel {std.index(0)} has the same value in every training image, so it "
            "cannot be normalised: store the images as grey"
        )


def check_size(where: str, image_size: tuple[int, int], enlarge: str = "enlarge them") -> None:
    """Raise UserError if images are below MIN_IMAGE_SIZE in either direction."""
    height, width = image_size
    if min(height, width) < MIN_IMAGE_SIZE:
        raise UserError(
            f"{where}: images are {height}x{width} pixels, but the networks need "
            f"{MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE}: {enlarge}"
        )
