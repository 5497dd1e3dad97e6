"""Checkpoints that survive kill -9 and a full disk: written aside, synced, then renamed."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from lion_fast.errors import UserError

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
_UNFINISHED = "checkpoint.tmp"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as the newest checkpoint of `folder` and keep the one before it.

    At every moment at least one whole checkpoint stands under its final name. Raises UserError when
    the disk is full or not writable; what stood before is then untouched.
    """
    unfinished = folder / _UNFINISHED
    try:
        with open(unfinished, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # torch's zip writer reports a failed write as RuntimeError, with the OSError in its
        # context.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        unfinished.unlink(missing_ok=True)
        raise UserError(
            f"cannot write a checkpoint in {folder}: {cause.strerror}; the one before it is intact:"
            f" free space, then --resume {folder}"
        ) from None
    if (folder / NAME).exists():
        os.replace(folder / NAME, folder / PREVIOUS)
    os.replace(unfinished, folder / NAME)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the newest whole checkpoint of `folder` on the CPU, or None when none was written yet.

    A damaged newest checkpoint falls back to the one before it. Raises UserError when checkpoints
    exist and none is whole. Only tensors and plain values are unpickled.
    """
    present = [path for path in (folder / NAME, folder / PREVIOUS) if path.exists()]
    for path in present:
        if _is_whole(path):
            return torch.load(path, map_location="cpu", weights_only=True)
    if present:
        raise UserError(
            f"{present[0]} is damaged and no earlier checkpoint is whole: start the run again"
        )
    return None


def _is_whole(path: Path) -> bool:
    """Whether every member of torch's zip container matches its checksum."""
    try:
        with zipfile.ZipFile(path) as container:
            return container.testzip() is None
    except zipfile.BadZipFile:
        return False
