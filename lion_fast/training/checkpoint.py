"""Checkpoints that survive kill -9 and a full disk: written aside, synced, then renamed."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from lion_fast.errors import UserError
from lion_fast.training.files import disk_advice, write_atomically

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as the newest checkpoint of `folder` and keep the one before it.

    At every moment at least one whole checkpoint stands under its final name. Raises UserError when
    the disk is full or not writable; what stood before is then untouched.
    """
    path = folder / NAME
    safe = "the checkpoint before it is intact" if path.exists() else "no checkpoint was written"
    with disk_advice(path, safe):
        write_atomically(path, lambda file: torch.save(state, file), keep_as=folder / PREVIOUS)


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
