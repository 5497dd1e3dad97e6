"""Folders of encoded images: `root/{train,test}/<class>/<image>.{jpg,jpeg,png}`."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from lion_fast.data.arrays import LabelledArrays
from lion_fast.data.decode import decode_files, decode_image, image_file_size
from lion_fast.data.fingerprint import files_fingerprint
from lion_fast.data.memory import check_memory
from lion_fast.data.remembered import Remembered
from lion_fast.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
TEST_SPLITS = ("val", "valid", "validation")
"""Names that the test split may have where there is no test/."""

# Why files are left out, as they are counted in FolderListing.left_out.
_NESTED = "in folders within a class"
_LOOSE = "beside the class folders"
_BROKEN_LINK = "behind a broken link"
_OTHER_TYPE = f"not {' '.join(IMAGE_SUFFIXES)}"
_UNLABELLED = "in a test/ without class folders"

# A first image of so many times the others' pixels, or so many times fewer, is taken for a mistake.
_OUTLIER = 10
_SAMPLED_HEADERS = 32


class SplitListing(NamedTuple):
    """The files of one split."""

    paths: tuple[Path, ...]
    labels: np.ndarray
    """(N,) int64: the class of each path."""


class FolderListing(NamedTuple):
    """The files of an image folder, ordered by class, then by file name (by code points)."""

    train: SplitListing
    test: SplitListing
    class_names: tuple[str, ...]
    """Names of the folders under train/, sorted; a label is an index into them."""
    left_out: Mapping[str, int]
    """Files that were not taken, counted by why."""
    root: Path

    def fingerprints(self) -> tuple[str, str]:
        """Return the digests of both splits; files that have not changed since are not read."""
        remembered = Remembered(self.root)
        train = files_fingerprint(*self.train, self.root, remembered)
        test = files_fingerprint(*self.test, self.root, remembered)
        remembered.save()
        return train, test


def list_image_folder(root: Path, num_classes: int | None = None) -> FolderListing:
    """List `root/train` and `root/test`, whose folders are the classes, without opening a file.

    See `test_split` for what stands in for test/. Hidden entries are ignored; files whose suffix,
    in upper or lower case, is none of IMAGE_SUFFIXES, broken links and images outside or further
    inside of the class folders are counted. Names of classes are one in every Unicode spelling.
    `num_classes` keeps the first ones. Raise UserError when a split or all of its classes are
    missing, a class holds no image, test/ has a class that train/ lacks, or none that is kept.
    """
    left_out: Counter[str] = Counter()
    train_folders = _class_folders(root / "train", left_out)
    test_folders = _class_folders(test_split(root, left_out), left_out)
    for name, folder in test_folders.items():
        if name not in train_folders:
            raise UserError(
                f"{folder} is a class without training images: add {root / 'train' / name} "
                "or remove this folder"
            )
    class_names = tuple(train_folders)[:num_classes]
    if not any(name in test_folders for name in class_names):
        raise UserError(
            f"num_classes is {num_classes}, and {root} has no test image of the first"
            f" {len(class_names)} classes ({', '.join(class_names)[:80]}): raise it"
        )
    train = _list_split(train_folders, class_names, left_out)
    test = _list_split(test_folders, class_names, left_out)
    return FolderListing(train, test, class_names, left_out, root)


def list_test_split(root: Path, class_names: tuple[str, ...], some: bool) -> FolderListing:
    """List the test split alone, with the labels that a run gave to its classes.

    some: the run kept some classes only, so that others may be there. Raise UserError as
    `list_image_folder` does, and on a class that the run does not know.
    """
    left_out: Counter[str] = Counter()
    folders = _class_folders(test_split(root, left_out), left_out)
    known = [normalize("NFC", name) for name in class_names]
    for name, folder in folders.items():
        if name not in known and not some:
            raise UserError(
                f"{folder} is a class that the run does not know: rename it to one of "
                f"{', '.join(class_names)}, or remove it"
            )
    if not any(name in folders for name in known):
        raise UserError(
            f"{root} has no test image of the run's {len(known)} classes"
            f" ({', '.join(class_names)[:80]}): add some"
        )
    test = _list_split(folders, class_names, left_out)
    nothing = SplitListing((), np.empty(0, np.int64))
    return FolderListing(nothing, test, class_names, left_out, root)


def test_split(root: Path, left_out: Counter[str]) -> Path:
    """Return the folder of test images: test/, or the only one of TEST_SPLITS that exists.

    A test/ of images without class folders, which nobody has labelled, gives way to one of those;
    its images are counted.
    """
    others = [root / name for name in TEST_SPLITS if (root / name).is_dir()]
    if not others:
        return root / "test"
    if (root / "test").is_dir():
        entries = _visible_entries(root / "test")
        num_images = sum(_is_image(entry.name) for entry in entries)
        if not num_images or any(entry.is_dir() for entry in entries):
            return root / "test"
        left_out[_UNLABELLED] += num_images
    if len(others) > 1:
        names = " and ".join(f"{path.name}/" for path in others)
        raise UserError(f"{root} holds {names} but no test/: rename the one to test on")
    return others[0]


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(visible, key=lambda entry: entry.name)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _class_folders(split: Path, left_out: Counter[str]) -> dict[str, Path]:
    if not split.is_dir():
        raise UserError(
            f"{split} is missing: an image folder needs train/ and test/ with one folder per class"
        )
    entries = _visible_entries(split)
    folders: dict[str, Path] = {}
    for entry in entries:
        if not entry.is_dir():
            continue
        # A copy made by another system may spell the same letters otherwise.
        name = normalize("NFC", entry.name)
        if name in folders:
            raise UserError(
                f"{split} holds two folders called {name!r}, in two Unicode spellings: put their"
                " images into one"
            )
        folders[name] = Path(entry.path)
    folders = dict(sorted(folders.items()))
    if not folders:
        raise UserError(f"{split} holds no folders: put the images of each class into its own")
    left_out[_LOOSE] += sum(_is_image(entry.name) for entry in entries if not entry.is_dir())
    return folders


def _list_split(
    folders: dict[str, Path], class_names: tuple[str, ...], left_out: Counter[str]
) -> SplitListing:
    paths: list[Path] = []
    labels: list[int] = []
    label_of = {normalize("NFC", name): label for label, name in enumerate(class_names)}
    for name, folder in folders.items():
        if name not in label_of:
            continue
        taken, others = _list_class(folder)
        left_out.update(others)
        if not taken:
            found = ", ".join(f"{number:,} {why}" for why, number in others.items())
            raise UserError(
                f"{folder} holds no {', '.join(IMAGE_SUFFIXES)} file"
                + (f" (found: {found}): " if found else ": ")
                + "add images of this class or remove its folder"
            )
        paths += taken
        labels += [label_of[name]] * len(taken)
    return SplitListing(tuple(paths), np.array(labels, np.int64))


def _list_class(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Return the images of one class, and how many other files there are, by why."""
    taken: list[Path] = []
    others: Counter[str] = Counter()
    for entry in _visible_entries(folder):
        if entry.is_dir():
            files = (name for _, _, names in os.walk(entry.path) for name in names)
            if nested := sum(map(_is_image, files)):
                others[_NESTED] += nested
        elif not entry.is_file():
            others[_BROKEN_LINK] += entry.is_symlink()
        elif _is_image(entry.name):
            taken.append(Path(entry.path))
        else:
            others[_OTHER_TYPE] += 1
    return taken, others


def folder_image_size(
    listing: FolderListing, image_size: int | None = None, skip_corrupt: bool = False
) -> tuple[int, int]:
    """Return the (H, W) that every image is brought to: `image_size` squared, if given.

    Otherwise it is the size of the first training image, or of the first readable one with
    `skip_corrupt`. Raise UserError when there is none, and when it is far larger or smaller than
    most others, which it would have enlarged or shrunk.
    """
    if image_size is not None:
        return image_size, image_size
    for path in listing.train.paths:
        try:
            # In full, since the header of a broken image may be whole.
            decode_image(path, (1, 1))
            size = image_file_size(path)
        except UserError:
            if not skip_corrupt:
                raise
        else:
            _check_typical(path, size, listing.train)
            return size
    raise _none_readable(listing.train)


def _check_typical(path: Path, size: tuple[int, int], split: SplitListing) -> None:
    """Raise UserError if an image is of a far other size than most, by a look at some headers."""
    sizes = []
    for other in split.paths[:: max(1, len(split.paths) // _SAMPLED_HEADERS)]:
        try:
            sizes.append(image_file_size(other))
        except UserError:
            continue  # Met again, and named or skipped, when it is decoded.
    ours, most = size[0] * size[1], median([height * width for height, width in sizes] or [1])
    if ours <= _OUTLIER * most and most <= _OUTLIER * ours:
        return
    height, width = sorted(sizes, key=lambda size: size[0] * size[1])[len(sizes) // 2]
    raise UserError(
        f"{path} is {size[0]}x{size[1]} pixels and most other images about {height}x{width}, but"
        " all are brought to the size of the first training image: say which with --image-size,"
        f" like --image-size {max(8, height)}"
    )


def _none_readable(split: SplitListing) -> UserError:
    return UserError(f"{split.paths[0].parents[1]} holds no readable image: replace them")


def read_image_folder(
    root: Path,
    image_size: int | None = None,
    skip_corrupt: bool = False,
    num_classes: int | None = None,
) -> LabelledArrays:
    """Decode an image folder into memory, as `list_image_folder` and `decode_image` say.

    Raise UserError at the first unreadable image, or, with `skip_corrupt`, count it and go on; and
    before any is read, when they would not fit in this machine's memory.
    """
    listing = list_image_folder(root, num_classes)
    num_listed = len(listing.train.paths) + len(listing.test.paths)
    size = folder_image_size(listing, image_size, skip_corrupt)
    remedy = "take a smaller --image-size, or --loader dali, which leaves them on disk"
    check_memory(str(root), num_listed, size, remedy)
    train_images, train_labels = _read_split(listing.train, size, skip_corrupt)
    test_images, test_labels = _read_split(listing.test, size, skip_corrupt)
    return LabelledArrays(
        train_images,
        train_labels,
        test_images,
        test_labels,
        listing.class_names,
        num_skipped=num_listed - len(train_labels) - len(test_labels),
        left_out=listing.left_out,
        fingerprints=listing.fingerprints(),
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
    return images[: len(kept)], split.labels[kept]
