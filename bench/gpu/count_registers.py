"""What fewer registers a thread give the group backwards: `python bench/gpu/count_registers.py`.

    python bench/gpu/count_registers.py --out bench/results/counts/registers-triton38.txt

Compiles each with limits for sm_90: registers and bytes spilled a thread, programs that an SM then
holds, and a calculated time (`model.py`). Those that already leave room for another program are
left out. Needs no GPU; a card decides (`card.py --stages options`).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import triton

from gpu.count_sass import count_launch
from lion_fast.kernels.dense.aot import DENSENET, step_launches
from lion_fast.report.markdown import table

LIMITS = (None, 128, 80)
LAUNCHES = (
    *(f"block 1 group {u} backward" for u in (3, 2, 1, 0)), "block 1 input backward",
    *(f"block 2 group {u} backward" for u in (1, 0)), "block 2 input backward",
)  # fmt: skip
"""whose registers leave room for one program of 8 warps an SM, with Triton 3.6 or 3.8"""


def rows() -> Iterator[list[str]]:
    """Yield the table's rows."""
    launches = step_launches(DENSENET, torch.bfloat16)
    for name in LAUNCHES:
        for limit in LIMITS:
            found = count_launch(launches[name]._replace(max_registers=limit))
            numbers = [found[key] for key in ("registers", "spilled_bytes", "programs_an_sm")]
            us = f"{found['calculated_us']:.1f}"
            yield [name, str(limit or "none"), *map(str, numbers), us]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    heads = ("launch", "limit", "registers", "bytes spilled", "programs an SM", "us, calculated")
    lines = [f"Triton {triton.__version__}, sm_90. Times are calculated, not measured.", ""]
    options.out.write_text("\n".join([*lines, *table(heads, list(rows()))]) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
