"""What bench/gpu/card.py found on a GPU: the JSON lines of a folder of results/gpu, read.

A folder is one card on one day: `*.jsonl`, a finding a line, and `README.md`, whose first paragraph
after the title says what code that was where the commit in the findings does not. Stages write as
bench/gpu/card.py says; of 2026-11-27 are the name `step` for `stage` and the short ones of `_OLD`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lion_fast.errors import UserError
from support.harness import Samples, collect

_OLD = {"r": "recipe", "sec": "seconds", "train_s": "train_seconds"}


@dataclass(frozen=True)
class Card:
    """One folder."""

    name: str
    findings: tuple[dict[str, Any], ...]
    provenance: str

    def of(self, stage: str) -> list[dict[str, Any]]:
        """Return the stage's findings in order."""
        return [found for found in self.findings if found.get("stage") == stage]

    @property
    def machine(self) -> dict[str, Any]:
        """What it ran on."""
        return next((found for found in self.findings if "gpu" in found), {})

    @property
    def title(self) -> str:
        """Card and date."""
        return f"{self.machine.get('gpu', 'GPU')}, {self.name[:10]}"


def read_card(folder: Path) -> Card:
    """Return the findings of a folder; raise UserError where it holds none or a damaged one."""
    findings = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                findings.append(_finding(json.loads(line)))
            except (ValueError, AttributeError):
                raise UserError(f"{path}: line {number} is no finding: drop it") from None
    if not findings:
        raise UserError(f"{folder}: holds no finding of bench/gpu/card.py (*.jsonl)")
    readme = folder / "README.md"
    told = readme.read_text(encoding="utf-8").split("\n\n")[1:2] if readme.exists() else []
    return Card(folder.name, tuple(findings), "\n".join(told))


def _finding(line: dict[str, Any]) -> dict[str, Any]:
    found = {_OLD.get(key, key): value for key, value in line.items()}
    if "stage" not in found:
        found["stage"] = found.pop("step", "runs")
    return found


def samples_of(card: Card) -> dict[str, Samples]:
    """Return milliseconds a step by group of what was timed in turn, where rounds were written."""
    groups: dict[str, list[dict[str, float]]] = {}
    for found in card.findings:
        if "round_ms" in found:
            groups.setdefault(found["stage"], []).append(found["round_ms"])
    return {stage: collect(rows) for stage, rows in groups.items()}


class TimeRatio(NamedTuple):
    """The median over rounds of one's time over another's, with its interval of 95 %."""

    name: str
    """`a / b`"""
    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class StepTimes:
    """What was timed in turn."""

    ms: dict[str, tuple[float, int]]
    """name -> (median milliseconds a step, rounds)"""
    ratios: tuple[TimeRatio, ...]


def step_times(card: Card) -> StepTimes:
    """Return the times of all steps: computed from rounds, where rounds were written."""
    times: dict[str, tuple[float, int]] = {}
    ratios: list[TimeRatio] = []
    for samples in samples_of(card).values():
        names = list(samples.seconds)
        times |= {name: (samples.median(name), len(samples.seconds[name])) for name in names}
        ratios += [TimeRatio(f"{a} / {b}", *samples.ratio(a, b)) for a, b in _compared(names)]
    for found in card.findings:
        if "rounds" in found and "ms" in found:
            times |= {name: (ms, found["rounds"]) for name, ms in found["ms"].items()}
        if isinstance(found.get("ratio"), str):
            values = (found[key] for key in ("ratio", "median", "low", "high", "n"))
            ratios.append(TimeRatio(*values))
        for each in found.get("ratios") or ():
            values = (each[key] for key in ("median_ratio", "low", "high", "num_rounds"))
            ratios.append(TimeRatio(f"{each['a']} / {each['b']}", *values))
    return StepTimes(times, tuple(ratios))


def _compared(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what is set against what: everything over the fastest of ours that ran with it."""
    for ours in ("fast_fused", "fused", "graph", "he"):
        if ours in names:
            yield from ((name, ours) for name in names if name != ours)
            return


def runs_by_recipe(card: Card) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the runs that ended, by recipe and initialiser, in order."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for found in card.findings:
        if "recipe" in found and "error" not in found:
            init = found.get("init") or ("lion_dg" if "lion" in found["recipe"] else "he")
            runs.setdefault((found["recipe"], init), []).append(found)
    return runs


def baseline_of(
    recipe: str, init: str, runs: Mapping[tuple[str, str], object]
) -> tuple[str, str] | None:
    """Return what a recipe is set against: He-init of the same, or what ran by turns with it."""
    if init != "he" and (recipe, "he") in runs:
        return recipe, "he"
    other = {
        "paper lion_dg": "paper he",
        "fast v2 fused": "fast fused",
        "fast fused": "fast",
        "fast fewer": "fast",
        "fast persistent": "fast fused beside",
    }.get(recipe)
    return (other, "he") if other and (other, "he") in runs else None
