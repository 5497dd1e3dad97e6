"""From disk, download or embedded data to an ImageSet in memory."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lion_fast.config import TrainConfig
from lion_fast.data.arrays import LabelledArrays
from lion_fast.data.cifar import read_cifar
from lion_fast.data.folder import read_image_folder
from lion_fast.data.npz import read_npz
from lion_fast.data.subset import take_subset
from lion_fast.errors import UserError

DEFAULT_DATA_DIR = Path("~/.cache/lion-fast")
BUILT_IN = ("digits", "cifar10", "cifar100")
MIN_IMAGE_SIZE = 8


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

    def train_rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the training images (B, H, W, 3) `indices` and their labels (B,)."""
        return self.train_images[indices], self.train_labels[indices]

    def test_chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels of the test split, at most `size` images at a time."""
        yield from zip(self.test_images.split(size), self.test_labels.split(size), strict=True)


def load_image_set(config: TrainConfig) -> ImageSet:
    """Load the set that `config.dataset` names, whole, into memory.

    A built-in name wins over a file or folder of that name. Raise UserError when there is no such
    set, when it cannot be read (see `read_cifar`, `read_npz`, `read_image_folder`), and when no
    classifier can be trained on it: fewer than two classes, a class without training images, images
    below 8x8 pixels, a constant channel.
    """
    dataset, path = config.dataset, Path(config.dataset).expanduser()
    is_folder = dataset not in BUILT_IN and path.is_dir()
    is_npz = path.is_file() and path.suffix == ".npz"
    if not (dataset in BUILT_IN or is_folder or is_npz):
        raise UserError(_unknown(dataset, path))
    if config.image_size is not None and not is_folder:
        raise UserError(
            f"image_size is {config.image_size}, but only images of a folder are resized, "
            f"not those of {dataset}: leave it out"
        )
    if dataset == "digits":
        arrays = read_digits()
    elif dataset in BUILT_IN:
        arrays = read_cifar(dataset, (config.data_dir or DEFAULT_DATA_DIR).expanduser())
    elif is_folder:
        arrays = read_image_folder(path, config.image_size, config.skip_corrupt)
    else:
        arrays = read_npz(path)
    arrays = take_subset(arrays, dataset, config.num_classes, config.train_fraction)
    _check_trainable(arrays, dataset)
    train_images = torch.from_numpy(arrays.train_images)
    mean, std = channel_statistics(train_images)
    if min(std) == 0:
        raise UserError(
            f"{dataset}: channel {std.index(0)} has the same value in every training image, so it "
            "cannot be normalised: store the images as grey"
        )
    return ImageSet(
        name=path.stem if path.suffix == ".npz" else path.resolve().name,
        train_images=train_images,
        train_labels=torch.from_numpy(arrays.train_labels),
        test_images=torch.from_numpy(arrays.test_images),
        test_labels=torch.from_numpy(arrays.test_labels),
        class_names=arrays.class_names,
        mean=mean,
        std=std,
        num_skipped=arrays.num_skipped,
    )


def _unknown(dataset: str, path: Path) -> str:
    accepted = f"take {', '.join(BUILT_IN)}, a path to an .npz, or a folder with train/ and test/"
    if path.exists():
        return f"dataset {dataset} is neither a folder nor an .npz file: {accepted}"
    close = difflib.get_close_matches(dataset, BUILT_IN, n=1)
    hint = f"did you mean {close[0]}? Otherwise " if close else ""
    return (
        f"dataset {dataset!r} is no known name, and no such file or folder exists: {hint}{accepted}"
    )


def read_digits() -> LabelledArrays:
    """Return the 1,797 handwritten digits that scikit-learn ships, as 16x16 RGB.

    Their 17 grey levels are scaled to 0..255 and each pixel doubled in both directions. They stand
    in the order of their writers, so the last 360, the test split, are by other hands than most of
    the rest.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = levels.repeat(2, axis=1).repeat(2, axis=2)[..., None].repeat(3, axis=3)
    labels = digits.target.astype(np.int64)
    names = tuple(map(str, digits.target_names))
    return LabelledArrays(images[:-360], labels[:-360], images[-360:], labels[-360:], names)


def _check_trainable(arrays: LabelledArrays, dataset: str) -> None:
    height, width = arrays.train_images.shape[1:3]
    if min(height, width) < MIN_IMAGE_SIZE:
        raise UserError(
            f"{dataset}: images are {height}x{width} pixels, but the networks need "
            f"{MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE}: enlarge them"
        )
    if len(arrays.class_names) < 2:
        raise UserError(
            f"{dataset}: the only class is {arrays.class_names[0]!r}: a classifier needs two"
        )
    counts = np.bincount(arrays.train_labels, minlength=len(arrays.class_names))
    if not counts.all():
        label = int(counts.argmin())
        raise UserError(
            f"{dataset}: class {label} ({arrays.class_names[label]}) has no training image: "
            "add some, or number the classes from 0 without gaps"
        )


def channel_statistics(
    images: Tensor,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and population standard deviation of each channel of (N, H, W, 3) uint8 images.

    Units are full scale, 0 to 1. The sums are exact: integers below 2**53 in float64.
    """
    num_values = images[0].numel()
    total = torch.zeros(num_values, dtype=torch.float64)
    total_of_squares = torch.zeros(num_values, dtype=torch.float64)
    # Half a MiB of float64 at a time stays in a core's cache.
    for chunk in images.split(max(1, 2**16 // num_values)):
        values = chunk.flatten(1).double()
        total += values.sum(0)
        total_of_squares += values.square_().sum(0)
    num_pixels = images.numel() // 3
    mean = total.view(-1, 3).sum(0) / num_pixels
    variance = total_of_squares.view(-1, 3).sum(0) / num_pixels - mean.square()
    std = variance.clamp(min=0).sqrt()
    red, green, blue = (mean / 255).tolist()
    red_std, green_std, blue_std = (std / 255).tolist()
    return (red, green, blue), (red_std, green_std, blue_std)
