"""Where the time of a step with the fused backbone goes: `python bench/gpu/count_sass.py`.

    python bench/gpu/count_sass.py --out bench/results/counts/fused-H200

Compiles every launch of DenseNet-DS's step for sm_90 and counts, from machine code and the trips
that the launch gives its loops, what each executes, by kind; beside it a calculated time
(`model.py`) and the measured one, of the H200's timeline. Writes OUT.json, OUT.md and OUT.png.
Needs no GPU. The registers, which decide much, are those of the Triton that runs this: the timeline
is to be compared with Triton 3.6, which made it, from the fused kernels of its day.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import triton

from gpu.model import LaunchModel, Trips, launch_model
from gpu.places import loop_place, place
from gpu.rates import H200
from gpu.sass import Code, Loop, disassembled, parse
from lion_fast.figures import OURS, RIVAL, bars, clean, new_figure, save
from lion_fast.kernels.aot_case import case_of, compile_case, resources_of
from lion_fast.kernels.dense.aot import DENSENET, step_launches
from lion_fast.kernels.launch import Launch
from lion_fast.report.markdown import table
from support.checkout import ROOT

TIMELINE = ROOT / "bench/results/gpu/2026-11-27-h200/timeline_fused.txt"
KINDS = (
    "LDG", "STG", "LDS", "LDSM", "STS", "MMA", "FP", "convert", "SHFL", "MUFU", "sync", "branch",
    "integer",
)  # fmt: skip
_OTHER_PROGRAMS = ("_transition_weights", "_stem_weights")
"""what a program does not run whose kernel makes a layer's weight gradients"""
_LAUNCH_OF_TIMELINE = re.compile(r"^\s*[\d.]+\s+([\d.]+) (_dense_\w+)", re.MULTILINE)
_GROUPS = {
    "stem, transitions, taps": ("stem", "transition 1", "transition 2", "taps"),
    **{f"block {b} layers": f"block {b} layer" for b in (1, 2, 3)},
    **{f"block {b} groups backward": f"block {b} group" for b in (3, 2, 1)},
    **{f"block {b} input backward": f"block {b} input" for b in (3, 2, 1)},
    **{f"block {b} weights backward": f"block {b} weights" for b in (3, 2, 1)},
    "pack, running statistics, reduce": ("pack", "running statistics", "reduce"),
}


def trips_of(args: Mapping[str, Any], loop: Loop) -> float:
    """Return the trips of a loop of the fused kernels; raise KeyError of one that is not known."""
    head = loop_place(loop.frames).text
    known = {
        "for t in range(TILES):": lambda: args["TILES"],
        "for s in range(ROWS + 2):": lambda: args["ROWS"] + 2,
        "for tile in range(program, TILES, PROGRAMS):":
            lambda: -(-args["TILES"] // args["PROGRAMS"]),
        "for at in range(start, size, step):": lambda: 1,  # the grid is as long as the longest
        "for at in range(start, padded, step):": lambda: 1,
        "for r in range(0, rows, BLOCK_ROWS):":
            lambda: -(-max(args["ROWS"]) // args["BLOCK_ROWS"]),
    }  # fmt: skip
    return float(known[head]())


def programs_of(launch: Launch) -> int:
    """Return how many programs work: of the weights' kernel, those whose slice has channels."""
    a = launch.args
    if "INPUT_PARTS" in a:
        read = (a["PADDED_IN"] + a["K"] * u for u in range(a["LAYERS"]))
        return int(a["PROGRAMS"] * sum(-(-channels // a["CW"]) for channels in read))
    programs = 1
    for size in launch.grid:
        programs *= size
    return programs


def machine_code(launch: Launch) -> tuple[Code, int, int, int]:
    """Compile for sm_90; return the code, registers, bytes spilled and of shared memory."""
    kernel = compile_case(case_of("", launch), 90)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(kernel.asm["cubin"])
        code = parse(disassembled(path, triton.knobs.nvidia.nvdisasm.path))
    return code, *resources_of(kernel.asm["cubin"]), kernel.metadata.shared


def without(code: Code, functions: Sequence[str]) -> Code:
    """Return the code as programs run it that leave out what is in these functions."""
    runs = [
        runs and not any(place(frame).function in functions for frame in ins.frames)
        for ins, runs in zip(code.instructions, code.runs, strict=True)
    ]
    return Code(code.instructions, runs, code.loops)


def executed_by_kind(code: Code, trips: Trips) -> dict[str, int]:
    """Return how many instructions of each kind a warp executes."""
    sums = dict.fromkeys(KINDS, 0.0)
    for ins, times in zip(code.instructions, code.executed(trips), strict=True):
        sums[ins.kind] += times
    return {kind: round(much) for kind, much in sums.items() if much}


def count_launch(launch: Launch) -> dict[str, Any]:
    """Return what a warp of a launch executes by kind, and the launch's calculated time."""
    code, registers, spilled, shared = machine_code(launch)
    code = without(code, _OTHER_PROGRAMS)

    def trips(loop: Loop) -> float:
        left_out = any(place(frame).function in _OTHER_PROGRAMS for frame in loop.frames)
        return 0.0 if left_out else trips_of(launch.args, loop)

    programs = programs_of(launch)
    found: LaunchModel = launch_model(
        code, trips, warps=launch.num_warps, registers=registers, shared_bytes=shared,
        programs=programs, rates=H200,
    )  # fmt: skip
    return {
        "calculated_us": round(found.us, 2), "chain_us": round(found.chain_us, 2),
        "busy_us": {name: round(us, 2) for name, us in found.busy_us.items()},
        "programs": programs, "warps": launch.num_warps, "registers": registers,
        "spilled_bytes": spilled, "shared_bytes": shared, "programs_an_sm": found.resident,
        "executed_a_warp": executed_by_kind(code, trips),
    }  # fmt: skip


def measured(path: Path, launches: Mapping[str, Launch]) -> dict[str, float]:
    """Return each launch's microseconds of a timeline; raise ValueError where it has others."""
    rows = _LAUNCH_OF_TIMELINE.findall(path.read_text(encoding="utf-8"))
    kernels = [launch.kernel.fn.__name__ for launch in launches.values()]
    if [kernel for _, kernel in rows] != kernels:
        raise ValueError(f"{path} has other launches than a step of today's fused backbone")
    return {name: float(us) for name, (us, _) in zip(launches, rows, strict=True)}


def report(timeline: Path | None) -> dict[str, Any]:
    """Return all that is written as JSON."""
    launches = step_launches(DENSENET, torch.bfloat16)
    times = measured(timeline, launches) if timeline else {}
    rows = {}
    for name, launch in launches.items():
        rows[name] = count_launch(launch)
        if name in times:
            rows[name]["measured_us"] = times[name]
        print(f"{name}: {rows[name]['calculated_us']} us calculated", flush=True)
    return {
        "what": "DenseNet-DS, batch 128, bf16, fused backbone, sm_90",
        "triton": triton.__version__,
        "timeline": timeline.parent.name if timeline else None,
        "launches": rows,
        "rates": {name: rate._asdict() for name, rate in H200.items()},
    }


def _in_groups(found: Mapping[str, Any], key: str) -> dict[str, float]:
    sums = {}
    for group, starts in _GROUPS.items():
        rows = [row for name, row in found["launches"].items() if name.startswith(starts)]
        sums[group] = sum(row.get(key, 0.0) for row in rows)
    return sums


def page(found: Mapping[str, Any], picture: str) -> Iterator[str]:
    """Yield the report as markdown."""
    launches = found["launches"]
    yield from ("# A step with the fused backbone, launch by launch", "")
    yield f"{found['what']}. Counted from the machine code of Triton {found['triton']} by"
    yield "`python bench/gpu/count_sass.py`. The model's times are calculated, `bench/gpu/model.py`"
    yield "says how; chain and pipes are its parts. Instructions are those that a warp executes."
    if found["timeline"]:
        total, own = (
            sum(row[key] for row in launches.values()) for key in ("measured_us", "calculated_us")
        )
        errors = [abs(r["calculated_us"] / r["measured_us"] - 1) for r in launches.values()]
        yield f"Measured times are those of `bench/results/gpu/{found['timeline']}`."
        yield ""
        middle, worst = (f"{100 * error:.0f} %" for error in (median(errors), max(errors)))
        yield f"All launches: **{total:,.0f} us measured, {own:,.0f} us calculated**; a launch's"
        yield f"error is {middle} in the median, {worst} at most."
    yield from ("", f"![Time by part of the step]({picture})", "")
    rows = []
    for name, row in launches.items():
        busy = row["busy_us"]
        counts = row["executed_a_warp"]
        rows.append([
            name, f"{row['measured_us']:.1f}" if "measured_us" in row else "-",
            f"{row['calculated_us']:.1f}", f"{row['chain_us']:.1f}",
            *(f"{busy[pipe]:.1f}" for pipe in ("issue", "tensor", "shared", "l2")),
            f"{row['programs']}", f"{row['programs_an_sm']}", f"{row['registers']}",
            f"{sum(counts.values()):,}",
            *(f"{counts.get(kind, 0):,}" for kind in KINDS),
        ])  # fmt: skip
    heads = (
        "launch", "us, measured", "us, calculated", "chain", "issue", "tensor", "shared", "L2",
        "programs", "an SM holds", "registers", "instructions", *KINDS,
    )  # fmt: skip
    yield from table(heads, rows)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw, for each part of a step, the measured time above the calculated one."""
    calculated, timed = _in_groups(found, "calculated_us"), _in_groups(found, "measured_us")
    names, values, styles = [], [], []
    for group, us in calculated.items():
        if found["timeline"]:
            names.append(group)
            values.append(timed[group])
            styles.append(OURS)
        names.append("" if found["timeline"] else group)
        values.append(us)
        styles.append(RIVAL)
    figure = new_figure(8.5, 0.9 + 0.24 * len(names))
    axis = figure.subplots()
    clean(axis, f"A step with the fused backbone, {found['what'].split(', ')[1]}, bf16", grid="x")
    bars(axis, names, values, [f"{value:.0f}" for value in values], styles)
    axis.set_xlabel("microseconds on an H200 (filled: measured, hatched: calculated from its code)")
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, calculate and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--without-timeline", action="store_true", help="of another Triton")
    parser.add_argument("--out", type=Path, required=True, help="path without a suffix")
    options = parser.parse_args(arguments)
    found = report(None if options.without_timeline else TIMELINE)
    text = "\n".join(page(found, f"{options.out.name}.png")) + "\n"
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    options.out.with_suffix(".md").write_text(text, "utf-8")
    draw(found, options.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
