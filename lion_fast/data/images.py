"""Decoded sets of images in memory, and the statistics that normalise them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from lion_fast.data.arrays import LabelledArrays
from lion_fast.data.dataset import check_trainable, description, facts_of
from lion_fast.data.facts import DataFacts
from lion_fast.data.fingerprint import pixels_fingerprint
from lion_fast.data.own import MapStyle, arrays_of_datasets, arrays_of_tensors


@dataclass(frozen=True)
class ImageSet:
    """A labelled set of equally sized RGB images, split for training and testing, on the CPU."""

    name: str
    train_images: Tensor
    """(N, H, W, 3) uint8"""
    train_labels: Tensor
    """(N,) int64, 0 <= label < num_classes"""
    test_images: Tensor
    """(M, H, W, 3) uint8"""
    test_labels: Tensor
    """(M,) int64"""
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    """Per-channel mean of the training images, in units of full scale (0 to 1)."""
    std: tuple[float, float, float]
    """Per-channel standard deviation of the training images' pixels, in the same units."""
    num_skipped: int = 0
    """Unreadable images left out."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Other files of a folder that were not taken, counted by why."""
    fingerprints: tuple[str, str] | None = None
    """Of both splits of the whole set that this one is read from; None where it is read from none.
    """
    remark: str | None = None
    """What to say of the set, where another may have been meant."""

    @classmethod
    def from_arrays(cls, name: str, arrays: LabelledArrays, where: str) -> Self:
        """Return the set of `arrays`, which it shares, with their statistics.

        Raise UserError, beginning with `where`, when no classifier can be trained on it: fewer than
        two classes, a class without training images, images below 8x8 pixels, a constant channel.
        """
        train_images = torch.from_numpy(arrays.train_images)
        mean, std = channel_statistics(train_images)
        images = cls(
            name=name,
            train_images=train_images,
            train_labels=torch.from_numpy(arrays.train_labels),
            test_images=torch.from_numpy(arrays.test_images),
            test_labels=torch.from_numpy(arrays.test_labels),
            class_names=arrays.class_names,
            mean=mean,
            std=std,
            num_skipped=arrays.num_skipped,
            left_out=arrays.left_out,
            fingerprints=arrays.fingerprints,
        )
        check_trainable(where, images.image_size, images.class_names, images.train_labels, std)
        return images

    @classmethod
    def from_tensors(
        cls,
        train_images: Tensor,
        train_labels: Tensor,
        test_images: Tensor,
        test_labels: Tensor,
        class_names: Sequence[str] | None = None,
        *,
        name: str = "tensors",
    ) -> Self:
        """Return the set of uint8 images, (N, H, W, C) or (N, C, H, W), and integer labels (N,).

        C is 1 or 3; classes without names are numbered. Raise UserError on anything else and as
        `from_arrays` does.
        """
        return cls.from_arrays(
            name,
            arrays_of_tensors(train_images, train_labels, test_images, test_labels, class_names),
            name,
        )

    @classmethod
    def from_datasets(
        cls,
        train: MapStyle,
        test: MapStyle,
        class_names: Sequence[str] | None = None,
        *,
        name: str = "datasets",
    ) -> Self:
        """Return the set of two map-style data sets of (image, label), each read once.

        An item may also be a dictionary, as Hugging Face's; an image is a PIL image, a file, or an
        array, all of one size. Classes are named by `class_names`, `train.classes` or their
        numbers, and where both sets have `classes`, test images belong to the class of that name.
        Raise UserError on anything else (see `arrays_of_datasets`) and as `from_arrays` does.
        """
        return cls.from_arrays(name, arrays_of_datasets(train, test, class_names), name)

    def facts(self) -> DataFacts:
        """Return what a run remembers of this set."""
        train, test = self.fingerprints or (
            pixels_fingerprint(self.train_images.numpy(), self.train_labels.numpy()),
            pixels_fingerprint(self.test_images.numpy(), self.test_labels.numpy()),
        )
        return facts_of(self, train, test)

    def describe(self) -> str:
        """Return in one line what the set holds, and what was left out of it."""
        return "; ".join(filter(None, [description(self), self.remark]))

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train_images.shape[1], self.train_images.shape[2]

    @property
    def num_train(self) -> int:
        """Number of training images N."""
        return len(self.train_labels)

    @property
    def num_test(self) -> int:
        """Number of test images M."""
        return len(self.test_labels)

    def train_rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the training images (B, H, W, 3) `indices` and their labels (B,)."""
        return self.train_images[indices], self.train_labels[indices]

    def test_chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels of the test split, at most `size` images at a time."""
        yield from zip(self.test_images.split(size), self.test_labels.split(size), strict=True)


def channel_statistics(
    images: Tensor | Iterable[Tensor],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and population standard deviation of each channel of (N, H, W, 3) uint8 images.

    The images may come in parts. Units are full scale, 0 to 1. The sums are exact: integers below
    2**53 in float64.
    """
    total = torch.zeros(3, dtype=torch.float64)
    total_of_squares = torch.zeros(3, dtype=torch.float64)
    num_pixels = 0
    for part in [images] if isinstance(images, Tensor) else images:
        # Half a MiB of float64 at a time stays in a core's cache.
        for chunk in part.split(max(1, 2**16 // part[0].numel())):
            values = chunk.flatten(1).double()
            total += values.sum(0).view(-1, 3).sum(0)
            total_of_squares += values.square_().sum(0).view(-1, 3).sum(0)
        num_pixels += part.numel() // 3
    mean = total / num_pixels
    std = (total_of_squares / num_pixels - mean.square()).clamp(min=0).sqrt()
    red, green, blue = (mean / 255).tolist()
    red_std, green_std, blue_std = (std / 255).tolist()
    return (red, green, blue), (red_std, green_std, blue_std)
