"""What ptxas made of a kernel, read from its machine code."""

import importlib.util
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


def triton_folder() -> Path:
    """Return the folder of the installed Triton, which is not imported."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        raise RuntimeError("the stand-in needs the CUDA headers of Triton's wheel: install triton")
    return Path(spec.origin).parent


class Resources(NamedTuple):
    """A kernel's target and what a thread of it uses."""

    arch: str
    registers: int
    spilled_bytes: int


def resources(cubin: bytes) -> Resources:
    """Read a cubin's resource table with the cuobjdump of Triton's wheel."""
    tool = triton_folder() / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = _USAGE.search(listing)
    if found is None:
        raise ValueError(f"cuobjdump lists no resources: {listing}")
    registers, stack, local = map(int, found.groups())
    # The low byte of e_flags is the target's number.
    return Resources(f"sm_{cubin[0x30]}", registers, stack + local)
