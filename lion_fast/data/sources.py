"""Where a config's data lie, what they hold and which data they are; imports nothing heavy."""

import difflib
from pathlib import Path
from typing import Literal

from lion_fast.config import TrainConfig
from lion_fast.data.arrays import LabelledArrays
from lion_fast.data.cifar import SOURCES, read_cifar
from lion_fast.data.digits import read_digits
from lion_fast.data.fingerprint import pixels_fingerprint
from lion_fast.data.folder import list_image_folder, read_image_folder
from lion_fast.data.npz import read_npz
from lion_fast.data.remembered import Remembered, stamp_of
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


def kind_of(dataset: str) -> Literal["built in", "folder", "npz"] | None:
    """Return what a config's `dataset` names; an .npz need not exist."""
    path = place(dataset)
    if dataset in BUILT_IN:
        return "built in"
    if path.is_dir():
        return "folder"
    return "npz" if path.suffix.lower() == ".npz" else None


def passed_over(dataset: str) -> str | None:
    """Return what to say where a file or folder is called like the built-in set that is taken."""
    if dataset not in BUILT_IN or not Path(dataset).exists():
        return None
    what = "folder" if Path(dataset).is_dir() else "file"
    return f"the built-in set, not the {what} of that name here: --dataset ./{dataset} means that"


def data_dir_of(data_dir: Path | None) -> Path:
    """Return the folder of the downloadable sets."""
    return place(data_dir or DEFAULT_DATA_DIR)


def data_fingerprint(config: TrainConfig) -> str | None:
    """Return the fingerprint that a run of `config` would note; None where its data are not here.

    Nothing is downloaded, and files that have not changed since are not read again.
    """
    try:
        if kind_of(config.dataset) == "folder":
            path = place(config.dataset)
            return "-".join(list_image_folder(path, config.num_classes).fingerprints())
        files = _files(config.dataset, config.data_dir)
        if not files and config.dataset != "digits":
            return None
        known = _known(files) or read_arrays(config).fingerprints
    except (UserError, OSError):
        return None  # What is wrong with them is told where they are loaded.
    assert known is not None
    return "-".join(known)


def read_arrays(config: TrainConfig) -> LabelledArrays:
    """Read the set that `config.dataset` names, all of it, or what was lent under that name.

    Raise UserError when there is no such set and as its reader does.
    """
    dataset, path = config.dataset, place(config.dataset)
    kind, lent = kind_of(dataset), _LENT.get(dataset)
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
    files = _files(dataset, config.data_dir)
    known, stamp = _known(files), stamp_of(files)
    if kind == "npz":
        arrays = read_npz(path)
    elif dataset == "digits":
        arrays = read_digits()
    else:
        arrays = read_cifar(dataset, data_dir_of(config.data_dir))
    if known is None:
        known = (
            pixels_fingerprint(arrays.train_images, arrays.train_labels),
            pixels_fingerprint(arrays.test_images, arrays.test_labels),
        )
        _keep(files, stamp, known)
    return arrays._replace(fingerprints=known)


def _files(dataset: str, data_dir: Path | None) -> list[Path]:
    """Return the files that a set in memory is read from; none where it is not here."""
    if dataset not in BUILT_IN:
        return [place(dataset)]
    for name in SOURCES.get(dataset, ()):
        path = data_dir_of(data_dir) / name
        if path.is_dir():
            # What is remembered of them lies there too, and is none of them.
            return sorted(each for each in path.iterdir() if not each.name.startswith("."))
        if path.exists():
            return [path]
    return []


def _known(files: list[Path]) -> tuple[str, str] | None:
    """Return the fingerprints of both splits where the files have not changed since."""
    if not files:
        return None
    kept = Remembered(files[0]).get("splits", stamp_of(files))
    train, _, test = (kept or "").partition("-")
    return (train, test) if test else None


def _keep(files: list[Path], stamp: list[int], fingerprints: tuple[str, str]) -> None:
    if files:
        remembered = Remembered(files[0])
        remembered.keep("splits", stamp, "-".join(fingerprints))
        remembered.save()


def _unknown(dataset: str, path: Path) -> str:
    accepted = f"take {', '.join(BUILT_IN)}, a path to an .npz, or a folder with train/ and test/"
    if path.exists():
        return f"dataset {dataset} is neither a folder nor an .npz file: {accepted}"
    close = difflib.get_close_matches(dataset, BUILT_IN, n=1)
    hint = f"did you mean {close[0]}? Otherwise " if close else ""
    return (
        f"dataset {dataset!r} is no known name, and no such file or folder exists: {hint}{accepted}"
    )
