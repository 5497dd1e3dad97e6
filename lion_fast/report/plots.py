"""The pictures of a study's report: curves, their distance to the baseline, seeds, gradients."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lion_fast.config import TrainConfig
from lion_fast.figures import (
    INK,
    OURS,
    PALE,
    RIVAL,
    STYLES,
    Style,
    clean,
    drawn,
    mark_sizes,
    new_figure,
    save,
)
from lion_fast.output import complain
from lion_fast.report.comparisons import STEPS, VariantRow, compare_variants
from lion_fast.report.growth import EARLY_STEPS, ON_THE_LINE, growth_fits, lines, shows_lines
from lion_fast.report.paper import published_steps
from lion_fast.report.results import Run, StudyResults
from lion_fast.resolutions import Resolutions
from lion_fast.study.labels import Variant, VariantKey

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 8.5
_SEED_MARKERS = "os^vPXD*"
_ACCURACY = "train_accuracy_windowed"


def draw_study(results: StudyResults, out: Path) -> dict[str, Path | None]:
    """Draw every picture to `out`; return its path by title, None where runs do not fill it.

    None too where it cannot be drawn, which standard error has a line of. Runs on masks drew their
    own, of which the first seed's are taken where the run folders are here.
    """
    pictures: dict[str, tuple[str, Callable[[StudyResults, Path], bool]]] = {
        "Training accuracy, and the step at which each seed reaches its target": (
            "curves",
            draw_curves,
        ),
        "Training accuracy less the baseline's, of the same seed": ("difference", draw_difference),
        "Steps to the target, seed by seed": ("seeds", draw_seeds),
        "Gradient ratio and auxiliary head norms": ("gradients", draw_gradients),
        "Norm of zeroed heads over t times that after one update: 1 is Proposition 2's line": (
            "growth",
            draw_growth,
        ),
    }
    found: dict[str, Path | None] = {}
    for title, (name, draw) in pictures.items():
        path = out / f"{results.study.name}_{name}.png"
        found[title] = None
        with drawn(path.name, complain):
            found[title] = path if draw(results, path) else None
    for number, variant in enumerate(results.study.variants):
        for run in results.of(variant)[:1]:
            masks = Path(run.summary.get("run", "")) / "masks.png"
            if masks.is_file():
                title = f"What heads make of test images: {results.study.label(variant)}"
                path = out / f"{results.study.name}_masks{number}.png"
                with drawn(path.name, complain):
                    shutil.copyfile(masks, path)
                    found[f"{title}, seed {run.config.seed}"] = path
    return found


def _styles(results: StudyResults) -> dict[VariantKey, Style]:
    """Return a style by method: the first variant of a group is drawn as the rival."""
    return {method: _style(index) for index, method in enumerate(results.methods)}


def _style(index: int) -> Style:
    """Return the style of the line `index` of a panel; beyond those there are, a mixture of two."""
    order = (RIVAL, OURS, *STYLES[2:])
    style, other = (order[number % len(order)] for number in (index, index + index // len(order)))
    return style._replace(marker=other.marker, dashes=other.dashes)


class _Line(NamedTuple):
    """A variant in a panel."""

    variant: Variant
    curves: Sequence[np.ndarray]
    """One per seed, from step 1 on; NaN before there is a value."""
    crossings: Sequence[int]
    """Steps at which seeds reach their target."""
    changes: Mapping[int, str]
    """In words, from which step on images are of another size."""


def draw_curves(results: StudyResults, path: Path) -> bool:
    """Draw the mean over the seeds of each variant, from the lowest to the highest as a band."""
    panels = {
        title: [
            _Line(
                variant,
                [100 * run.metrics[_ACCURACY] for run in runs],
                [s for run in runs if (s := run.summary["steps_to_target"]) is not None],
                _changes(runs[0].config),
            )
            for variant in variants
            if (runs := results.of(variant))
        ]
        for title, variants in results.groups.items()
    }
    base = results.study.base
    what = f"training accuracy, {base.window} steps (%)"
    return _draw_lines(results, path, panels, what, 100 * base.target_accuracy)


def draw_difference(results: StudyResults, path: Path) -> bool:
    """Draw each variant's curve less its baseline's of the same seed: mean and range."""
    panels: dict[str, list[_Line]] = {}
    for title, variants in results.groups.items():
        panels[title] = []
        for variant in variants:
            baseline = results.study.baseline_of(variant)
            theirs = [] if baseline is None else results.of(baseline)
            of_seed = {run.config.seed: run.metrics[_ACCURACY] for run in theirs}
            gaps = [
                100 * np.subtract(*_cut([run.metrics[_ACCURACY], of_seed[run.config.seed]]))
                for run in results.of(variant)
                if run.config.seed in of_seed
            ]
            config = replace(results.study.base, **variant)
            panels[title].append(_Line(variant, gaps, (), _changes(config)))
    return _draw_lines(results, path, panels, "points above the baseline", 0.0)


def _draw_lines(
    results: StudyResults,
    path: Path,
    panels: Mapping[str, Sequence[_Line]],
    what: str,
    level: float,
) -> bool:
    """Draw panels of lines with a level across; return whether there was a line."""
    panels = {title: drawn for title, lines in panels.items() if (drawn := _drawable(lines))}
    if not panels:
        return False
    num_columns = 1 if len(panels) == 1 else 2 if len(panels) <= 6 else 4
    num_rows = math.ceil(len(panels) / num_columns)
    figure = new_figure(WIDTH, num_rows * (3.4 if num_columns < 4 else 2.4))
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    styles = _styles(results)
    for place, (axis, (title, found)) in enumerate(zip(axes, panels.items(), strict=False)):
        title = title.replace(" ", "\n") if num_columns == 4 else title
        clean(axis, title, grid="y")
        axis.axhline(level, color=INK, linewidth=0.8)
        for line in found:
            style = styles[results.method_of(line.variant)]
            _draw_line(axis, line, results.short_label(line.variant), style, level)
        axis.set_xlabel("step")
        if place % num_columns == 0:
            axis.set_ylabel(what)
        if place == 0 or num_columns < 4:
            axis.legend(frameon=False, fontsize=8)
    save(figure, path)
    return True


def _changes(config: TrainConfig) -> dict[int, str]:
    return Resolutions.parse(config.resolutions).change_words()


def _drawable(lines: Sequence[_Line]) -> list[_Line]:
    """Return the lines of at least two points."""

    def num_points(line: _Line) -> int:
        return (~np.isnan(_cut(line.curves))).sum(axis=1).min()

    return [line for line in lines if line.curves and num_points(line) > 1]


def _cut(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Return the curves as rows, as long as the shortest of them."""
    length = min(map(len, curves))
    return np.stack([curve[:length] for curve in curves])


def _draw_line(axis: "Axes", line: _Line, name: str, style: Style, level: float) -> None:
    curves = _cut(line.curves)
    steps = np.arange(1, 1 + curves.shape[1])
    low, high = curves.min(axis=0), curves.max(axis=0)
    axis.fill_between(steps, low, high, color=style.color, alpha=0.15, linewidth=0)
    axis.plot(
        steps, curves.mean(axis=0), color=style.color, linestyle=style.dashes, linewidth=1.6,
        label=f"{name} (n = {len(curves)})",
    )  # fmt: skip
    mark_sizes(axis, line.changes, style.color)
    for crossing in line.crossings:
        axis.plot(
            crossing, level, style.marker, markersize=6, color="white",
            markeredgecolor=style.color, markeredgewidth=1.5, zorder=5,
        )  # fmt: skip


def draw_seeds(results: StudyResults, path: Path) -> bool:
    """Draw one dot per seed and the mean as a bar; return whether any run reached its target."""
    rows = [row for row in compare_variants(results, STEPS) if row.num_reached]
    if not rows:
        return False
    figure = new_figure(WIDTH, 1.2 + 0.36 * len(rows))
    axis = figure.subplots()
    clean(axis, grid="x")
    markers = dict(zip(results.study.seeds, cycle(_SEED_MARKERS), strict=False))
    for place, row in enumerate(rows):
        _seed_dots(axis, place, row, markers, is_last=place == len(rows) - 1)
    labels = [
        row.label
        if row.num_reached == len(row.values)
        else f"{row.label} ({row.num_reached} of {len(row.values)} reach it)"
        for row in rows
    ]
    axis.set_yticks(range(len(rows)), labels)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    star = any(published_steps(row.config) for row in rows)
    axis.set_xlabel("steps to the target (bar: mean" + star * "; grey star: the paper's mean" + ")")
    axis.legend(frameon=False, fontsize=8, ncols=min(len(markers), 5), loc="lower left",
                bbox_to_anchor=(0, 1))  # fmt: skip
    save(figure, path)
    return True


def _seed_dots(
    axis: "Axes", place: int, row: VariantRow, markers: dict[int, str], *, is_last: bool
) -> None:
    style = RIVAL if row.comparison is None else OURS
    present = {seed: value for seed, value in row.values.items() if value is not None}
    axis.plot([mean(present.values())] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=1.5)
    for seed, value in present.items():
        axis.plot(
            value, place, markers[seed], markersize=7, color="white",
            markeredgecolor=style.color, markeredgewidth=1.6,
        )  # fmt: skip
    if is_last:
        for seed, marker in markers.items():
            axis.plot([], [], marker, color="white", markeredgecolor=INK, label=f"seed {seed}")
    paper = published_steps(row.config)
    if paper is not None:
        axis.plot(mean(paper.values()), place, "*", markersize=12, color=PALE, markeredgecolor=INK)


def draw_gradients(results: StudyResults, path: Path) -> bool:
    """Draw gradient ratio and head norms over steps; return whether any run was probed."""

    def probed(variant: Variant) -> list[Run]:
        return [run for run in results.of(variant) if len(run.probes.get("step", ()))]

    panels = {
        title: found
        for title, variants in results.groups.items()
        if (found := [variant for variant in variants if probed(variant)])
    }
    if not panels:
        return False
    styles = _styles(results)
    figure = new_figure(WIDTH, 3.2 * len(panels))
    grid = figure.subplots(len(panels), 2, squeeze=False)
    for (ratio_axis, norm_axis), (title, variants) in zip(grid, panels.items(), strict=True):
        clean(ratio_axis, title, grid="y")
        clean(norm_axis, "auxiliary heads", grid="y")
        for variant in variants:
            label, runs = results.short_label(variant), probed(variant)
            style = styles[results.method_of(variant)]
            for run in runs:
                ratio_axis.plot(
                    run.probes["step"], run.probes["gradient_ratio"], color=style.color,
                    linewidth=0.5, alpha=0.5,
                )  # fmt: skip
            length = min(len(run.probes["step"]) for run in runs)
            ratios = np.stack([run.probes["gradient_ratio"][:length] for run in runs])
            ratio_axis.plot(
                runs[0].probes["step"][:length], ratios.mean(axis=0), color=style.color,
                linestyle=style.dashes, linewidth=1.8, label=f"{label} (n = {len(runs)})",
            )  # fmt: skip
            _norms(norm_axis, runs, style, label)
        ratio_axis.set(xlabel="step", ylabel="auxiliary / main gradient norm", ylim=(0, None))
        norm_axis.set(xlabel="step", ylabel="Frobenius norm of the weight", ylim=(0, None))
        for axis in (ratio_axis, norm_axis):
            axis.legend(frameon=False, fontsize=8)
    save(figure, path)
    return True


def _norms(axis: "Axes", runs: Sequence[Run], style: Style, label: str) -> None:
    """Draw each head's mean norm over the seeds, and the mean of the fitted lines."""
    length = min(len(run.probes["step"]) for run in runs)
    steps = runs[0].probes["step"][:length]
    for index, name in enumerate(runs[0].head_norms):
        norms = np.stack([run.head_norms[name][:length] for run in runs]).mean(axis=0)
        axis.plot(
            steps, norms, color=style.color, linestyle=style.dashes, linewidth=1.6,
            marker=_SEED_MARKERS[index], markevery=max(1, length // 8), markersize=5,
            markerfacecolor="white", label=f"{label}, head {index}",
        )  # fmt: skip
        if runs[0].config.gradient_ratio_every == 1 and runs[0].config.init.startswith("lion"):
            fits = [growth_fits(run)[name] for run in runs]
            early = steps[steps <= EARLY_STEPS]
            line = mean(f.intercept for f in fits) + mean(f.slope for f in fits) * early
            axis.plot(early, line, color=INK, linewidth=0.9, zorder=5)


def draw_growth(results: StudyResults, path: Path) -> bool:
    """Draw each head's norm over its line, a curve a run; return whether descent trained any."""
    if not shows_lines(results):
        return False
    drawn = [
        (results.study.label(variant), [lines(run) for run in results.of(variant)])
        for variant in results.study.variants
    ]
    heads = list(dict.fromkeys(h for _, runs in drawn for run in runs for h in run))
    figure = new_figure(WIDTH, 3.4)
    axes = figure.subplots(1, len(heads), squeeze=False, sharey=True)[0]
    for index, (axis, head) in enumerate(zip(axes, heads, strict=True)):
        clean(axis, f"auxiliary head {index}", grid="y")
        axis.axhspan(1 - ON_THE_LINE, 1 + ON_THE_LINE, color=PALE, alpha=0.5, linewidth=0)
        axis.axhline(1, color=INK, linewidth=0.8)
        for number, (label, runs) in enumerate(drawn):
            style = _style(number)
            for place, line in enumerate(run[head] for run in runs if head in run):
                axis.plot(
                    line.updates, line.ratio, color=style.color, linestyle=style.dashes,
                    linewidth=1.3, label=f"{label} (n = {len(runs)})" if not place else None,
                )  # fmt: skip
        axis.set(xlabel="updates t", ylim=(0, None))
    axes[0].set_ylabel("norm / (t x norm after one update)")
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)
    return True
