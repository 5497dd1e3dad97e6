"""Fast digests of a split's content, to notice that the data changed under a run."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

# What is hashed of one split at most: a tenth of a second.
_MOST_PIXEL_BYTES = 2**26
_MOST_FILES = 256
_END_BYTES = 2**12


def pixels_fingerprint(images: Tensor, labels: Tensor) -> str:
    """Return a digest of (N, H, W, 3) uint8 images and (N,) labels on the CPU.

    Beyond 64 MiB of pixels, of images evenly spaced among them.
    """
    digest = hashlib.blake2b(repr(tuple(images.shape)).encode(), digest_size=16)
    digest.update(labels.numpy().astype("<i8").tobytes())
    if len(images):
        most = max(1, _MOST_PIXEL_BYTES // images[0].numel())
        rows = torch.linspace(0, len(images) - 1, min(len(images), most), dtype=torch.float64)
        for chunk in rows.long().split(256):
            digest.update(images[chunk].numpy().tobytes())
    return digest.hexdigest()


def files_fingerprint(paths: Sequence[Path], labels: Tensor) -> str:
    """Return a digest of every file's name, size and label, and of both ends of some files.

    The names of classes are not part of it, so that renaming one is not taken for other images.
    """
    digest = hashlib.blake2b(repr(labels.tolist()).encode(), digest_size=16)
    for path in paths:
        digest.update(os.fsencode(f"{path.name}/{path.stat().st_size}/"))
    for path in paths[:: max(1, len(paths) // _MOST_FILES)]:
        digest.update(_ends(path))
    return digest.hexdigest()


def _ends(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            first = file.read(_END_BYTES)
            file.seek(max(len(first), path.stat().st_size - _END_BYTES))
            return first + file.read(_END_BYTES)
    except OSError:
        return b""  # Named or skipped where it is decoded.
