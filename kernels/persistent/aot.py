"""python -m lion_fast.kernels.persistent.aot: compile the persistent kernels with no GPU.

Prints, per kernel, dtype and target, what DenseNet-DS at batch 128 takes: registers a thread, bytes
of shared memory a program asks for, and bytes of local memory a thread (what does not fit in
registers). Raises CompileError where a kernel does not compile. Nothing of it says how fast a
kernel is. sm_80, 86, 89 and 120 are refused at run time: a program has less shared memory there
than this network's image takes.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from triton import knobs

from ..dense.plan import Plan
from .compile import compiled, definitions_of
from .plan import PersistentPlan

PAPER = Plan(128, 32, 32, 24, 8, 6)
CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


class Resources(NamedTuple):
    """What one kernel takes on one target."""

    kernel: str
    dtype: str
    capability: tuple[int, int]
    registers: int
    shared_bytes: int
    local_bytes: int

    @property
    def cell(self) -> str:
        """The table's cell."""
        return f"{self.registers}/{self.shared_bytes}/{self.local_bytes}"


def resources(plan: Plan, dtype: torch.dtype, capability: tuple[int, int]) -> list[Resources]:
    """Compile a network's kernels for a target and read what they take."""
    sizes = PersistentPlan(plan)
    shared = {"forward": sizes.forward_shared, "backward": sizes.backward_shared}
    found = []
    for file, cubin in compiled(definitions_of(sizes.definitions, dtype), capability).items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "kernel.cubin")
            path.write_bytes(cubin)
            command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
            listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        match = _RESOURCES.search(listing)
        assert match, f"cuobjdump lists no resources: {listing}"
        registers, stack, local = map(int, match.groups())
        kernel, name = Path(file).stem, str(dtype).removeprefix("torch.")
        found.append(
            Resources(kernel, name, capability, registers, shared.get(kernel, 0), stack + local)
        )
    return found


def main() -> None:
    """Compile and print."""
    heads = [f"sm_{major}{minor}" for major, minor in CAPABILITIES]
    print("registers a thread/shared bytes a program/local bytes a thread")
    print(f"{'':18}" + "".join(f"  {head:>14}" for head in heads))
    for dtype in (torch.bfloat16, torch.float16):
        columns = [resources(PAPER, dtype, capability) for capability in CAPABILITIES]
        for row in zip(*columns, strict=True):
            cells = "".join(f"  {r.cell:>14}" for r in row)
            print(f"{row[0].kernel + ' ' + row[0].dtype:18}{cells}", flush=True)


if __name__ == "__main__":
    main()
