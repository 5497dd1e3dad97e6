"""Where the time of the persistent kernels would go: `python bench/gpu/count_persistent.py`.

    python bench/gpu/count_persistent.py --out bench/results/counts/persistent-H200

Compiles both kernels for sm_90, counts by phase what a warp runs (`walk.py`), and writes OUT.json,
OUT.md and OUT.png: counts, a time that is calculated and not measured, the rates that it rests on,
and what it would be if one of them were twice as bad. Needs NVRTC and nvdisasm and no GPU.
"""

import argparse
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

from gpu.persistent_rules import BACKWARD, FORWARD
from gpu.rates import H200, Rates
from gpu.sass import Code, disassembled, parse
from gpu.walk import Walk
from lion_fast.figures import OURS, bars, clean, new_figure, save
from lion_fast.kernels.persistent.aot import PAPER
from lion_fast.kernels.persistent.compile import compiled, definitions_of
from lion_fast.kernels.persistent.plan import PersistentPlan
from lion_fast.report.markdown import table

COUNTED = ("issued", "tensor", "shared", "l2_bytes", "barriers")
"""of a phase's numbers: those that follow from the code alone, whatever the rates are"""
_PASSES = {"forward": FORWARD, "backward": BACKWARD}
_BETTER_LARGE = ("mma_share", "l2_bytes")
"""rates that are worse where they are less"""
_NOT_ASKED = ("sms", "clock", "start", "memory")
"""what the card is, and rates that these kernels do not rest on"""


def nvrtc_version() -> str:
    """Return the version of the NVRTC that torch's wheels for CUDA 13 bring; else "unknown"."""
    try:
        return importlib.metadata.version("nvidia-cuda-nvrtc")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def codes(nvdisasm: str) -> dict[str, Code]:
    """Return both kernels' machine code for DenseNet-DS at batch 128, bf16, sm_90."""
    definitions = definitions_of(PersistentPlan(PAPER).definitions, torch.bfloat16)
    cubins = compiled(definitions, (9, 0))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, rules in _PASSES.items():
            path = Path(folder, "kernel.cubin")
            path.write_bytes(cubins[rules.kernel])
            found[name] = parse(disassembled(path, nvdisasm))
    return found


def passes(code: dict[str, Code], rates: Rates = H200) -> dict[str, Walk]:
    """Walk both kernels."""
    return {name: Walk(code[name], rules, rates) for name, rules in _PASSES.items()}


def total_us(walks: dict[str, Walk], rates: Rates) -> float:
    """Return the calculated time of both launches."""
    phases = sum(phase.us for walk in walks.values() for phase in walk.phases.values())
    return phases + len(walks) * rates.cooperative_start.value


def counted(walks: dict[str, Walk]) -> dict[str, dict[str, dict[str, float]]]:
    """Return pass -> phase -> what was counted."""
    return {
        name: {
            phase: {what: round(getattr(found, what), 2) for what in COUNTED}
            for phase, found in walk.phases.items()
            if found.issued
        }
        for name, walk in walks.items()
    }


def twice_as_bad(code: dict[str, Code]) -> dict[str, float]:
    """Return the calculated time if one rate were twice as bad, the worst first."""
    found = {}
    for name, _ in H200.items():
        if name not in _NOT_ASKED:
            rates = H200.changed(name, 0.5 if name in _BETTER_LARGE else 2.0)
            found[name] = round(total_us(passes(code, rates), rates), 1)
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def report(nvdisasm: str) -> dict[str, Any]:
    """Return all that is written as JSON."""
    code = codes(nvdisasm)
    walks = passes(code)
    unknown = sorted({each for walk in walks.values() for each in walk.unknown})
    return {
        "what": "DenseNet-DS, batch 128, bf16, sm_90: counted and calculated, not measured",
        "nvrtc": nvrtc_version(),
        "total_us": round(total_us(walks, H200), 1),
        "us": {
            name: {phase: round(found.us, 2) for phase, found in walk.phases.items()}
            for name, walk in walks.items()
        },
        "counts": counted(walks),
        "taken_to_run_once": [f"{each.function}: {each.text}" for each in unknown],
        "if_twice_as_bad_us": twice_as_bad(code),
        "rates": {name: rate._asdict() for name, rate in H200.items()},
    }


def page(found: dict[str, Any], picture: str) -> Iterator[str]:
    """Yield the report as markdown."""
    yield from ("# The persistent kernels' time by phase, calculated", "")
    yield f"{found['what']}. Made by"
    yield "`python bench/gpu/count_persistent.py`, `bench/gpu/walk.py` says how. Instructions and"
    yield "clocks are a warp's, on average over the 16."
    yield from ("", f"![Time by phase]({picture})", "")
    yield f"Both launches: **{found['total_us']:.0f} us, calculated**."
    yield ""
    rows = []
    for name, phases in found["us"].items():
        for phase, us in phases.items():
            counts = found["counts"][name].get(phase, dict.fromkeys(COUNTED, 0.0))
            if us >= 0.05:
                numbers = [f"{counts[what]:,.0f}" for what in ("issued", "tensor", "shared")]
                kib = f"{counts['l2_bytes'] / 1024:,.0f}"
                rows.append([name, phase, f"{us:.1f}", *numbers, kib, f"{counts['barriers']:.0f}"])
    heads = ("pass", "phase", "us, calculated", "instructions", "tensor clocks", "shared clocks",
             "KiB to or from L2", "barriers")  # fmt: skip
    yield from table(heads, rows, 2)
    worst = list(found["if_twice_as_bad_us"].items())
    three = ", ".join(name for name, _ in worst[:3])
    yield ""
    yield f"What it rests on most is {three}: the calculated time if a rate were twice as bad."
    yield ""
    rates = found["rates"]
    yield from table(
        ("rate", "value", "source", "us, calculated"),
        [
            [name, f"{rates[name]['value']:g} {rates[name]['unit']}", rates[name]["source"],
             f"{us:.0f}"]
            for name, us in worst
        ], 3,
    )  # fmt: skip
    if found["taken_to_run_once"]:
        yield from ("", "Loops that no rule is about, taken to run once:", "")
        yield from (f"- `{each}`" for each in found["taken_to_run_once"])


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the time of each phase that takes one."""
    rows = [
        (f"{name}: {phase}", us)
        for name, phases in found["us"].items()
        for phase, us in phases.items()
        if us >= 0.5
    ]
    figure = new_figure(8.5, 0.9 + 0.28 * len(rows))
    axis = figure.subplots()
    title = f"Persistent backbone, {found['total_us']:.0f} us calculated, not measured"
    clean(axis, title, grid="x")
    bars(
        axis, [name for name, _ in rows], [us for _, us in rows], [f"{us:.1f}" for _, us in rows],
        [OURS] * len(rows),
    )  # fmt: skip
    axis.set_xlabel("microseconds, calculated for an H200 from machine code")
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, calculate and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="path without a suffix")
    options = parser.parse_args(arguments)
    from triton import knobs

    found = report(knobs.nvidia.nvdisasm.path)
    text = "\n".join(page(found, f"{options.out.name}.png")) + "\n"
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    options.out.with_suffix(".md").write_text(text, "utf-8")
    draw(found, options.out.with_suffix(".png"))
    print(f"{found['total_us']:.0f} us, calculated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
