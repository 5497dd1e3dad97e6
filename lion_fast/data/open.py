"""The front door: from a config to its set of images, loaded or left on disk."""

import dataclasses
import difflib
from pathlib import Path

import torch

from lion_fast.config import TrainConfig
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

DEFAULT_DATA_DIR = Path("~/.cache/lion-fast")
BUILT_IN = ("digits", "cifar10", "cifar100")


def open_data(config: TrainConfig, loader: str) -> DataSet:
    """Return the set of `config`: a folder stays on disk for the loader dali, all else is loaded.

    Raise UserError as `load_image_set` and `open_encoded` do.
    """
    path = Path(config.dataset).expanduser()
    if loader != "dali" or config.dataset in BUILT_IN or not path.is_dir():
        return load_image_set(config)
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
    dataset, path = config.dataset, Path(config.dataset).expanduser()
    is_folder = dataset not in BUILT_IN and path.is_dir()
    is_npz = path.is_file() and path.suffix.lower() == ".npz"
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
        arrays = read_image_folder(path, config.image_size, config.skip_corrupt, config.num_classes)
    else:
        arrays = read_npz(path)
    arrays = take_subset(arrays, dataset, config.num_classes, config.train_fraction)
    name = path.stem if is_npz else path.resolve().name
    return ImageSet.from_arrays(name, arrays, dataset)


def open_test_data(config: TrainConfig, facts: DataFacts) -> DataSet:
    """Return the test split of `config` as the run that `facts` are of saw it; no training images.

    Mean, standard deviation, class names and image size are those of `facts`, so train/ and
    x_train need not be there. Raise UserError, with what differs, on other data than the run's.
    """
    dataset, path = config.dataset, Path(config.dataset).expanduser()
    images: DataSet
    if dataset not in BUILT_IN and path.is_dir():
        some = config.num_classes is not None
        images = open_encoded_test(path, facts, config.skip_corrupt, some)
    elif dataset in BUILT_IN or not (path.is_file() and path.suffix.lower() == ".npz"):
        images = load_image_set(config)
    else:
        images = _test_images(path, facts)
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
