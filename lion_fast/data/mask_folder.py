"""Folders of images and masks: `root/{train,test}/{images,masks}/<name>`.

A mask is a PNG of the image's name and size, of mode palette or grey, whose levels are the numbers
of classes, and 255 where a pixel belongs to none. `root/classes.txt` may name the classes, one a
line, the background first; else they are numbered up to the largest in the training masks.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lion_fast.data.arrays import IGNORED, LabelledArrays, reason
from lion_fast.data.decode import DECODE_ERRORS, decode_image, image_file_size
from lion_fast.data.fingerprint import files_fingerprint
from lion_fast.data.folder import IMAGE_SUFFIXES, test_split as folder_of_test
from lion_fast.data.memory import check_memory
from lion_fast.data.remembered import Remembered
from lion_fast.errors import UserError

_NAMES = "classes.txt"
_NO_MASK = "without a mask"
_LEVELS = ("P", "L", "1")


class MaskedSplit(NamedTuple):
    """The files of one split, ordered by name."""

    images: tuple[Path, ...]
    masks: tuple[Path, ...]


def is_mask_folder(root: Path) -> bool:
    """Whether a folder holds images and masks, rather than a folder of images a class."""
    try:
        entries = [entry.name for entry in os.scandir(root / "train") if entry.is_dir()]
    except OSError:
        return False
    return {name for name in entries if not name.startswith(".")} == {"images", "masks"}


def list_mask_folder(root: Path) -> tuple[MaskedSplit, MaskedSplit, Counter[str]]:
    """List both splits and count the images that are left out; no image is opened.

    Raise UserError when a split is missing or empty, and on a mask without an image.
    """
    left_out: Counter[str] = Counter()
    train = _list_split(root / "train", left_out)
    return train, list_masked_test(root, left_out), left_out


def list_masked_test(root: Path, left_out: Counter[str]) -> MaskedSplit:
    """List the test split alone; see `list_mask_folder`."""
    return _list_split(folder_of_test(root, left_out), left_out)


def mask_fingerprint(split: MaskedSplit, root: Path, remembered: Remembered) -> str:
    """Return a digest of every image and mask of a split."""
    files = (*split.images, *split.masks)
    kinds = np.repeat(np.arange(2), len(split.images))
    return files_fingerprint(files, kinds, root, remembered)


def mask_fingerprints(root: Path) -> tuple[str, str]:
    """Return the digests of both splits; files that have not changed since are not read."""
    train, test, _ = list_mask_folder(root)
    remembered = Remembered(root)
    found = mask_fingerprint(train, root, remembered), mask_fingerprint(test, root, remembered)
    remembered.save()
    return found


def read_mask_folder(root: Path, image_size: int | None = None) -> LabelledArrays:
    """Decode a folder of images and masks into memory.

    image_size: the side that all are brought to, images by interpolation and masks by their nearest
    pixel; by default the size of the first training image. Raise UserError, naming the file, on one
    that cannot be read, a mask of another size than its image or in colour, and a class beyond
    those of `classes.txt` or of the training masks.
    """
    train, test, left_out = list_mask_folder(root)
    size = (image_size, image_size) if image_size else image_file_size(train.images[0])
    check_memory(str(root), len(train.images) + len(test.images), size)
    names = read_class_names(root)
    train_images, train_masks = read_masked_split(train, size)
    if names is None:
        labelled = train_masks[train_masks != IGNORED]
        largest = int(labelled.max()) if len(labelled) else 0
        names = tuple(map(str, range(largest + 1)))
    check_classes(train, train_masks, names)
    test_images, test_masks = read_masked_split(test, size)
    check_classes(test, test_masks, names)
    return LabelledArrays(
        train_images,
        train_masks,
        test_images,
        test_masks,
        names,
        left_out=left_out,
        fingerprints=mask_fingerprints(root),
    )


def read_masked_split(split: MaskedSplit, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, H, W, 3) and masks (N, H, W), uint8, brought to `size` = (H, W)."""
    images = np.empty((len(split.images), *size, 3), np.uint8)
    masks = np.empty((len(split.masks), *size), np.uint8)

    def read(row: int) -> None:
        images[row] = decode_image(split.images[row], size, remedy="replace it")
        masks[row] = _read_mask(split.masks[row], split.images[row], size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, range(len(split.images))):
            pass
    return images, masks


def check_classes(split: MaskedSplit, masks: np.ndarray, names: tuple[str, ...]) -> None:
    """Raise UserError, naming the file, on a mask with a class beyond `names`."""
    beyond = (masks >= len(names)) & (masks != IGNORED)
    if beyond.any():
        row = int(beyond.any((1, 2)).argmax())
        raise UserError(
            f"{split.masks[row]} holds the class {masks[row][beyond[row]].max()}, out of range for"
            f" {len(names)} classes: number them 0 to {len(names) - 1}, and {IGNORED} what is of"
            f" none, or name more in {_NAMES}"
        )


def read_class_names(root: Path) -> tuple[str, ...] | None:
    """Return the lines of `classes.txt`; None without one."""
    path = root / _NAMES
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): write it in UTF-8") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not 2 <= len(set(names)) == len(names) <= IGNORED:
        raise UserError(
            f"{path} names {len(set(names))} classes in {len(names)} lines: give 2 to {IGNORED}"
            " names, each once"
        )
    return names


def _list_split(split: Path, left_out: Counter[str]) -> MaskedSplit:
    for folder in (split / "images", split / "masks"):
        if not folder.is_dir():
            raise UserError(
                f"{folder} is missing: a folder of masks needs train/ and test/ with images/ and"
                " masks/ each"
            )
    images = _by_stem(split / "images", IMAGE_SUFFIXES)
    masks = _by_stem(split / "masks", (".png",))
    for stem, mask in masks.items():
        if stem not in images:
            raise UserError(f"{mask} is a mask without an image: add {split / 'images' / stem}.png")
    if not masks:
        raise UserError(f"{split / 'masks'} holds no .png file: add one of each image's name")
    if missing := len(images) - len(masks):
        left_out[_NO_MASK] += missing
    return MaskedSplit(tuple(images[stem] for stem in masks), tuple(masks.values()))


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if path.stem in found:
            raise UserError(
                f"{path} and {found[path.stem].name} have one name: rename one, for a mask goes by"
                " its image's"
            )
        found[path.stem] = path
    return found


def _read_mask(path: Path, image: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(path, formats=("PNG",)) as mask:
            found, mode = (mask.height, mask.width), mask.mode
            levels = np.asarray(mask.resize(size[::-1], Image.Resampling.NEAREST))
    except DECODE_ERRORS as error:
        raise UserError(f"{path} cannot be decoded ({reason(error)}): replace it") from error
    if mode not in _LEVELS:
        raise UserError(
            f"{path} is of mode {mode}: save the numbers of classes as a PNG of mode P or L"
        )
    if found != (wanted := image_file_size(image)):
        raise UserError(
            f"{path} is {found[0]}x{found[1]} pixels and {image.name} {wanted[0]}x{wanted[1]}: make"
            " them of one size"
        )
    return levels.astype(np.uint8)
