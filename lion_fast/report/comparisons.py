"""Every variant of a study against its baseline in one quantity of the runs' summaries."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lion_fast.config import TrainConfig
from lion_fast.report.results import StudyResults
from lion_fast.report.stats import (
    Comparison,
    Sample,
    compare,
    describe_whole,
    paired_speedups,
    speedup_interval,
    speedup_percent,
)
from lion_fast.study.grid import Variant, variant_label


class Quantity(NamedTuple):
    """A number of a run's summary."""

    name: str
    scale: float
    """From the summary's unit to the report's."""
    words: tuple[str, str]
    """What a mean below and above the baseline's is called."""


STEPS = Quantity("steps_to_target", 1, ("fewer steps", "more steps"))
SECONDS = Quantity("seconds_to_target", 1, ("less time", "more time"))
ACCURACY = Quantity("val_accuracy", 100, ("lower accuracy", "higher accuracy"))


@dataclass(frozen=True)
class VariantRow:
    """One variant of a table."""

    variant: Variant
    config: TrainConfig
    """Of the variant's first finished run."""
    values: Mapping[int, float | None]
    """By seed; None where a run has no value."""
    baseline: Mapping[int, float | None]
    """The baseline's, likewise; empty where the variant has none, or none that has run."""
    comparison: Comparison | None
    """With the baseline; None where there is none."""

    @property
    def label(self) -> str:
        """The variant in words."""
        return variant_label(self.variant)

    @property
    def num_reached(self) -> int:
        """Seeds that have a value."""
        return sum(value is not None for value in self.values.values())

    @property
    def sample(self) -> Sample | None:
        """Over the seeds; None where one has no value."""
        return describe_whole(list(self.values.values()))

    @property
    def speedups(self) -> Mapping[int, float | None]:
        """Percent less than the baseline, seed by seed."""
        return paired_speedups(self.values, self.baseline)

    @property
    def speedup(self) -> float | None:
        """Percent that the mean is below the baseline's mean."""
        return speedup_percent(list(self.values.values()), list(self.baseline.values()))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of `speedup`."""
        return speedup_interval(list(self.values.values()), list(self.baseline.values()))


def compare_variants(results: StudyResults, quantity: Quantity) -> list[VariantRow]:
    """Return one row per variant that has run; Holm's correction is over all of them."""
    values = {
        variant_label(variant): {
            seed: None if value is None else quantity.scale * value
            for seed, value in results.values(variant, quantity.name).items()
        }
        for variant in results.study.variants
        if results.of(variant)
    }
    baselines = {
        variant_label(variant): values[variant_label(baseline)]
        for variant in results.study.variants
        if (baseline := results.study.baseline_of(variant)) is not None
        and variant_label(variant) in values
        and variant_label(baseline) in values
    }
    comparisons = compare(
        {label: list(values[label].values()) for label in baselines},
        {label: list(baseline.values()) for label, baseline in baselines.items()},
        words=quantity.words,
    )
    return [
        VariantRow(
            variant,
            results.of(variant)[0].config,
            values[label],
            baselines.get(label, {}),
            comparisons.get(label),
        )
        for variant in results.study.variants
        if (label := variant_label(variant)) in values
    ]


def conclusion(results: StudyResults) -> list[str]:
    """Return a line per variant: its steps to the target, and how they compare."""
    rows = {row.label: row for row in compare_variants(results, STEPS)}
    lines = []
    for label in map(variant_label, results.study.variants):
        row = rows.get(label)
        if row is None:
            num_failed = sum(cell.label == label for cell, _ in results.failed)
            num_missing = sum(cell.label == label for cell in results.missing)
            lines.append(f"{label}: no finished run ({num_failed} failed, {num_missing} missing)")
            continue
        target = f"{100 * row.config.target_accuracy:g} %"
        num = len(row.values)
        if row.sample is None:
            text = f"{target} reached by {row.num_reached} of {num} runs"
        else:
            spread = "" if row.sample.std is None else f" ± {row.sample.std:,.0f}"
            text = f"{target} after {row.sample.mean:,.0f}{spread} steps (n = {num})"
        if row.comparison is not None:
            speedup = "" if row.speedup is None else f"speedup {row.speedup:+.1f} %: "
            text += f"; {speedup}{row.comparison.verdict}"
        lines.append(f"{row.label}: {text}")
    return lines
