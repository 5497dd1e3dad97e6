"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): found on disk or downloaded, verified, then parsed.

The official files are pickles written by Python 2 with numpy 1. They are read by an unpickler that
knows no class and no function but three inert stand-ins, so no file can make it run code.
"""

import http.client
import pickle
import tarfile
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lion_fast.data.arrays import LabelledArrays, reason
from lion_fast.data.npz import read_npz
from lion_fast.errors import UserError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

# fmt: off
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "cifar10": (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ),
    "cifar100": (
        "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle",
        "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle",
        "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch",
        "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox",
        "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
        "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom",
        "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree",
        "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
        "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake",
        "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
        "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle",
        "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
    ),
}
# fmt: on
SOURCES = {
    "cifar10": ("cifar10.npz", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": ("cifar100.npz", "cifar-100-python", "cifar-100-python.tar.gz"),
}
"""What each set is read from; the first that exists is taken."""


def read_cifar(name: str, data_dir: Path) -> LabelledArrays:
    """Read cifar10 or cifar100 (fine labels) from `data_dir`, downloading the archive if need be.

    Taken is the first that exists of `<name>.npz` (see `read_npz`), the extracted official folder
    and the official archive; of the latter two, what is read must have the MD5 checksum that
    torchvision knows. Raise UserError on another checksum, a file that is no CIFAR batch, and a
    failed download.
    """
    npz = data_dir / f"{name}.npz"
    if npz.is_file():
        return read_npz(npz, CLASS_NAMES[name])
    # Importing torchvision takes a second that no other source needs to spend.
    from torchvision.datasets import CIFAR10, CIFAR100

    official = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    num_classes = len(CLASS_NAMES[name])
    folder = data_dir / official.base_folder
    archive = data_dir / official.filename
    if folder.is_dir():
        batches = _read_folder(folder, official, num_classes)
    else:
        if not archive.is_file():
            _download(official, archive, npz)
        batches = _read_archive(archive, official, num_classes)
    train_images, train_labels = _join([batches[file] for file, _ in official.train_list])
    test_images, test_labels = _join([batches[file] for file, _ in official.test_list])
    return LabelledArrays(train_images, train_labels, test_images, test_labels, CLASS_NAMES[name])


class _Batch(NamedTuple):
    """The content of one official file."""

    pixels: np.ndarray
    """(N, 3072) uint8: channel, row, column"""
    labels: np.ndarray
    """(N,) int64"""


def _join(batches: list[_Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 32, 32, 3) images and (N,) labels."""
    labels = np.concatenate([batch.labels for batch in batches])
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    start = 0
    for pixels, _ in batches:
        stop = start + len(pixels)
        images[start:stop] = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        start = stop
    return images, labels


def _read_folder(folder: Path, official: "type[CIFAR10]", num_classes: int) -> dict[str, _Batch]:
    remedy = f"delete {folder} and extract {official.filename} again"
    batches = {}
    for file, md5 in official.train_list + official.test_list:
        path = folder / file
        if not path.is_file():
            raise UserError(f"{path} is missing: {remedy}")
        _verify(path, md5, f"{path}", remedy)
        with path.open("rb") as stream:
            batches[file] = _parse_batch(stream, f"{path}", num_classes)
    return batches


def _read_archive(archive: Path, official: "type[CIFAR10]", num_classes: int) -> dict[str, _Batch]:
    _verify(archive, official.tgz_md5, f"{archive}", "delete it to have it downloaded again")
    wanted = {file for file, _ in official.train_list + official.test_list}
    batches = {}
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            file = Path(member.name).name
            if file in wanted and (stream := members.extractfile(member)) is not None:
                batches[file] = _parse_batch(stream, f"{file} in {archive}", num_classes)
    return batches


def _download(official: "type[CIFAR10]", archive: Path, npz: Path) -> None:
    """Put the verified archive into place: whole, or not at all."""
    from torchvision.datasets.utils import download_url

    by_hand = f"put {archive.name} or {npz.name} into {archive.parent}, or point --data-dir at it"
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=archive.parent) as partial:
            download_url(official.url, partial, archive.name)
            fetched = Path(partial, archive.name)
            _verify(fetched, official.tgz_md5, f"{official.url}, as downloaded,", by_hand)
            fetched.replace(archive)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{official.url} cannot be downloaded ({reason(error)}): {by_hand}"
        ) from error


def _verify(path: Path, expected: str, subject: str, remedy: str) -> None:
    from torchvision.datasets.utils import calculate_md5

    found = calculate_md5(path)
    if found != expected:
        raise UserError(
            f"{subject} has MD5 {found}, expected {expected}: it is truncated or altered, {remedy}"
        )


class _PickledDtype:
    """Stands in for numpy.dtype: knows the one type that the files use."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code != b"u1":
            raise TypeError(f"its pixels are {code!r}, not b'u1'")

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and alignment, which bytes do not have."""


class _PickledArray:
    """Stands in for numpy's array constructor: takes the pixels from the pickled state."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _version, shape, _dtype, is_fortran, data = state
        self.pixels = np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _PickledDtype,
}


class _CifarUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks to run {module!r} {name!r}")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside the file")


def _parse_batch(stream: IO[bytes], where: str, num_classes: int) -> _Batch:
    """Parse one official file; raise UserError when it is not one."""
    try:
        content = _CifarUnpickler(stream, encoding="bytes").load()
        pixels = content[b"data"].pixels
        labels = np.array(content[b"labels" if b"labels" in content else b"fine_labels"])
        if pixels.shape != (len(labels), 3 * 32 * 32):
            raise ValueError(f"{len(labels)} labels for pixels of shape {pixels.shape}")
        if labels.dtype != np.int64 or labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(f"its labels are not integers from 0 to {num_classes - 1}")
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f"{where} is not a CIFAR batch ({reason(error)}): delete it and download it again"
        ) from error
    return _Batch(pixels, labels)
