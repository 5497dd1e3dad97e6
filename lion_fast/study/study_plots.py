"""The pictures of a study's report: curves, their distance to the baseline, seeds, gradients."""

import math
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from lion_fast.study.comparisons import STEPS, Row, compare_variants
from lion_fast.study.figures import (
    INK,
    OURS,
    PALE,
    RIVAL,
    STYLES,
    Style,
    clean,
    new_figure,
    save,
)
from lion_fast.study.grid import Variant
from lion_fast.study.paper import published_steps
from lion_fast.study.results import Run, StudyResults
from lion_fast.study.statements import EARLY_STEPS, growth_fits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 8.5
_SEED_MARKERS = "os^vPXD*"
_ACCURACY = "train_accuracy_windowed"


def draw_study(results: StudyResults, out: Path) -> dict[str, Path | None]:
    """Draw every picture to `out`; return its path by title, None where runs do not fill it."""
    pictures: dict[str, tuple[str, Callable[[StudyResults, Path], bool]]] = {
        "Training accuracy, and the step at which each seed reaches its target": (
            "curves",
            draw_curves,
        ),
        "Training accuracy less the baseline's, of the same seed": ("difference", draw_difference),
        "Steps to the target, seed by seed": ("seeds", draw_seeds),
        "Gradient ratio and auxiliary head norms": ("gradients", draw_gradients),
    }
    drawn = {}
    for title, (name, draw) in pictures.items():
        path = out / f"{results.study.name}_{name}.png"
        drawn[title] = path if draw(results, path) else None
    return drawn


def _styles(results: StudyResults) -> dict[str, Style]:
    """Return a style by short label: the first variant of a group is drawn as the rival."""
    labels = dict.fromkeys(map(results.short_label, results.study.variants))
    order = (RIVAL, OURS, *STYLES[2:])
    return {label: order[index % len(order)] for index, label in enumerate(labels)}


def _panels(results: StudyResults, wanted: Callable[[Variant], bool]) -> dict[str, list[Variant]]:
    groups = {
        title: [variant for variant in variants if wanted(variant)]
        for title, variants in results.groups.items()
    }
    return {title: variants for title, variants in groups.items() if variants}


def _axes(num: int, height: float) -> "list[Axes]":
    """Return `num` panels in one or two columns, or four where they are many."""
    columns = 1 if num == 1 else 2 if num <= 6 else 4
    num_rows = math.ceil(num / columns)
    figure = new_figure(WIDTH, height * num_rows)
    axes = figure.subplots(num_rows, columns, squeeze=False).ravel()
    for axis in axes[num:]:
        axis.set_axis_off()
    return list(axes[:num])


def draw_curves(results: StudyResults, path: Path) -> bool:
    """Draw the mean over the seeds of each variant, from the lowest to the highest as a band."""
    panels = _panels(results, lambda variant: bool(results.of(variant)))
    styles = _styles(results)
    axes = _axes(len(panels), 3.4)
    for axis, (title, variants) in zip(axes, panels.items(), strict=True):
        clean(axis, title, grid="y")
        target = 100 * results.of(variants[0])[0].summary["target_accuracy"]
        axis.axhline(target, color=INK, linewidth=0.8)
        for variant in variants:
            label, runs = results.short_label(variant), results.of(variant)
            style = styles[label]
            steps, curves = _aligned([run.metrics[_ACCURACY] for run in runs])
            _band(axis, steps, 100 * curves, style, f"{label} (n = {len(runs)})")
            crossings = [run.summary["steps_to_target"] for run in runs]
            for crossing in filter(None, crossings):
                axis.plot(
                    crossing, target, style.marker, markersize=6, color="white",
                    markeredgecolor=style.color, markeredgewidth=1.5, zorder=5,
                )  # fmt: skip
        axis.set_xlabel("step")
        axis.set_ylabel(f"training accuracy, {results.runs[0].config.window} steps (%)")
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    save(axes[0].figure, path)  # type: ignore[arg-type]
    return True


def _aligned(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps that all curves reach from where they begin, and the curves over them."""
    length = min(map(len, curves))
    stacked = np.stack([curve[:length] for curve in curves])
    whole = ~np.isnan(stacked).any(axis=0)
    return 1 + np.flatnonzero(whole), stacked[:, whole]


def _band(axis: "Axes", steps: np.ndarray, curves: np.ndarray, style: Style, label: str) -> None:
    if not len(steps):
        return
    low, high = curves.min(axis=0), curves.max(axis=0)
    axis.fill_between(steps, low, high, color=style.color, alpha=0.15, linewidth=0)
    axis.plot(
        steps, curves.mean(axis=0), color=style.color, linestyle=style.dashes, linewidth=1.6,
        label=label,
    )  # fmt: skip


def draw_difference(results: StudyResults, path: Path) -> bool:
    """Draw each variant's curve less its baseline's, paired by seed: mean and range."""
    pairs: dict[int, list[tuple[Run, Run]]] = {}
    for variant in results.study.variants:
        baseline = results.study.baseline_of(variant)
        theirs = {r.config.seed: r for r in results.of(baseline)} if baseline is not None else {}
        found = [(r, theirs[r.config.seed]) for r in results.of(variant) if r.config.seed in theirs]
        if found and any(_aligned(_curves(found))[0]):
            pairs[results.study.variants.index(variant)] = found
    panels = _panels(results, lambda variant: results.study.variants.index(variant) in pairs)
    if not panels:
        return False
    styles = _styles(results)
    axes = _axes(len(panels), 3.0)
    for axis, (title, variants) in zip(axes, panels.items(), strict=True):
        clean(axis, title, grid="y")
        axis.axhline(0, color=INK, linewidth=0.8)
        for variant in variants:
            found = pairs[results.study.variants.index(variant)]
            steps, curves = _aligned(_curves(found))
            gaps = 100 * (curves[0::2] - curves[1::2])
            label = results.short_label(variant)
            _band(axis, steps, gaps, styles[label], f"{label} (n = {len(found)})")
        axis.set_xlabel("step")
        axis.set_ylabel("points above the baseline")
        axis.legend(frameon=False, fontsize=8)
    save(axes[0].figure, path)  # type: ignore[arg-type]
    return True


def _curves(pairs: Sequence[tuple[Run, Run]]) -> list[np.ndarray]:
    return [run.metrics[_ACCURACY] for pair in pairs for run in pair]


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
    axis.set_xlabel("steps to the target (bar: mean; grey star: the paper's mean)")
    axis.legend(frameon=False, fontsize=8, ncols=len(markers), loc="lower left",
                bbox_to_anchor=(0, 1))  # fmt: skip
    save(figure, path)
    return True


def _seed_dots(
    axis: "Axes", place: int, row: Row, markers: dict[int, str], *, is_last: bool
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

    panels = _panels(results, lambda variant: bool(probed(variant)))
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
            style = styles[label]
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
    names = [name for name in runs[0].probes if name.endswith("_weight_norm")]
    for index, name in enumerate(names):
        norms = np.stack([run.probes[name][:length] for run in runs]).mean(axis=0)
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
