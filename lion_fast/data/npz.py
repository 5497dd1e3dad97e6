"""Data sets in one `.npz` with the keys that Keras made common: x_train y_train x_test y_test."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from lion_fast.data.arrays import LabelledArrays, reason
from lion_fast.errors import UserError

KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path, class_names: tuple[str, ...] | None = None) -> LabelledArrays:
    """Read a data set without executing pickled code; classes without given names are numbered.

    Images are uint8, (N, H, W, 3), or grey (N, H, W) or (N, H, W, 1) and repeated to three
    channels; labels are integers, (N,) or (N, 1), from 0 to K - 1, where K is the number of class
    names, or else the largest training label + 1. Raise UserError on anything else.
    """
    x_train, y_train, x_test, y_test = _read_arrays(path)
    train_images = _as_rgb(x_train, f"{path}: x_train")
    test_images = _as_rgb(x_test, f"{path}: x_test")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise UserError(
            f"{path}: images are {_size(train_images)} in x_train but {_size(test_images)} in "
            "x_test: bring both to one size"
        )
    train_labels = _as_labels(y_train, len(x_train), f"{path}: y_train")
    test_labels = _as_labels(y_test, len(x_test), f"{path}: y_test")
    if class_names is None:
        # Each class needs a training image, so a label beyond their number is a mistake.
        num_classes = min(int(train_labels.max()) + 1, len(train_labels))
        class_names = tuple(map(str, range(num_classes)))
    for key, labels in (("y_train", train_labels), ("y_test", test_labels)):
        if labels.max() >= len(class_names):
            raise UserError(
                f"{path}: {key} holds the label {labels.max()}, out of range for "
                f"{len(class_names)} classes: number them 0 to {len(class_names) - 1}"
            )
    return LabelledArrays(train_images, train_labels, test_images, test_labels, class_names)


def _read_arrays(path: Path) -> list[np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is not an .npz archive, or truncated: save {' '.join(KEYS)} with numpy.savez"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in KEYS if key not in archive]
            found = ", ".join(archive.files) or "nothing"
            arrays = [archive[key] for key in KEYS if not missing]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}): save it anew with numpy.savez"
        ) from error
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}: it must hold {' '.join(KEYS)}, and holds {found}"
        )
    for key, array in zip(KEYS, arrays, strict=True):
        if not isinstance(array, np.ndarray):
            raise UserError(f"{path}: {key} is not a numpy array: save it anew with numpy.savez")
    return arrays


def _size(images: np.ndarray) -> str:
    return f"{images.shape[1]}x{images.shape[2]}"


def _as_rgb(images: np.ndarray, where: str) -> np.ndarray:
    """Return (N, H, W, 3) uint8, without a copy where the array is that already."""
    if images.dtype != np.uint8:
        raise UserError(
            f"{where} is {images.dtype}: store pixels as uint8 from 0 to 255 "
            "(pixels from 0 to 1: (255 * x).round().astype('uint8'))"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UserError(
            f"{where} has shape {images.shape}: it must be (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        )
    if not images.size:
        raise UserError(f"{where} has shape {images.shape}, no pixels: store at least one image")
    if images.shape[3] == 1:
        images = images.repeat(3, axis=3)
    return np.ascontiguousarray(images)


def _as_labels(labels: np.ndarray, num_images: int, where: str) -> np.ndarray:
    """Return (N,) int64, not negative."""
    if labels.dtype.kind not in "iu":
        raise UserError(f"{where} is {labels.dtype}: labels must be integers, 0 to K - 1")
    if labels.shape not in ((num_images,), (num_images, 1)):
        raise UserError(
            f"{where} has shape {labels.shape} for {num_images} images: it must be ({num_images},) "
            f"or ({num_images}, 1), one class number an image (one-hot labels: y.argmax(1))"
        )
    if labels.min() < 0:
        raise UserError(f"{where} holds the label {labels.min()}: number the classes from 0")
    return labels.reshape(-1).astype(np.int64)
