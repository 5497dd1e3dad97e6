"""python -m lion_fast.kernels.aot: compile every kernel for sm_70 ... sm_100 with no GPU.

Prints, per case and target, registers a thread, bytes of shared memory a program, bytes spilled a
thread and tensor-core instructions. Exits with 1 where a case fails to compile, or spills more than
KNOWN_SPILLS says. Nothing of it says how fast a kernel is.

The machine code's own resource table says what it uses; instructions are counted in the PTX,
because the nvdisasm that Triton 3.8 brings no longer reads sm_70.
"""

import argparse
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import triton
from triton import knobs
from triton.errors import TritonError

from .aot_case import AotCase, compile_case, resources_of
from .augment.aot import AOT_CASES as _AUGMENT_CASES
from .dense.aot import AOT_CASES as _DENSE_CASES
from .heads.aot import AOT_CASES as _HEADS_CASES
from .muon.launch import AOT_CASES as _MUON_CASES

CASES: list[AotCase] = [*_HEADS_CASES, *_AUGMENT_CASES, *_MUON_CASES, *_DENSE_CASES]
CAPABILITIES = (70, 75, 80, 90, 100)

KNOWN_SPILLS = {
    ("3.6", 80, "dense bf16 block 1 layer 3"): 8,
    ("3.6", 80, "dense bf16 block 2 layer 4"): 56,
    ("3.6", 80, "dense bf16 block 2 layer 5"): 40,
    ("3.6", 80, "dense fp16 block 2 layer 5"): 32,
    ("3.8", 100, "dense bf16 transition 1"): 8,
}
"""(Triton, capability, case) -> bytes spilled a thread that are taken"""

_TENSOR_CORE = re.compile(r"\b(?:wmma\.mma|mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")


class Report(NamedTuple):
    """What one case became on one target. `error` is empty where it compiled."""

    case: str
    capability: int
    registers: int = 0
    shared_bytes: int = 0
    spilled_bytes: int = 0
    tensor_core: int = 0
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether the case did not compile, or spills more than is known."""
        version = triton.__version__.rpartition(".")[0]
        known = KNOWN_SPILLS.get((version, self.capability, self.case), 0)
        return bool(self.error) or self.spilled_bytes > known

    @property
    def cell(self) -> str:
        """The table's cell."""
        if self.error:
            return "FAILED"
        return f"{self.registers}/{self.shared_bytes}/{self.spilled_bytes}/{self.tensor_core}"


def report(case: AotCase, capability: int) -> Report:
    """Compile `case` for a target and read what it uses there."""
    try:
        kernel = compile_case(case, capability)
    except (TritonError, RuntimeError) as error:
        return Report(case.name, capability, error=str(error).strip() or type(error).__name__)
    registers, spilled = resources_of(kernel.asm["cubin"])
    tensor_core = len(_TENSOR_CORE.findall(kernel.asm["ptx"]))
    return Report(case.name, capability, registers, kernel.metadata.shared, spilled, tensor_core)


def _report_at(index: int, capability: int) -> Report:
    # A worker process finds the kernel by its place: a JITFunction does not pickle.
    return report(CASES[index], capability)


def main(arguments: list[str] | None = None) -> int:
    """Compile, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lion_fast.kernels.aot", description=__doc__)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per case and target"
    )
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument(
        "--capability",
        type=int,
        nargs="+",
        choices=CAPABILITIES,
        default=CAPABILITIES,
        help="only these targets sm_NN",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that compile")
    options = parser.parse_args(arguments)
    if knobs.runtime.interpret:
        print(
            "TRITON_INTERPRET is set, and the interpreter compiles nothing: unset it",
            file=sys.stderr,
        )
        return 2
    jobs = [
        (index, capability)
        for index, case in enumerate(CASES)
        for capability in options.capability
        if options.match in case.name and capability >= case.min_capability
    ]
    if not jobs:
        print(f"no case has {options.match!r} in its name", file=sys.stderr)
        return 2
    started = time.perf_counter()
    # Spawned, not forked: importing torch starts threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        reports = list(pool.map(_report_at, *zip(*jobs, strict=True)))
    seconds = time.perf_counter() - started

    if options.json:
        print("\n".join(json.dumps(r._asdict()) for r in reports))
    else:
        print(_table(reports, options.capability))
        print(f"{len(reports)} compiled in {seconds:.0f} s with triton {triton.__version__}")
    failures = [r for r in reports if r.failed]
    for r in failures:
        print(
            f"sm_{r.capability} {r.case}: {r.error or f'spills {r.spilled_bytes} bytes a thread'}",
            file=sys.stderr,
        )
    return 1 if failures else 0


def _table(reports: list[Report], capabilities: Sequence[int]) -> str:
    cells: dict[str, dict[int, str]] = {}
    for r in reports:
        cells.setdefault(r.case, {})[r.capability] = r.cell
    name_width = max(map(len, cells))
    width = max(len(cell) for row in cells.values() for cell in row.values())
    head = (
        "registers/shared bytes/spilled bytes/tensor-core instructions; - where it is not shipped"
    )
    lines = [head, " " * name_width + "".join(f"  {f'sm_{c}':>{width}}" for c in capabilities)]
    lines += [
        f"{name:{name_width}}" + "".join(f"  {row.get(c, '-'):>{width}}" for c in capabilities)
        for name, row in cells.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
