"""The caller's own data: tensors, and map-style data sets of images."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from lion_fast.data.arrays import LabelledArrays, assemble, reason
from lion_fast.data.decode import image_pixels
from lion_fast.data.memory import check_memory
from lion_fast.errors import UserError

# What an item that is a dictionary calls its image and its label, as Hugging Face's sets do.
_IMAGE_KEYS = ("image", "img", "pixel_values")
_LABEL_KEYS = ("label", "labels", "fine_label")


class MapStyle(Protocol):
    """A map-style data set, like torchvision's: item i is an image and its label."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> Any:
        """Return (image, label), perhaps with more behind it, or both by name."""


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
    called = ("train_images", "train_labels", "test_images", "test_labels")
    values = (train_images, train_labels, test_images, test_labels)
    x_train, y_train, x_test, y_test = map(_array, values, called)
    names = _checked_names(class_names, "class_names")
    return assemble(_channels_last(x_train), y_train, _channels_last(x_test), y_test, names, called)


def _array(values: Tensor, called: str) -> np.ndarray:
    try:
        return torch.as_tensor(values).detach().cpu().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        found = str(getattr(values, "dtype", type(values).__name__)).removeprefix("torch.")
        raise UserError(
            f"{called} is {found}, no array of numbers ({reason(error)}): give tensors, images as"
            " uint8 and labels as integers"
        ) from None


def _channels_last(array: np.ndarray) -> np.ndarray:
    # The networks need 8 pixels, so one or three of them are channels.
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        return array.transpose(0, 2, 3, 1)
    return array


def arrays_of_datasets(
    train: MapStyle, test: MapStyle, class_names: Sequence[str] | None = None
) -> LabelledArrays:
    """Return every image and label of two map-style data sets, read once, as arrays.

    An item is a tuple or list of an image and its label, with more behind them or not, or a
    dictionary with both; an image is what `image_pixels` takes, a label an integer or what equals
    one. Without `class_names` those that `train` has are taken. Where both sets name their classes,
    a label of `test` is that of the same name in `train`, whatever its number. Raise UserError,
    with the index, on anything else, on images of several sizes and on a class that `train` lacks.
    """
    trained, tested = _names_of(train, "train"), _names_of(test, "test")
    given = _checked_names(class_names, "class_names")
    train_images, train_labels = _read(train, "train")
    test_images, test_labels = _read(test, "test")
    known = trained if trained is not None else given
    if known is not None and tested is not None and tested != known:
        test_labels = _renumbered(test_labels, tested, known)
    called = ("images of train", "labels of train", "images of test", "labels of test")
    names = given if given is not None else trained
    return assemble(train_images, train_labels, test_images, test_labels, names, called)


def _names_of(data: Any, where: str) -> tuple[str, ...] | None:
    """Return what a data set calls its classes, in the order of their numbers; None if nothing."""
    if isinstance(data, Subset):
        return _names_of(data.dataset, where)
    if isinstance(data, ConcatDataset):
        first, *others = {_names_of(part, where) for part in data.datasets}
        if others:
            raise UserError(
                f"{where} joins sets that number different classes"
                f" ({' / '.join(sorted(map(str, (first, *others))))}): bring their labels together"
                " first"
            )
        return first
    names = getattr(data, "classes", None)
    features = getattr(data, "features", None)
    if names is None and isinstance(features, Mapping):
        key = next((key for key in _LABEL_KEYS if key in features), None)
        names = None if key is None else getattr(features[key], "names", None)
    is_ordered = hasattr(names, "__len__") and hasattr(names, "__getitem__")
    if names is None or not is_ordered or isinstance(names, str | Mapping):
        return None
    return _checked_names(list(names), f"{where}.classes")


def _checked_names(names: Sequence[Any] | None, called: str) -> tuple[str, ...] | None:
    """Return class names as strings; raise UserError where two are one."""
    if names is None:
        return None
    # ImageNet's are tuples of synonyms.
    told = tuple(", ".join(map(str, n)) if isinstance(n, tuple) else str(n) for n in names)
    spelled = [normalize("NFC", name) for name in told]
    for name in spelled:
        if spelled.count(name) > 1:
            raise UserError(f"{called} holds {name!r} twice: give each class its own name")
    return told


def _renumbered(labels: np.ndarray, names: tuple[str, ...], trained: tuple[str, ...]) -> np.ndarray:
    """Return labels into `names` as labels into `trained`; raise UserError without such a class."""
    number = {normalize("NFC", name): label for label, name in enumerate(trained)}
    if unknown := [name for name in names if normalize("NFC", name) not in number]:
        raise UserError(
            f"test has classes that train lacks: {', '.join(unknown)}; train has"
            f" {', '.join(trained)}: bring both to the same classes"
        )
    if labels.max() >= len(names):
        index = int(labels.argmax())
        raise UserError(
            f"test[{index}] has the label {labels[index]}, and test.classes names {len(names)}"
            f" classes: number them 0 to {len(names) - 1}"
        )
    return np.array([number[normalize("NFC", name)] for name in names])[labels]


def _read(data: MapStyle, where: str) -> tuple[np.ndarray, np.ndarray]:
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise UserError(
            f"{where} is a {type(data).__name__}: it must be map-style, with a length and items"
        )
    if len(data) == 0:
        raise UserError(f"{where} is empty: it must hold at least one image")
    images: np.ndarray | None = None
    labels = np.empty(len(data), np.int64)
    for index in range(len(data)):
        image, label = _image_and_label(data[index], f"{where}[{index}]")
        pixels = image_pixels(image, where=f"{where}[{index}]")
        if images is None:
            check_memory(
                where, len(data), pixels.shape[:2], "keep fewer of them, or make them smaller"
            )
            images = np.empty((len(data), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise UserError(
                f"{where}[{index}] is {_size(pixels)} and {where}[0] {_size(images[0])}: bring all"
                " images to one size in the data set's transform"
            )
        images[index] = pixels
        labels[index] = _class_number(label, f"{where}[{index}]")
    assert images is not None
    return images, labels


def _image_and_label(item: Any, where: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        found = [
            [key for key in keys if item.get(key) is not None]
            for keys in (_IMAGE_KEYS, _LABEL_KEYS)
        ]
        if [len(keys) for keys in found] == [1, 1]:
            return item[found[0][0]], item[found[1][0]]
        told = f"has the keys {', '.join(map(str, item))}"
    elif isinstance(item, tuple | list):
        if len(item) >= 2:
            return item[0], item[1]
        told = f"has {len(item)} parts"
    else:
        told = f"is a {type(item).__name__}"
    raise UserError(
        f"{where} {told}: give an image and its label, (image, label) or a dictionary of 'image'"
        " and 'label'"
    )


def _class_number(label: Any, where: str) -> int:
    """Return what is exactly an integer of at least 0 as one; raise UserError otherwise."""
    value = label
    if hasattr(label, "detach"):
        value = label.detach().cpu()
    if getattr(value, "ndim", 0) and getattr(value, "shape", None) in ((1,), (1, 1)):
        value = value.reshape(())
    hint = ""
    if isinstance(value, str | bytes):
        hint = " (names: their position in a list of the classes)"
    elif getattr(value, "ndim", 0) or isinstance(value, Sequence):
        hint = " (one-hot labels: label.argmax())"
    else:
        try:
            number = int(value)
            if number == value and 0 <= number < 2**31:
                return number
        except (TypeError, ValueError, OverflowError, RuntimeError):  # None, NaN, infinity
            pass
    told = " ".join(repr(value).split())
    raise UserError(
        f"{where} has the label {told[:60]}: a label is the number of its class, 0 to K - 1{hint}"
    )


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[0]}x{pixels.shape[1]}"
