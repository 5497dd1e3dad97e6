"""The persistent backbone's ops with their launches emulated: `emulated(monkeypatch, ...)`."""

import functools
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

import emulator
from lion_fast.kernels.persistent import op
from lion_fast.kernels.persistent.compile import definitions_of
from lion_fast.kernels.persistent.launch import PersistentLaunch
from lion_fast.kernels.persistent.plan import PersistentPlan

H100 = {"capability": (9, 0), "processors": 132, "shared_bytes": 227 * 1024}
_FOLDER = Path(tempfile.gettempdir()) / f"lion_fast_emulator_{os.getuid()}"
"""keeps what was compiled from one session to the next"""


class How(NamedTuple):
    """How launches are emulated."""

    seed: int = 0
    """of the order in which threads run"""
    is_checked: bool = False
    """whether every access is looked at"""
    skip: tuple[str, int] | None = None
    """file and line of a barrier that is left out"""


@functools.cache
def _built(definitions: tuple[tuple[str, int], ...], is_checked: bool) -> emulator.Emulator:
    _FOLDER.mkdir(exist_ok=True)
    source = emulator.FOLDER / "kernels.cpp"
    return emulator.build(_FOLDER, source, dict(definitions), is_checked=is_checked)


def library(
    sizes: PersistentPlan, dtype: torch.dtype, is_checked: bool = False
) -> emulator.Emulator:
    """Return the kernels of a network, compiled for the emulator."""
    definitions = definitions_of(sizes.definitions, dtype)
    return _built(tuple(definitions.items()), is_checked)


def run(launch: PersistentLaunch, how: How = How()) -> None:  # noqa: B008
    """Emulate a launch."""
    library(launch.sizes, launch.dtype, how.is_checked).run(
        launch.kernel,
        launch.arguments,
        {**launch.inputs, **launch.outputs},
        tuple(launch.inputs),
        programs=launch.programs if launch.cooperative else 2,
        threads=launch.threads,
        shared_bytes=launch.shared_bytes,
        seed=how.seed,
        skip=how.skip,
    )


def emulate(monkeypatch, how: How = How()) -> list[str]:  # noqa: B008
    """Let the ops' launches be emulated from here on; return the list of those that were."""
    launched = []

    def emulated(launch):
        launched.append(launch.kernel)
        run(launch, how)

    monkeypatch.setattr(PersistentLaunch, "run", emulated)
    monkeypatch.setattr(op, "_gpu_of", lambda device: H100)
    monkeypatch.setattr(op, "compiler_obstacle", lambda capability: None)  # g++ compiles
    return launched
