"""Image folders that stay on disk, encoded: for sets that do not fit in memory."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lion_fast.config import TrainConfig
from lion_fast.data.folder import (
    FolderListing,
    SplitListing,
    decode_image,
    folder_image_size,
    list_image_folder,
)
from lion_fast.data.images import (
    BUILT_IN,
    MIN_IMAGE_SIZE,
    ImageSet,
    channel_statistics,
    load_image_set,
)
from lion_fast.errors import UserError

STATISTICS_IMAGES = 2048
"""Training images, evenly spaced in the listing, that mean and standard deviation are taken of."""


@dataclass(frozen=True)
class EncodedSet:
    """An image folder whose files are decoded each time they are needed; see `ImageSet`."""

    name: str
    listing: FolderListing
    image_size: tuple[int, int]
    """Height and width in pixels that every image is brought to."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of a sample of the training images, so not quite those of the same folder in memory."""
    skip_corrupt: bool
    num_skipped: int = 0
    """Unreadable images are met, and counted, by the loader."""

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.listing.class_names)

    @property
    def num_train(self) -> int:
        """Number of training images N, unreadable ones included."""
        return len(self.listing.train.paths)

    def train_rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Decode the training images `indices`; `skip_corrupt` leaves out unreadable ones."""
        return _decode(self.listing.train, indices.tolist(), self.image_size, self.skip_corrupt)

    def test_chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the test split, at most `size` images at a time, as `train_rows` does."""
        split = self.listing.test
        for start in range(0, len(split.paths), size):
            rows = range(start, min(start + size, len(split.paths)))
            yield _decode(split, rows, self.image_size, self.skip_corrupt)


def open_data(config: TrainConfig, loader: str) -> ImageSet | EncodedSet:
    """Return the set of `config`: a folder stays on disk for the loader dali, all else is loaded.

    Raises UserError as `load_image_set` and `list_image_folder` do.
    """
    path = Path(config.dataset).expanduser()
    if loader != "dali" or config.dataset in BUILT_IN or not path.is_dir():
        return load_image_set(config)
    if config.num_classes is not None or config.train_fraction < 1:
        raise UserError(
            f"num_classes and train_fraction choose among images in memory, and {path} stays on"
            " disk with loader dali: take --loader resident"
        )
    listing = list_image_folder(path)
    if len(listing.class_names) < 2:
        raise UserError(
            f"{path}: the only class is {listing.class_names[0]!r}: a classifier needs two"
        )
    image_size = folder_image_size(listing, config.image_size, config.skip_corrupt)
    if min(image_size) < MIN_IMAGE_SIZE:
        raise UserError(
            f"{path}: images are {image_size[0]}x{image_size[1]} pixels, but the networks need"
            f" {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE}: use --image-size"
        )
    num_images = len(listing.train.paths)
    sample = np.linspace(0, num_images - 1, min(num_images, STATISTICS_IMAGES)).astype(int)
    images, _ = _decode(listing.train, sample.tolist(), image_size, config.skip_corrupt)
    mean, std = channel_statistics(images)
    if min(std) == 0:
        raise UserError(
            f"{path}: channel {std.index(0)} has the same value in every image looked at, so it"
            " cannot be normalised: store the images as grey"
        )
    return EncodedSet(path.resolve().name, listing, image_size, mean, std, config.skip_corrupt)


def _decode(
    split: SplitListing, rows: Sequence[int], image_size: tuple[int, int], skip_corrupt: bool
) -> tuple[Tensor, Tensor]:
    def decode(row: int) -> np.ndarray | None:
        try:
            return decode_image(split.paths[row], image_size)
        except UserError:
            if not skip_corrupt:
                raise
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(pool.map(decode, rows))
    kept = [(row, image) for row, image in zip(rows, images, strict=True) if image is not None]
    if not kept:
        raise UserError(f"none of {split.paths[rows[0]]} and {len(rows) - 1} more can be decoded")
    labels = split.labels[[row for row, _ in kept]]
    return torch.from_numpy(np.stack([image for _, image in kept])), labels
