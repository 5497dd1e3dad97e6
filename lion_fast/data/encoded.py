"""Image folders that stay on disk, encoded: for sets that do not fit in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lion_fast.data.dataset import check_size, check_trainable
from lion_fast.data.decode import decode_files
from lion_fast.data.folder import (
    FolderListing,
    SplitListing,
    folder_image_size,
    list_image_folder,
)
from lion_fast.data.images import channel_statistics
from lion_fast.errors import UserError

STATISTICS_IMAGES = 2048
"""Training images, evenly spaced in the listing, that mean and standard deviation are taken of."""
_CHUNK = 64


@dataclass(frozen=True)
class EncodedSet:
    """An image folder whose files are decoded each time they are needed; a `DataSet`."""

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
    def class_names(self) -> tuple[str, ...]:
        """K names; a label is an index into them."""
        return self.listing.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def num_train(self) -> int:
        """Number of training images N, unreadable ones included."""
        return len(self.listing.train.paths)

    @property
    def num_test(self) -> int:
        """Number of test images M, unreadable ones included."""
        return len(self.listing.test.paths)

    def train_rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Decode the training images `indices`; `skip_corrupt` leaves out unreadable ones."""
        (rows,) = _decoded(
            self.listing.train, indices.tolist(), self.image_size, self.skip_corrupt, len(indices)
        )
        return rows

    def test_chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the test split, at most `size` images at a time, as `train_rows` does."""
        split = self.listing.test
        rows = range(len(split.paths))
        yield from _decoded(split, rows, self.image_size, self.skip_corrupt, size)


def open_encoded(
    path: Path, image_size: int | None = None, skip_corrupt: bool = False
) -> EncodedSet:
    """Open the image folder `path`; its files stay on disk.

    Raise UserError as `list_image_folder` does, and when no classifier can be trained on it.
    """
    listing = list_image_folder(path)
    size = folder_image_size(listing, image_size, skip_corrupt)
    check_size(str(path), size, "use --image-size")
    num_images = len(listing.train.paths)
    sample = np.linspace(0, num_images - 1, min(num_images, STATISTICS_IMAGES)).astype(int)
    chunks = _decoded(listing.train, sample.tolist(), size, skip_corrupt, _CHUNK)
    mean, std = channel_statistics(images for images, _ in chunks)
    check_trainable(str(path), size, listing.class_names, listing.train.labels, std)
    return EncodedSet(path.resolve().name, listing, size, mean, std, skip_corrupt)


def _decoded(
    split: SplitListing,
    rows: Sequence[int],
    size: tuple[int, int],
    skip_corrupt: bool,
    most: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels of `rows`, `most` at a time; raise UserError if none is readable."""
    paths = [split.paths[row] for row in rows]
    images: list[np.ndarray] = []
    kept: list[int] = []
    for position, image in decode_files(paths, size, skip_corrupt):
        images.append(image)
        kept.append(rows[position])
        if len(images) == most:
            yield torch.from_numpy(np.stack(images)), split.labels[kept[-most:]]
            images = []
    if images:
        yield torch.from_numpy(np.stack(images)), split.labels[kept[-len(images) :]]
    if not kept:
        raise UserError(f"none of {paths[0]} and {len(paths) - 1} more can be decoded")
