"""Start a script of these tests on the stand-in for a GPU, and read the JSON it prints."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
# The stand-in answers for the libraries that this version calls; see stand_in_gpu/__init__.py.
TORCH = "2.14"

needs_stand_in = pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which("gcc") is None
    or not version("torch").startswith(TORCH),
    reason=f"the stand-in for a GPU needs Linux, gcc and torch {TORCH}",
)


def outcomes(
    script: str, *arguments: str | Path, cache: Path, env: dict[str, str] | None = None
) -> Any:
    """Run tests/`script` in a process of its own; return what its last line says.

    cache: folder in which compiled kernels are kept from one call to the next.
    """
    caches = {
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(TESTS / script), *map(str, arguments)],
        env=inherited | caches | (env or {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
