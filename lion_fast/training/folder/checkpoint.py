"""Checkpoints that survive kill -9 and a full disk: written aside, synced, then renamed."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from lion_fast.errors import UserError
from lion_fast.training.folder.files import disk_advice, write_atomically

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
# What every checkpoint of every version holds.
_ENTRIES = {
    "training": dict,
    "config": dict,
    "history": torch.Tensor,
    "validations": list,
    "probes": list,
}
# What some versions' have beside.
_LATER_ENTRIES = {"data": dict, "resolved": dict, "resumed": list, "own": list, "precision": str}


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` as the newest checkpoint of `folder` and keep the one before it.

    At every moment at least one whole checkpoint stands under its final name. Raises DiskError when
    the disk is full or not writable; what stood before is then untouched.
    """
    path = folder / NAME
    safe = "the checkpoint before it is intact" if path.exists() else ""
    with disk_advice(path, safe):
        write_atomically(path, lambda file: torch.save(state, file), keep_as=folder / PREVIOUS)


def load_checkpoint(folder: Path | str) -> dict[str, Any] | None:
    """Return the newest whole checkpoint of `folder` on the CPU, or None when none was written yet.

    A damaged newest checkpoint falls back to the one before it. Raises UserError when checkpoints
    exist and none is whole, and when one is whole but was not written by `RunRecord.save`. Only
    tensors and plain values are unpickled.
    """
    folder = Path(folder)
    present = [path for path in (folder / NAME, folder / PREVIOUS) if path.exists()]
    for path in present:
        if _is_whole(path):
            return _load(path)
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
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError):
        # Torch's own message would advise to execute what the file holds.
        raise UserError(
            f"{path} was not written by lion-fast, or was changed since, and was not loaded: do not"
            " trust it; start the run again"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is no checkpoint of lion-fast: it holds a {type(state).__name__}")
    for name, kind in _ENTRIES.items():
        if not isinstance(state.get(name), kind):
            raise UserError(f"{path} is no checkpoint of lion-fast: it lacks {name!r}")
    for name, kind in _LATER_ENTRIES.items():
        if not isinstance(state.get(name, kind()), kind):
            raise UserError(f"{path} was changed: its {name!r} is none; start the run again")
    return state
