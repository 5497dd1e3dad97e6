"""Folders of encoded images: `root/{train,test}/<class>/<image>.{jpg,jpeg,png}`."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lion_fast.data.arrays import LabelledArrays
from lion_fast.data.decode import decode_files, decode_image
from lion_fast.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class SplitListing(NamedTuple):
    """The files of one split."""

    paths: tuple[Path, ...]
    labels: Tensor
    """(N,) int64 on the CPU: the class of each path."""


class FolderListing(NamedTuple):
    """The files of an image folder, ordered by class, then by file name (by code points)."""

    train: SplitListing
    test: SplitListing
    class_names: tuple[str, ...]
    """Names of the folders under train/, sorted; a label is an index into them."""


def list_image_folder(root: Path) -> FolderListing:
    """List `root/train` and `root/test`, whose folders are the classes, without opening a file.

    Hidden entries are ignored, and so is every file whose suffix, in upper or lower case, is none
    of IMAGE_SUFFIXES. Raise UserError when a split or all of its classes are missing, a class holds
    no image, or test/ has a class that train/ lacks.
    """
    folders = {split: _class_folders(root / split) for split in ("train", "test")}
    for name, folder in folders["test"].items():
        if name not in folders["train"]:
            raise UserError(
                f"{folder} is a class without training images: add {root / 'train' / name} "
                "or remove this folder"
            )
    class_names = tuple(folders["train"])
    train, test = (_list_split(folders[split], class_names) for split in ("train", "test"))
    return FolderListing(train, test, class_names)


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def _class_folders(split: Path) -> dict[str, Path]:
    if not split.is_dir():
        raise UserError(
            f"{split} is missing: an image folder needs train/ and test/ with one folder per class"
        )
    folders = {entry.name: Path(entry.path) for entry in _visible_entries(split) if entry.is_dir()}
    if not folders:
        raise UserError(f"{split} holds no folders: put the images of each class into its own")
    return folders


def _list_split(folders: dict[str, Path], class_names: tuple[str, ...]) -> SplitListing:
    paths: list[Path] = []
    labels: list[int] = []
    for name, folder in folders.items():
        num_before = len(paths)
        paths += (
            Path(entry.path)
            for entry in _visible_entries(folder)
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()
        )
        if len(paths) == num_before:
            raise UserError(
                f"{folder} holds no {', '.join(IMAGE_SUFFIXES)} file: "
                "add images of this class or remove its folder"
            )
        labels += [class_names.index(name)] * (len(paths) - num_before)
    return SplitListing(tuple(paths), torch.tensor(labels))


def folder_image_size(
    listing: FolderListing, image_size: int | None = None, skip_corrupt: bool = False
) -> tuple[int, int]:
    """Return the (H, W) that every image is brought to: `image_size` squared, if given.

    Otherwise it is the size of the first training image, or of the first readable one with
    `skip_corrupt`. Raise UserError when there is none.
    """
    if image_size is not None:
        return image_size, image_size
    for path in listing.train.paths:
        try:
            height, width, _ = decode_image(path).shape
        except UserError:
            if not skip_corrupt:
                raise
        else:
            return height, width
    raise _none_readable(listing.train)


def _none_readable(split: SplitListing) -> UserError:
    return UserError(f"{split.paths[0].parents[1]} holds no readable image: replace them")


def read_image_folder(
    root: Path, image_size: int | None = None, skip_corrupt: bool = False
) -> LabelledArrays:
    """Decode an image folder into memory, as `list_image_folder` and `decode_image` say.

    Raise UserError at the first unreadable image, or, with `skip_corrupt`, count it and go on.
    """
    listing = list_image_folder(root)
    size = folder_image_size(listing, image_size, skip_corrupt)
    train_images, train_labels = _read_split(listing.train, size, skip_corrupt)
    test_images, test_labels = _read_split(listing.test, size, skip_corrupt)
    num_listed = len(listing.train.paths) + len(listing.test.paths)
    return LabelledArrays(
        train_images,
        train_labels,
        test_images,
        test_labels,
        listing.class_names,
        num_skipped=num_listed - len(train_labels) - len(test_labels),
    )


def _read_split(
    split: SplitListing, size: tuple[int, int], skip_corrupt: bool
) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(split.paths), *size, 3), np.uint8)
    kept: list[int] = []
    for row, image in decode_files(split.paths, size, skip_corrupt):
        images[len(kept)] = image
        kept.append(row)
    if not kept:
        raise _none_readable(split)
    return images[: len(kept)], split.labels.numpy()[kept]
