"""The three pictures of benchmark results, each with one row of panels per machine."""

import math
import re
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from lion_fast.figures import (
    INK,
    OURS,
    PALE,
    RIVAL,
    STYLES,
    Style,
    bars,
    clean,
    new_figure,
    save,
    spread,
)
from lion_fast.report.markdown import seconds
from report.results import BenchmarkRow, MachineResults, Ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.5


def draw_all(machines: Sequence[MachineResults], out: Path) -> dict[str, Path | None]:
    """Draw every picture to `out`; return its path by title, None where nothing was measured."""
    pictures: dict[str, tuple[str, Callable[[Sequence[MachineResults], Path], bool]]] = {
        "Step time of every rival and ours": ("step_time.png", draw_step_time),
        "Overhead of every balancing method and of LION-DG": ("overhead.png", draw_overhead),
        "Images per second against steps per run of the loader": ("loaders.png", draw_loaders),
    }
    return {
        title: out / name if draw(machines, out / name) else None
        for title, (name, draw) in pictures.items()
    }


class Bar(NamedTuple):
    """A training step."""

    name: str
    seconds: float
    is_ours: bool


def step_bars(rows: Sequence[BenchmarkRow]) -> list[Bar]:
    """Return the steps of bench_step at the smallest batch, slowest first.

    A function timed beside a row's subject is left out where it has a row of its own.
    """
    rows = [row for row in rows if row.benchmark == "bench_step"]
    rows = [row for row in rows if _batch_size(row) == _smallest_batch(rows)]
    impls = {row.impl for row in rows}
    found: dict[str, Bar] = {}
    for row in rows:
        for name, time in (row.median_seconds_of or {row.impl: row.median}).items():
            if name == row.impl:
                name = " ".join([name, *_varying(row, rows, ("loader", "dtype", "arch"))])
            elif name in impls:
                continue
            found.setdefault(name, Bar(name, time, row.is_ours(name.split()[0])))
    return sorted(found.values(), key=lambda bar: -bar.seconds)


def _smallest_batch(rows: Sequence[BenchmarkRow]) -> int:
    return min(_batch_size(row) for row in rows if row.benchmark == "bench_step")


def _batch_size(row: BenchmarkRow) -> int:
    found = re.search(r"\bB(\d+)", row.extra["shape"])
    return int(found[1]) if found else 0


def draw_step_time(machines: Sequence[MachineResults], path: Path) -> bool:
    """Draw bars of step time; return whether there were any."""
    panels = [(m, found) for m in machines if (found := step_bars(m.rows))]
    if not panels:
        return False
    figure, axes = _stack([len(found) for _, found in panels])
    for axis, (results, found) in zip(axes, panels, strict=True):
        clean(axis, _where(results), grid="x")
        bars(
            axis,
            [bar.name for bar in found],
            [1e3 * bar.seconds for bar in found],
            [seconds(bar.seconds) for bar in found],
            [OURS if bar.is_ours else RIVAL for bar in found],
        )
        axis.set_xlabel(
            f"milliseconds per training step, batch {_smallest_batch(results.rows)} "
            "(filled: ours, hatched: rivals)"
        )
    save(figure, path)
    return True


def _stack(num_lines: Sequence[int]) -> tuple["Figure", Sequence["Axes"]]:
    """Return a figure of panels from the top down, high enough for their numbers of lines."""
    heights = [0.9 + 0.28 * num for num in num_lines]
    figure = new_figure(WIDTH, sum(heights))
    grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    return figure, list(grid[:, 0])


class Cost(NamedTuple):
    """A ratio of step times, named."""

    name: str
    ratio: Ratio
    is_ours: bool


def costs(rows: Sequence[BenchmarkRow], benchmark: str) -> list[Cost]:
    """Return the ratios of a benchmark that have an interval."""
    rows = [row for row in rows if row.benchmark == benchmark]
    keys = ("arch", "shape", "impl", "dtype", "mode")
    return [
        Cost(" ".join([ratio.a, *_varying(row, rows, keys)]), ratio, row.is_ours(ratio.a))
        for row in rows
        for ratio in row.ratios
        if ratio.num_rounds > 1
    ]


def draw_overhead(machines: Sequence[MachineResults], path: Path) -> bool:
    """Draw ratios of step times with their intervals; return whether there were any.

    LION-DG stands in a panel of its own: on the scale of its rivals its interval is a point.
    """
    titles = {"bench_overhead": "LION-DG", "bench_balancing": "run-time balancing"}
    panels = [
        (f"{title}, {_where(results)}", found)
        for results in machines
        for benchmark, title in titles.items()
        if (found := costs(results.rows, benchmark))
    ]
    if not panels:
        return False
    figure, axes = _stack([len(found) for _, found in panels])
    for axis, (title, found) in zip(axes, panels, strict=True):
        clean(axis, title, grid="x")
        _intervals(axis, found)
    save(figure, path)
    return True


def _intervals(axis: "Axes", found: Sequence[Cost]) -> None:
    others = dict.fromkeys(ratio.b for _, ratio, _ in found)
    bounds = {ratio.bound for _, ratio, _ in found}
    bound = bounds.pop() if len(bounds) == 1 else None
    if bound is not None:
        axis.axvspan(1 - bound, 1 + bound, color=PALE, alpha=0.35, linewidth=0)
    axis.axvline(1.0, color=INK, linewidth=1)
    for place, (_, ratio, is_ours) in enumerate(found):
        style = OURS if is_ours else RIVAL
        axis.plot([ratio.low, ratio.high], [place, place], color=style.color, linewidth=2.5)
        axis.plot(
            ratio.median, place, style.marker, markersize=6, color="white",
            markeredgecolor=style.color, markeredgewidth=1.8,
        )  # fmt: skip
        axis.annotate(
            f"{ratio.median:.3f}  [{ratio.low:.3f}, {ratio.high:.3f}]",
            (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK,
        )  # fmt: skip
    axis.set_yticks(range(len(found)), [cost.name for cost in found])
    axis.set_ylim(len(found) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.locator_params(axis="x", nbins=6)
    meant = "" if bound is None else f", grey: 1 ± {100 * bound:g} %"
    axis.set_xlabel(f"step time / step time of {' or '.join(others)}, 95 % interval{meant}")


class Rate(NamedTuple):
    """Images/s of a loader."""

    line: str
    """The loader; all its numbers of steps per run share one."""
    steps_per_run: int | None
    images_per_second: float
    is_ours: bool


def loader_rates(rows: Sequence[BenchmarkRow], op: str) -> list[Rate]:
    """Return the rates of an op of bench_loaders.

    A loader that the rows compare themselves with has the median over them, derived from the ratio
    of times within each row.
    """
    rates, beside = [], dict[str, list[float]]()
    for row in rows:
        rate, steps = row.extra.get("images_per_second"), row.extra.get("steps_per_run")
        if row.benchmark != "bench_loaders" or row.op != op or not rate:
            continue
        line = row.impl if steps else row.subject or row.extra.get("loader") or row.impl
        rates.append(Rate(line, steps, rate, row.is_ours(row.impl)))
        for other, time in row.median_seconds_of.items():
            if other != row.subject and row.is_ours(other):
                beside.setdefault(other, []).append(rate * row.median / time)
    known = {rate.line for rate in rates}
    return rates + [
        Rate(name, None, median(values), is_ours=True)
        for name, values in beside.items()
        if name not in known
    ]


def draw_loaders(machines: Sequence[MachineResults], path: Path) -> bool:
    """Draw images/s against steps per run, alone and feeding a step; return whether there were any.

    Loaders without runs of several steps are lines across.
    """
    ops = {"loader": "loader alone", "loader+step": "loader feeding a training step"}
    panels = [(m, {op: loader_rates(m.rows, op) for op in ops}) for m in machines]
    panels = [(m, rates) for m, rates in panels if any(rates.values())]
    if not panels:
        return False
    figure = new_figure(WIDTH, 3.4 * len(panels))
    grid = figure.subplots(len(panels), 2, squeeze=False)
    for axes, (results, rates) in zip(grid, panels, strict=True):
        styles = _styles([rate for found in rates.values() for rate in found])
        for axis, (op, title) in zip(axes, ops.items(), strict=True):
            clean(axis, f"{title}\n{_where(results)}", grid="y")
            if rates[op]:
                _rate_lines(axis, rates[op], styles)
            else:
                axis.set_axis_off()
                axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
    save(figure, path)
    return True


def _styles(rates: Sequence[Rate]) -> dict[str, Style]:
    """Return a style by line, ours in cold colours, rivals in warm ones."""
    first, second, third, *others = STYLES
    cold, warm = cycle([first, third]), cycle([second, *others])
    ours = {rate.line: rate.is_ours for rate in rates}
    return {line: next(cold if is_ours else warm) for line, is_ours in ours.items()}


def _rate_lines(axis: "Axes", rates: Sequence[Rate], styles: dict[str, Style]) -> None:
    axis.set(xscale="log", yscale="log", xlabel="steps per run", ylabel="images/s")
    ends: dict[str, float] = {}
    for name, style in styles.items():
        line = sorted((r.steps_per_run or 0, r.images_per_second) for r in rates if r.line == name)
        if not line:
            continue
        steps, values = zip(*line, strict=True)
        if steps[0]:
            axis.plot(steps, values, color=style.color, linestyle=style.dashes, marker=style.marker)
        else:
            axis.axhline(values[0], color=style.color, linestyle=style.dashes)
        ends[name] = values[-1]
    ticks = sorted({rate.steps_per_run for rate in rates if rate.steps_per_run}) or [1]
    axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axis.minorticks_off()
    axis.set_xlim(0.8 * ticks[0], 1.25 * ticks[-1])
    low, high = min(r.images_per_second for r in rates), max(r.images_per_second for r in rates)
    axis.set_ylim(0.6 * low, 1.7 * high)
    bottom, top = map(math.log10, axis.get_ylim())
    places = spread([(math.log10(y) - bottom) / (top - bottom) for y in ends.values()], 0.075)
    for (name, value), place in zip(ends.items(), places, strict=True):
        axis.annotate(
            name, (1.0, value), (1.04, place), xycoords=("axes fraction", "data"),
            textcoords="axes fraction", va="center", fontsize=9, color=INK,
            arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.7},
        )  # fmt: skip


def _where(results: MachineResults) -> str:
    return f"{results.machine.name}, {next(f for f in results.machine.facts if 'torch' in f)}"


def _varying(row: BenchmarkRow, rows: Sequence[BenchmarkRow], keys: Sequence[str]) -> list[str]:
    """Return the words of the row's settings that not all of the rows share."""
    words = []
    for key in keys:
        values = [str(other.extra.get(key, "")).split() for other in rows]
        common = set(values[0]).intersection(*values[1:])
        words += [word for word in str(row.extra.get(key, "")).split() if word not in common]
    return list(dict.fromkeys(words))
