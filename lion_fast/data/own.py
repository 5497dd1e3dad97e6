"""The caller's own data: tensors, and map-style data sets of images."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lion_fast.data.arrays import LabelledArrays, assemble
from lion_fast.errors import UserError


class MapStyle(Protocol):
    """A map-style data set, like torchvision's: item i is an image and its label."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> Any:
        """Return (image, label)."""


def arrays_of_tensors(
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    class_names: Sequence[str] | None = None,
) -> LabelledArrays:
    """Return checked arrays of uint8 images, (N, H, W, C) or (N, C, H, W), and integer labels (N,).

    C is 1 or 3. Raise UserError on anything else.
    """
    return assemble(
        _channels_last(train_images),
        _array(train_labels),
        _channels_last(test_images),
        _array(test_labels),
        tuple(class_names) if class_names is not None else None,
        ("train_images", "train_labels", "test_images", "test_labels"),
    )


def _array(values: Tensor) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().numpy()


def _channels_last(images: Tensor) -> np.ndarray:
    array = _array(images)
    # The networks need 8 pixels, so one or three of them are channels.
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        return array.transpose(0, 2, 3, 1)
    return array


def arrays_of_datasets(
    train: MapStyle, test: MapStyle, class_names: Sequence[str] | None = None
) -> LabelledArrays:
    """Return every image and label of two map-style data sets, read once, as arrays.

    An item is an image and its label; an image is a PIL image, or uint8, (H, W, C) or (C, H, W).
    Without class names those of `train.classes` are taken, where it has any. Raise UserError on
    floating-point images and on images of several sizes.
    """
    if class_names is None:
        class_names = getattr(train, "classes", None)
    train_images, train_labels = _read(train, "train")
    test_images, test_labels = _read(test, "test")
    names = tuple(class_names) if class_names is not None else None
    called = ("images of train", "labels of train", "images of test", "labels of test")
    return assemble(train_images, train_labels, test_images, test_labels, names, called)


def _read(data: MapStyle, where: str) -> tuple[np.ndarray, np.ndarray]:
    if len(data) == 0:
        raise UserError(f"{where} is empty: it must hold at least one image")
    images: np.ndarray | None = None
    labels = np.empty(len(data), np.int64)
    for index in range(len(data)):
        image, label = data[index]
        pixels = _pixels(image, f"{where}[{index}]")
        if images is None:
            images = np.empty((len(data), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise UserError(
                f"{where}[{index}] is {_size(pixels)} and {where}[0] {_size(images[0])}: bring all"
                " images to one size in the data set's transform"
            )
        images[index] = pixels
        labels[index] = int(label)
    assert images is not None
    return images, labels


def _pixels(image: Any, where: str) -> np.ndarray:
    """Return (H, W, 3) uint8."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    array = _channels_last(torch.as_tensor(image)[None])[0]
    if array.dtype != np.uint8:
        raise UserError(
            f"{where} is {array.dtype}: give PIL or uint8 images, without ToTensor or Normalize in"
            " the data set's transform (lion-fast normalises by itself)"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise UserError(f"{where} has shape {array.shape}: it must be an image of 1 or 3 channels")
    return np.broadcast_to(array, (*array.shape[:2], 3))


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[0]}x{pixels.shape[1]}"
