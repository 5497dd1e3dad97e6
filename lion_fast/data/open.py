"""The front door: from a config to its set of images, loaded or left on disk."""

import dataclasses
import difflib
from pathlib import Path
from typing import Literal

import torch

from lion_fast.config import TrainConfig
from lion_fast.data.arrays import LabelledArrays
from lion_fast.data.cifar import read_cifar
from lion_fast.data.dataset import DataSet
from lion_fast.data.digits import read_digits
from lion_fast.data.encoded import open_encoded, open_encoded_test
from lion_fast.data.facts import DataFacts
from lion_fast.data.folder import read_image_folder
from lion_fast.data.images import ImageSet
from lion_fast.data.npz import read_npz, read_npz_test
from lion_fast.data.subset import take_subset
from lion_fast.errors import UserError
from lion_fast.places import place

DEFAULT_DATA_DIR = Path("~/.cache/lion-fast")
BUILT_IN = ("digits", "cifar10", "cifar100")
_LENT: dict[str, LabelledArrays] = {}


def lend(dataset: str, arrays: LabelledArrays) -> None:
    """From now on read `dataset`, as configs call it, from `arrays` in this process.

    They are what `read_arrays` returned where its files lie, which need not be here then.
    """
    _LENT[dataset] = arrays


def open_data(config: TrainConfig, loader: str) -> DataSet:
    """Return the set of `config`: a folder stays on disk for the loader dali, all else is loaded.

    Raise UserError as `load_image_set` and `open_encoded` do.
    """
    if loader != "dali" or _kind(config.dataset) != "folder":
        return load_image_set(config)
    path = place(config.dataset)
    if config.num_classes is not None or config.train_fraction < 1:
        raise UserError(
            f"num_classes and train_fraction choose among images in memory, and {path} stays on"
            " disk with loader dali: take --loader resident"
        )
    return open_encoded(path, config.image_size, config.skip_corrupt)


def load_image_set(config: TrainConfig) -> ImageSet:
    """Load the set that `config.dataset` names, whole, into memory.

    A built-in name wins over a file or folder of that name. Raise UserError when there is no such
    set, when it cannot be read (see `read_cifar`, `read_npz`, `read_image_folder`), and when no
    classifier can be trained on it (see `ImageSet.from_arrays`).
    """
    arrays = take_subset(
        read_arrays(config), config.dataset, config.num_classes, config.train_fraction
    )
    path = place(config.dataset)
    name = path.stem if _kind(config.dataset) == "npz" else path.resolve().name
    return ImageSet.from_arrays(name, arrays, config.dataset)


def read_arrays(config: TrainConfig) -> LabelledArrays:
    """Read the set that `config.dataset` names, all of it, or what was lent under that name.

    Raise UserError as `load_image_set` does.
    """
    dataset, path = config.dataset, place(config.dataset)
    kind, lent = _kind(dataset), _LENT.get(dataset)
    if lent is None and (kind is None or (kind == "npz" and not path.is_file())):
        raise UserError(_unknown(dataset, path))
    if config.image_size is not None and kind != "folder":
        raise UserError(
            f"image_size is {config.image_size}, but only images of a folder are resized, "
            f"not those of {dataset}: leave it out"
        )
    if lent is not None:
        return lent
    if kind == "folder":
        return read_image_folder(path, config.image_size, config.skip_corrupt, config.num_classes)
    if kind == "npz":
        return read_npz(path)
    if dataset == "digits":
        return read_digits()
    return read_cifar(dataset, place(config.data_dir or DEFAULT_DATA_DIR))


def _kind(dataset: str) -> Literal["built in", "folder", "npz"] | None:
    """Return what a config's `dataset` names; an .npz need not exist."""
    path = place(dataset)
    if dataset in BUILT_IN:
        return "built in"
    if path.is_dir():
        return "folder"
    return "npz" if path.suffix.lower() == ".npz" else None


def open_test_data(config: TrainConfig, facts: DataFacts) -> DataSet:
    """Return the test split of `config` as the run that `facts` are of saw it; no training images.

    Mean, standard deviation, class names and image size are those of `facts`, so train/ and
    x_train need not be there. Raise UserError, with what differs, on other data than the run's.
    """
    dataset, path = config.dataset, place(config.dataset)
    kind = _kind(dataset)
    images: DataSet
    if kind == "folder":
        some = config.num_classes is not None
        images = open_encoded_test(path, facts, config.skip_corrupt, some)
    elif kind == "npz" and path.is_file():
        images = _test_images(path, facts)
    else:
        images = load_image_set(config)
    found = dataclasses.replace(
        images.facts(), num_train=facts.num_train, train_fingerprint=facts.train_fingerprint
    )
    if differences := facts.differences(found):
        raise UserError(
            f"{dataset} is not what the run was trained on: {'; '.join(differences)}: put its data"
            " back, or train anew"
        )
    return images


def _test_images(path: Path, facts: DataFacts) -> ImageSet:
    """Return the test split of an .npz; labels beyond the classes of `facts` are left out."""
    pixels, labels, class_names = read_npz_test(path)
    wanted = labels < len(facts.class_names)
    names = facts.class_names
    if class_names is not None:
        names = class_names[: len(names)]
    return ImageSet(
        name=path.stem,
        train_images=torch.empty(0, *pixels.shape[1:], dtype=torch.uint8),
        train_labels=torch.empty(0, dtype=torch.int64),
        test_images=torch.from_numpy(pixels[wanted]),
        test_labels=torch.from_numpy(labels[wanted]),
        class_names=names,
        mean=facts.mean,
        std=facts.std,
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
