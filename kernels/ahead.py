"""Compile the launches of a step ahead, on all cores, into the cache that Triton's launcher reads.

One by one, as they are first launched, the 49 kernels of a fused step take a minute. A helper
process imports them once and forks for the cores; this process goes on to launch what is there.

What has been compiled so is noted by a file beside the cache's own: to know it takes no compiler.
"""

import hashlib
import importlib
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import triton
from triton import knobs

from . import launch as _launch
from .aot_case import AotCase, case_of, compile_case
from .launch import Launch

_FOLDER = "lion_fast_ahead"


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect the launches made inside instead of making them: what they write is not written."""
    launches: list[Launch] = []
    before, _launch.RECORDED = _launch.RECORDED, launches
    try:
        yield launches
    finally:
        _launch.RECORDED = before


def missing_cases(launches: Sequence[Launch], capability: int) -> list[AotCase]:
    """Return what these launches compile for `sm_<capability>` and no call has compiled ahead.

    None in Triton's interpreter. Keeps Triton's cache where it is: Inductor would move it, for
    kernels that are first launched after its own.
    """
    if knobs.runtime.interpret:
        return []
    os.environ.setdefault("TRITON_CACHE_DIR", knobs.cache.dir)
    cases = {_note_of(case, capability): case for case in (case_of("", each) for each in launches)}
    return [case for note, case in cases.items() if not note.exists()]


def compile_ahead(cases: Sequence[AotCase], capability: int, workers: int) -> str | None:
    """Compile them in `workers` processes; return why that did not work, None where it did.

    A case that does not compile is left to its launch, which says why.
    """
    jobs = [(_place(case), case._replace(kernel=None)) for case in cases]
    command = [sys.executable, "-P", "-m", "lion_fast.kernels.ahead"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    given = pickle.dumps((jobs, capability, workers))
    done = subprocess.run(command, env=env, input=given, capture_output=True)
    if done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"exit code {done.returncode}"


def _place(case: AotCase) -> tuple[str, str]:
    """Return module and name of the kernel: it does not pickle itself."""
    return case.kernel.fn.__module__, case.kernel.fn.__name__


def _note_of(case: AotCase, capability: int) -> Path:
    """Return the file that says that a case was compiled: of other code or options it is another's.

    Names of cases are left out: they are for readers.
    """
    specialised = (sorted(case.signature.items()), sorted(case.constexprs.items()), case.aligned)
    whole = (triton.__version__, capability, case.kernel.cache_key, specialised, case.options)
    digest = hashlib.sha256(repr(whole).encode()).hexdigest()
    return Path(knobs.cache.dir) / _FOLDER / digest


def _compile(job: tuple[tuple[str, str], AotCase], capability: int) -> None:
    (module, name), case = job
    case = case._replace(kernel=getattr(importlib.import_module(module), name))
    try:
        compile_case(case, capability)
    except Exception:  # its launch will fail alike, and is the place to say so
        return
    note = _note_of(case, capability)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.touch()


def main() -> None:
    """Be the helper: read the jobs from standard input, compile them on as many forks."""
    jobs: list[Any]
    jobs, capability, workers = pickle.load(sys.stdin.buffer)
    for (module, _), _ in jobs:
        importlib.import_module(module)
    # Forked: this process has imported all that a job needs, and used neither threads nor a GPU.
    with multiprocessing.get_context("fork").Pool(min(workers, len(jobs))) as pool:
        pool.starmap(_compile, [(job, capability) for job in jobs], chunksize=1)


if __name__ == "__main__":
    main()
