"""The front door: from a config to its set of images, loaded or left on disk."""

import dataclasses
from pathlib import Path

import torch

from lion_fast.config import TrainConfig
from lion_fast.data.dataset import DataSet
from lion_fast.data.encoded import open_encoded, open_encoded_test
from lion_fast.data.facts import DataFacts
from lion_fast.data.fingerprint import pixels_fingerprint
from lion_fast.data.images import ImageSet
from lion_fast.data.npz import read_npz_test
from lion_fast.data.sources import kind_of, passed_over, read_arrays
from lion_fast.data.subset import take_subset
from lion_fast.errors import UserError
from lion_fast.places import place


def open_data(config: TrainConfig, loader: str) -> DataSet:
    """Return the set of `config`: a folder stays on disk for the loader dali, all else is loaded.

    Raise UserError as `load_image_set` and `open_encoded` do.
    """
    if loader != "dali" or kind_of(config.dataset) != "folder":
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
    name = path.stem if kind_of(config.dataset) == "npz" else path.resolve().name
    images = ImageSet.from_arrays(name, arrays, config.dataset)
    return dataclasses.replace(images, remark=passed_over(config.dataset))


def open_test_data(config: TrainConfig, facts: DataFacts) -> DataSet:
    """Return the test split of `config` as the run that `facts` are of saw it; no training images.

    Mean, standard deviation, class names and image size are those of `facts`, so train/ and
    x_train need not be there. Raise UserError, with what differs, on other data than the run's.
    """
    dataset, path = config.dataset, place(config.dataset)
    kind = kind_of(dataset)
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
    if not wanted.any():
        raise UserError(
            f"{path} has no test image of the run's {len(facts.class_names)} classes: add some"
        )
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
        fingerprints=("", pixels_fingerprint(pixels, labels)),
    )
