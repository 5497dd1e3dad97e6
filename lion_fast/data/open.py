"""The front door: from a config to its set of images, loaded or left on disk."""

import difflib
from pathlib import Path

from lion_fast.config import TrainConfig
from lion_fast.data.cifar import read_cifar
from lion_fast.data.dataset import DataSet
from lion_fast.data.digits import read_digits
from lion_fast.data.encoded import open_encoded
from lion_fast.data.folder import read_image_folder
from lion_fast.data.images import ImageSet
from lion_fast.data.npz import read_npz
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
        arrays = read_image_folder(path, config.image_size, config.skip_corrupt)
    else:
        arrays = read_npz(path)
    arrays = take_subset(arrays, dataset, config.num_classes, config.train_fraction)
    name = path.stem if is_npz else path.resolve().name
    return ImageSet.from_arrays(name, arrays, dataset)


def _unknown(dataset: str, path: Path) -> str:
    accepted = f"take {', '.join(BUILT_IN)}, a path to an .npz, or a folder with train/ and test/"
    if path.exists():
        return f"dataset {dataset} is neither a folder nor an .npz file: {accepted}"
    close = difflib.get_close_matches(dataset, BUILT_IN, n=1)
    hint = f"did you mean {close[0]}? Otherwise " if close else ""
    return (
        f"dataset {dataset!r} is no known name, and no such file or folder exists: {hint}{accepted}"
    )
