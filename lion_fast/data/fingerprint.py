"""Digests of a split's whole content: what tells one set of images from another.

They are of 40 characters. Earlier versions looked at part of a large set, and theirs have 32: the
two cannot be compared.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lion_fast.data.remembered import Remembered, stamp_of

_DIGEST_BYTES = 20
_PART_BYTES = 2**26
# Beyond so much, of files evenly spaced in the listing: ten seconds of reading on a fast disk.
_MOST_FILE_BYTES = 2**33


def comparable(one: str, other: str) -> bool:
    """Whether two fingerprints were made in one way, so that they differ only where data do."""
    return len(one) == len(other)


def pixels_fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """Return a digest of all of (N, H, W, 3) uint8 images and (N,) labels."""
    digest = hashlib.blake2b(repr(tuple(images.shape)).encode(), digest_size=_DIGEST_BYTES)
    digest.update(labels.astype("<i8").tobytes())
    if len(images):
        # Parts, which several cores digest at once: hashlib lets go of the interpreter.
        length = max(1, _PART_BYTES // images[0].size)
        parts = [images[start : start + length] for start in range(0, len(images), length)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for part in pool.map(_array_digest, parts):
                digest.update(part)
    return digest.hexdigest()


def _array_digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=_DIGEST_BYTES).digest()


def files_fingerprint(
    paths: Sequence[Path], labels: np.ndarray, root: Path, remembered: Remembered
) -> str:
    """Return a digest of every file's name, size, label and content; (N,) int64 labels.

    Content that `remembered` knows by name, size and time is not read again. Of more than 8 GiB,
    the content of files evenly spaced in the listing. The names of classes are not part of it, so
    that renaming one is not taken for other images.
    """
    stamps = [stamp_of([path]) for path in paths]
    sizes = [stamp[0] if stamp else -1 for stamp in stamps]
    digest = hashlib.blake2b(labels.astype("<i8").tobytes(), digest_size=_DIGEST_BYTES)
    for path, size in zip(paths, sizes, strict=True):
        digest.update(os.fsencode(f"{path.name}/{size}/"))
    every = 1 + max(0, sum(sizes) - 1) // _MOST_FILE_BYTES
    sampled = range(0, len(paths), every)
    below = len(os.path.join(root, ""))
    names = {row: str(paths[row])[below:] for row in sampled}
    found = {row: remembered.get(names[row], stamps[row]) for row in sampled}
    unknown = [row for row in sampled if found[row] is None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(_file_digest, [paths[row] for row in unknown])
        for row, value in zip(unknown, digests, strict=True):
            found[row] = value
            if value:
                remembered.keep(names[row], stamps[row], value)
    for row in sampled:
        digest.update((found[row] or "").encode())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            new = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES))
        return new.hexdigest()
    except OSError:
        return ""  # Named or skipped where it is decoded.
