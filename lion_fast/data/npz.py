"""Data sets in one `.npz` with the keys that Keras made common: x_train y_train x_test y_test."""

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

import numpy as np

from lion_fast.data.arrays import LabelledArrays, as_labels, as_rgb, assemble, reason
from lion_fast.data.memory import check_bytes
from lion_fast.errors import UserError

KEYS = ("x_train", "y_train", "x_test", "y_test")
_NAMES = "class_names"
_TOO_LARGE = (
    "keep fewer of them, or write them as files into an image folder, which --loader dali leaves on"
    " disk"
)


def read_npz(path: Path, class_names: tuple[str, ...] | None = None) -> LabelledArrays:
    """Read a data set without executing pickled code.

    Images are uint8, (N, H, W, 3), or grey (N, H, W) or (N, H, W, 1) and repeated to three
    channels; labels are integers, (N,) or (N, 1), from 0 to K - 1. The K classes are named by
    `class_names`, else by the array of that name in the file, else by their numbers, up to the
    largest training label. Raise UserError on anything else.
    """
    arrays = _read_arrays(path, KEYS)
    x_train, y_train, x_test, y_test = (arrays[key] for key in KEYS)
    names = class_names or _class_names(arrays, path)
    called = [f"{path}: {key}" for key in KEYS]
    return assemble(x_train, y_train, x_test, y_test, names, called)


def read_npz_test(
    path: Path,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...] | None]:
    """Return images and labels of the test split, and the class names if the file has any.

    The training split need not be there. Raise UserError as `read_npz` does.
    """
    arrays = _read_arrays(path, KEYS[2:])
    images = as_rgb(arrays["x_test"], f"{path}: x_test")
    labels = as_labels(arrays["y_test"], len(images), f"{path}: y_test")
    return images, labels, _class_names(arrays, path)


def _class_names(arrays: dict[str, np.ndarray], path: Path) -> tuple[str, ...] | None:
    names = arrays.get(_NAMES)
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(
            f"{path}: {_NAMES} is {names.dtype} of shape {names.shape}: store one string a class,"
            " numpy.array(names)"
        )
    if len({normalize("NFC", name) for name in names.tolist()}) < len(names):
        raise UserError(f"{path}: {_NAMES} holds a name twice: give each class its own")
    return tuple(names.tolist())


def _read_arrays(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the arrays `keys`, and class_names where the file holds them."""
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is not an .npz archive, or truncated: save {' '.join(KEYS)} with numpy.savez"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in keys if key not in archive]
            found = ", ".join(archive.files) or "nothing"
            wanted = [*keys, *([_NAMES] if _NAMES in archive else [])]
            check_bytes(str(path), "its images", _num_bytes(archive, keys), _TOO_LARGE)
            arrays = {key: archive[key] for key in wanted if not missing}
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            f"{path}: its images do not fit in the memory that is free: {_TOO_LARGE}"
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}): save it anew with numpy.savez"
        ) from error
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}: it must hold {' '.join(keys)}, and holds {found}"
        )
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise UserError(f"{path}: {key} is not a numpy array: save it anew with numpy.savez")
    return arrays


def _num_bytes(archive: np.lib.npyio.NpzFile, keys: Sequence[str]) -> int:
    """Return what the arrays `keys` take as RGB, as their headers say; nothing is read."""
    assert archive.zip is not None
    total = 0
    for key in keys:
        if f"{key}.npy" not in archive.zip.namelist():
            continue
        with archive.zip.open(f"{key}.npy") as member:
            try:
                if np.lib.format.read_magic(member) == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(member)
            except ValueError:
                continue  # No array: named where it is read.
        is_grey = len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)
        total += math.prod(shape) * dtype.itemsize * (4 if is_grey else 1)
    return total
