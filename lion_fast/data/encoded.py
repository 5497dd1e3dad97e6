"""Image folders that stay on disk, encoded: for sets that do not fit in memory."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lion_fast.data.dataset import check_size, check_trainable, description, facts_of
from lion_fast.data.decode import decode_files, flaw
from lion_fast.data.facts import DataFacts
from lion_fast.data.folder import (
    FolderListing,
    SplitListing,
    folder_image_size,
    list_image_folder,
    list_test_split,
)
from lion_fast.data.images import channel_statistics
from lion_fast.data.memory import check_memory
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
    fingerprints: tuple[str, str]
    """Of the files of both splits."""
    num_skipped: int = 0
    """Unreadable test images left out; those of training are met, and counted, by the loader."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names; a label is an index into them."""
        return self.listing.class_names

    @property
    def left_out(self) -> Mapping[str, int]:
        """Other files that were not taken, counted by why."""
        return self.listing.left_out

    def facts(self) -> DataFacts:
        """Return what a run remembers of this set."""
        return facts_of(self, *self.fingerprints)

    def describe(self) -> str:
        """Return in one line what the set holds, and what was left out of it."""
        return description(self)

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
        """Number of test images M."""
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

    Raise UserError as `list_image_folder` does, when no classifier can be trained on it, and on an
    unreadable test image, which would else be met when the training is over; with `skip_corrupt`
    such images are left out and counted.
    """
    listing = list_image_folder(path)
    size = folder_image_size(listing, image_size, skip_corrupt)
    check_size(str(path), size, "use --image-size")
    check_memory(str(path), _CHUNK, size)
    num_images = len(listing.train.paths)
    sample = np.linspace(0, num_images - 1, min(num_images, STATISTICS_IMAGES)).astype(int)
    chunks = _decoded(listing.train, sample.tolist(), size, skip_corrupt, _CHUNK)
    mean, std = channel_statistics(images for images, _ in chunks)
    check_trainable(
        str(path), size, listing.class_names, torch.from_numpy(listing.train.labels), std
    )
    test = _readable(listing.test, skip_corrupt)
    return EncodedSet(
        path.resolve().name,
        listing._replace(test=test),
        size,
        mean,
        std,
        skip_corrupt,
        listing.fingerprints(),
        num_skipped=len(listing.test.paths) - len(test.paths),
    )


def open_encoded_test(path: Path, facts: DataFacts, skip_corrupt: bool, some: bool) -> EncodedSet:
    """Open the test split of the image folder `path` alone; the rest is known from `facts`.

    some: of the folder's classes, those of `facts` are wanted. Raise UserError as `open_encoded`
    does, and on a class that `facts` do not name.
    """
    listing = list_test_split(path, facts.class_names, some)
    test = _readable(listing.test, skip_corrupt)
    return EncodedSet(
        path.resolve().name,
        listing._replace(test=test),
        facts.image_size,
        facts.mean,
        facts.std,
        skip_corrupt,
        listing.fingerprints(),
        num_skipped=len(listing.test.paths) - len(test.paths),
    )


def _readable(split: SplitListing, skip_corrupt: bool) -> SplitListing:
    """Return the files that can be decoded; raise UserError at another unless they are skipped."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        flaws = list(pool.map(flaw, split.paths))
    if not skip_corrupt:
        for found in flaws:
            if found:
                raise found
    kept = [row for row, found in enumerate(flaws) if not found]
    if not kept:
        raise UserError(f"{split.paths[0].parents[1]} holds no readable image: replace them")
    return SplitListing(tuple(split.paths[row] for row in kept), split.labels[kept])


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
            yield torch.from_numpy(np.stack(images)), torch.from_numpy(split.labels[kept[-most:]])
            images = []
    if images:
        labels = torch.from_numpy(split.labels[kept[-len(images) :]])
        yield torch.from_numpy(np.stack(images)), labels
    if not kept:
        raise UserError(f"none of {paths[0]} and {len(paths) - 1} more can be decoded")
