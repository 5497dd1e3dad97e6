"""What Muon's update of DenseNet-DS executes: `python bench/gpu/count_muon.py --out FILE`.

    python bench/gpu/count_muon.py --out bench/results/counts/muon-triton38.json

A program takes one weight, so the launch takes as long as its longest program: each size of block
is compiled by itself, for sm_90, with the most columns that DenseNet-DS has of it. Both ways to
make products are counted, in fp32 and as halves on tensor cores. Times are calculated
(`model.py`), and the one that was measured, of fp32's way on an H200, stands beside.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import triton

from gpu.count_sass import executed_by_kind, machine_code
from gpu.model import launch_model
from gpu.places import loop_place
from gpu.rates import H200
from gpu.sass import Loop
from lion_fast.kernels.launch import Launch
from lion_fast.kernels.muon.launch import muon_launch

SIZES = {"64": [(42, 84), (36, 72)], "32": [(24, 27)], "16": [(8, 738)]}
"""rows of a block -> DenseNet-DS's weights of that block with the most columns"""
MEASURED = {"us": 82.0, "file": "bench/results/gpu/2026-11-27-h200/timeline_fast.txt"}


def launch_of(shapes: Sequence[tuple[int, int]], tensor_cores: bool) -> Launch:
    """Return the launch that updates weights of these shapes, from tensors without data."""
    matrices = [torch.empty(shape, device="meta") for shape in shapes]
    lr = torch.empty((), device="meta")
    return muon_launch(matrices, matrices, matrices, lr, 0.95, 0.01, tensor_cores)


def trips_of(launch: Launch, loop: Loop) -> float:
    """Return the trips of a loop of Muon's kernel, of the weight with the most columns."""
    args = launch.args
    (rows,), (columns,) = args["BLOCK_R"], args["BLOCK_C"]
    known = {
        "for start in range(0, columns, BLOCK_C):": -(-max(args["COLUMNS"]) // columns),
        "for start in range(0, N, BLOCK_K):": rows // columns,
        "for first in range(0, BLOCK_R, BLOCK_C):": rows // columns,
        "for _ in range(ITERATIONS):": args["ITERATIONS"],
    }
    return float(known[loop_place(loop.frames).text])


def count(shapes: Sequence[tuple[int, int]], tensor_cores: bool) -> dict[str, Any]:
    """Return what a warp executes for the longest of these weights, and a calculated time."""
    launch = launch_of(shapes, tensor_cores)
    code, registers, spilled, shared = machine_code(launch)

    def trips(loop: Loop) -> float:
        return trips_of(launch, loop)

    found = launch_model(
        code, trips, warps=launch.num_warps, registers=registers, shared_bytes=shared,
        programs=1, rates=H200,
    )  # fmt: skip
    return {
        "calculated_us": round(found.us, 2), "chain_us": round(found.chain_us, 2),
        "warps": launch.num_warps, "registers": registers, "spilled_bytes": spilled,
        "executed_a_warp": executed_by_kind(code, trips),
    }  # fmt: skip


def report() -> dict[str, Any]:
    """Return all that is written."""
    ways = {"fp32": False, "tensor cores": True}
    found = {
        way: {rows: count(shapes, on_cores) for rows, shapes in SIZES.items()}
        for way, on_cores in ways.items()
    }
    longest = {way: max(r["calculated_us"] for r in rows.values()) for way, rows in found.items()}
    return {
        "what": "muon_update_ of DenseNet-DS's 21 matrices, sm_90: counted and calculated",
        "triton": triton.__version__, "calculated_us": longest, "measured_fp32": MEASURED,
        "rows_of_a_block": found,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, calculate and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    found = report()
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(*(f"{way}: {us} us calculated" for way, us in found["calculated_us"].items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
