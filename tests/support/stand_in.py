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
import stand_in_gpu

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
# The stand-in answers for the libraries that these call; see stand_in_gpu/__init__.py.
TORCH = ("2.11", "2.14")

needs_stand_in = pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which("gcc") is None
    or not version("torch").startswith(TORCH),
    reason=f"the stand-in for a GPU needs Linux, gcc and torch {' or '.join(TORCH)}",
)


def caches(folder: Path) -> dict[str, str]:
    """Return the environment that keeps what Inductor makes in `folder`, apart from real runs'.

    What Triton compiles is known by its content, so it shares the cache that `kernels.aot` fills,
    which Inductor would otherwise change for its process.
    """
    home = Path(os.environ.get("TRITON_HOME", Path.home()))
    return {
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(home / ".triton" / "cache")),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }


# max-autotune compiles and times its own candidates, by the dozen; a library's are there.
LIBRARIES_ALONE = {
    f"TORCHINDUCTOR_MAX_AUTOTUNE_{kind}_BACKENDS": "ATEN" for kind in ("GEMM", "CONV")
}


def noting_environment(card: str, cache: Path) -> dict[str, str]:
    """Return the environment of a command on the stand-in, whose kernels are not compiled."""
    path = os.pathsep.join(map(str, (TESTS, SUPPORT, SUPPORT / "stand_in_site")))
    # A pytest that takes itself for a worker of this one measures nothing.
    outside = {k: v for k, v in stand_in_gpu.environment(card).items() if "PYTEST" not in k}
    return outside | LIBRARIES_ALONE | caches(cache) | {"PYTHONPATH": path}


def outcomes(
    script: str, *arguments: str | Path, cache: Path, env: dict[str, str] | None = None
) -> Any:
    """Run tests/support/`script` in a process of its own; return what its last line says.

    cache: folder in which compiled kernels are kept from one call to the next.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SUPPORT / script), *map(str, arguments)],
        env=inherited | caches(cache) | (env or {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
