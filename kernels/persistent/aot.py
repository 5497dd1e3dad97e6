"""python -m lion_fast.kernels.persistent.aot: compile the persistent kernels with no GPU.

Prints, per kernel, dtype and target, what DenseNet-DS at batch 128 takes: registers a thread, bytes
of shared memory a program asks for, and bytes of local memory a thread (what does not fit in
registers). Of the passes there are two forms: an image a program, and, where a target's programs
have too little memory for that or a batch has more images than there are processors, images in
turn. Raises CompileError where a kernel does not compile. Nothing of it says how fast a kernel is.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from triton import knobs

from ..dense.plan import Plan
from .compile import FILES, compiled, definitions_of
from .plan import PersistentPlan

PAPER = Plan(128, 32, 32, 24, 8, 6)
SHARED_BYTES = {
    (8, 0): 166912, (8, 6): 101376, (8, 9): 101376, (9, 0): 232448, (10, 0): 232448,
    (12, 0): 101376,
}  # fmt: skip
"""by compute capability: the most that a program may ask for (CUDA C++ Programming Guide, "Compute
Capabilities", maximum amount of shared memory per thread block)"""
FORMS = {"resident": PersistentPlan(PAPER), "in-turn": PersistentPlan(PAPER, 64, False)}
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


def resources(
    sizes: PersistentPlan, dtype: torch.dtype, capability: tuple[int, int]
) -> list[Resources]:
    """Compile a network's kernels for a target and read what they take."""
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
    heads = [f"sm_{major}{minor}" for major, minor in SHARED_BYTES]
    print("registers a thread/shared bytes a program/local bytes a thread; -: too little memory")
    print(f"{'':26}" + "".join(f"  {head:>14}" for head in heads))
    for form, sizes in FORMS.items():
        for dtype in (torch.bfloat16, torch.float16):
            rows: dict[str, list[str]] = {Path(file).stem: [] for file in FILES}
            for capability, shared_bytes in SHARED_BYTES.items():
                if sizes.shared_bytes > shared_bytes:
                    found = dict.fromkeys(rows, "-")
                else:
                    found = {r.kernel: r.cell for r in resources(sizes, dtype, capability)}
                for kernel, cells in rows.items():
                    cells.append(found[kernel])
            name = str(dtype).removeprefix("torch.")
            for kernel, cells in rows.items():
                columns = "".join(f"  {cell:>14}" for cell in cells)
                print(f"{kernel + ' ' + name + ' ' + form:26}{columns}", flush=True)


if __name__ == "__main__":
    main()
