"""Benchmarks of whole processes: rows of the seconds that a fresh process takes or tells."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class StatedClock:
    """A clock for pytest-benchmark that advances by the seconds that it is told."""

    __name__ = "stated_seconds"

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the seconds so far."""
        return self.seconds


_CLOCK = StatedClock()
stated = pytest.mark.benchmark(timer=_CLOCK)
"""Marks a test that calls `state`."""


def state(benchmark: Any, seconds: Sequence[float], **row: Any) -> None:
    """Report a row whose rounds lasted `seconds`, with its setting and all of them."""
    rounds = iter(seconds)

    def advance() -> None:
        _CLOCK.seconds += next(rounds)

    benchmark.pedantic(advance, rounds=len(seconds))
    benchmark.extra_info.update(row, seconds=list(seconds))


class Finished(NamedTuple):
    """A process that ended well."""

    seconds: float
    """From before its start until after its end."""
    stdout: str

    def last_json(self) -> dict[str, Any]:
        """Parse the last line that it printed."""
        return json.loads(self.stdout.splitlines()[-1])


def run_python(
    *arguments: str, folder: Path | None = None, env: Mapping[str, str] | None = None
) -> Finished:
    """Run this interpreter afresh in `folder`, with `env` on top of the environment.

    Raises AssertionError with what it wrote to stderr if it fails.
    """
    # -P keeps a checkout's root, whose lion_fast lacks kernels, out of sys.path.
    command = [sys.executable, "-P", *arguments]
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **(env or {})}, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return Finished(seconds, done.stdout)


def train_afresh(
    *flags: str | Path | int | float, folder: Path, env: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], float]:
    """Run `lion-fast train FLAGS --out FOLDER`; return its summary and the seconds of it all."""
    command = ["-m", "lion_fast.cli", "train", *map(str, flags), "--out", str(folder)]
    done = run_python(*command, folder=folder, env=env)
    return done.last_json(), done.seconds
