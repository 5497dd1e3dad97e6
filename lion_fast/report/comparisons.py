"""Every variant of a study against its baseline in one quantity of the runs' summaries."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lion_fast.config import TrainConfig
from lion_fast.report.paired import Bounds, Paired, compare_pairs
from lion_fast.report.paper import published_accuracy, published_speedup
from lion_fast.report.power import Spread, power_of_difference, seeds_needed, smallest_shown
from lion_fast.report.results import StudyResults
from lion_fast.report.stats import (
    Comparison,
    Sample,
    compare,
    describe,
    describe_whole,
    paired_speedups,
    speedup_interval,
    speedup_percent,
)
from lion_fast.resolutions import Resolutions
from lion_fast.study.labels import Variant, VariantKey, variant_key


class Quantity(NamedTuple):
    """A number of a run's summary."""

    name: str
    scale: float
    """From the summary's unit to the report's."""
    words: tuple[str, str]
    """What a mean below and above the baseline's is called."""


STEPS = Quantity("steps_to_target", 1, ("fewer steps", "more steps"))
SECONDS = Quantity("seconds_to_target", 1, ("less time", "more time"))
COST = Quantity("cost_to_target", 1, ("less computation", "more computation"))
ACCURACY = Quantity("val_accuracy", 100, ("lower accuracy", "higher accuracy"))
BOUND_PERCENT = 5.0
"""Of the baseline's steps, within which two methods count as equivalent (bench/NOTES.md)."""
BOUNDS = Bounds.of_percent(BOUND_PERCENT)


@dataclass(frozen=True)
class VariantRow:
    """One variant of a table."""

    variant: Variant
    label: str
    """The variant in words."""
    config: TrainConfig
    """Of the variant's first finished run."""
    values: Mapping[int, float | None]
    """By seed; None where a run has no value."""
    baseline: Mapping[int, float | None]
    """The baseline's, likewise; empty where the variant has none, or none that has run."""
    comparison: Comparison | None
    """With the baseline; None where there is none."""
    effect: float | None = None
    """What the paper's difference from the baseline would be here; None where it gives none."""

    @property
    def key(self) -> VariantKey:
        """What other values of the variant are found by."""
        return variant_key(self.variant)

    @property
    def num_reached(self) -> int:
        """Seeds that have a value."""
        return sum(value is not None for value in self.values.values())

    @property
    def can_reach(self) -> bool:
        """Whether its runs go on beyond the steps over which the target's accuracy is averaged."""
        counted = self.config.max_steps - Resolutions.parse(self.config.resolutions).num_reduced
        return counted > self.config.window or self.num_reached > 0

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

    @property
    def n(self) -> int:
        """Seeds that this row and its baseline both have at least."""
        return min(len(self.values), len(self.baseline))

    @property
    def spread(self) -> Spread | None:
        """What Welch's test measures the difference against; None where it cannot test."""
        if self.comparison is None or self.comparison.p_value is None:
            return None
        samples = [describe_whole(list(of.values())) for of in (self.values, self.baseline)]
        return Spread(tuple(sample.std**2 for sample in samples if sample and sample.std))

    @property
    def smallest_shown(self) -> float | None:
        """Smallest true difference that Welch's test of so many seeds shows with 80 % power."""
        return None if self.spread is None else smallest_shown(self.spread, self.n)

    @property
    def seeds_for_effect(self) -> int | None:
        """Seeds a method with which Welch's test shows the paper's effect with 80 % power."""
        effect, spread = self.effect, self.spread
        if spread is None or not effect:
            return None
        return seeds_needed(lambda n: power_of_difference(effect, spread, n))

    def power_text(self) -> str:
        """Return what so many seeds can show, for a reader of "no difference shown"."""
        if self.smallest_shown is None or self.comparison is None or self.comparison.shown:
            return ""
        of = abs(describe(_present(self.baseline)).mean)
        if of == 0:
            return ""
        percent = 100 * self.smallest_shown / of
        needed = self.seeds_for_effect
        for_paper = "" if needed is None else f"; the paper's effect needs n = {needed:,}"
        return f", which can show {percent:.1f} % or more (80 % power{for_paper})"


def compare_variants(results: StudyResults, quantity: Quantity) -> list[VariantRow]:
    """Return one row per variant that has run; Holm's correction is over all of them."""
    study = results.study
    values = {
        variant_key(variant): {
            seed: None if value is None else quantity.scale * value
            for seed, value in results.values(variant, quantity.name).items()
        }
        for variant in study.variants
        if results.of(variant)
    }
    baselines = {
        variant_key(variant): values[variant_key(baseline)]
        for variant in study.variants
        if (baseline := study.baseline_of(variant)) is not None
        and variant_key(variant) in values
        and variant_key(baseline) in values
    }
    comparisons = compare(
        {key: list(values[key].values()) for key in baselines},
        {key: list(baseline.values()) for key, baseline in baselines.items()},
        words=quantity.words,
    )
    return [
        VariantRow(
            variant,
            study.label(variant),
            results.of(variant)[0].config,
            values[key],
            baselines.get(key, {}),
            comparisons.get(key),
            _papers_effect(results, variant, quantity, baselines.get(key, {})),
        )
        for variant in study.variants
        if (key := variant_key(variant)) in values
    ]


def compare_by_seed(
    rows: Sequence[VariantRow], seeds: Collection[int] | None = None
) -> dict[VariantKey, Paired]:
    """Return the paired tests of rows of steps by their key, perhaps of these seeds alone."""
    pairs = {
        row.key: (_of_seeds(row.values, seeds), _of_seeds(row.baseline, seeds))
        for row in rows
        if row.comparison is not None
    }
    return {key: test for key, test in compare_pairs(pairs, BOUNDS).items() if test is not None}


def _of_seeds(
    values: Mapping[int, float | None], seeds: Collection[int] | None
) -> dict[int, float | None]:
    return {seed: value for seed, value in values.items() if seeds is None or seed in seeds}


def _present(values: Mapping[int, float | None]) -> list[float]:
    return [value for value in values.values() if value is not None]


def _papers_effect(
    results: StudyResults,
    variant: Variant,
    quantity: Quantity,
    baseline: Mapping[int, float | None],
) -> float | None:
    """Return the paper's difference from the baseline in the quantity's unit."""
    against = results.study.baseline_of(variant)
    if against is None or not _present(baseline):
        return None
    config = results.of(variant)[0].config
    if quantity is STEPS:
        speedup = published_speedup(config)
        return None if speedup is None else -speedup / 100 * describe(_present(baseline)).mean
    if quantity is ACCURACY:
        ours, theirs = map(published_accuracy, (config, results.of(against)[0].config))
        return None if ours is None or theirs is None else ours.value - theirs.value
    return None


def conclusion(results: StudyResults) -> list[str]:
    """Return a line per variant: its steps to the target, and how they compare."""
    rows = {row.key: row for row in compare_variants(results, STEPS)}
    costs: dict[VariantKey, Sample | None] = {}
    if results.has_sizes:
        costs = {row.key: row.sample for row in compare_variants(results, COST)}
    lines = []
    for variant in results.study.variants:
        row = rows.get(variant_key(variant))
        if row is None:
            num_failed = sum(cell.variant == variant for cell, _ in results.failed)
            num_missing = sum(cell.variant == variant for cell in results.missing)
            label = results.study.label(variant)
            lines.append(f"{label}: no finished run ({num_failed} failed, {num_missing} missing)")
            continue
        if not row.can_reach:
            steps = f"{row.config.max_steps:,} steps"
            lines.append(
                f"{row.label}: too short to reach a target ({steps}, n = {len(row.values)})"
            )
            continue
        target = f"{100 * row.config.target_accuracy:g} %"
        num = len(row.values)
        if row.sample is None:
            text = f"{target} reached by {row.num_reached} of {num} runs"
        else:
            spread = "" if row.sample.std is None else f" ± {row.sample.std:,.0f}"
            cost = costs.get(row.key)
            at = "" if cost is None else f" at the cost of {cost.mean:,.1f}"
            text = f"{target} after {row.sample.mean:,.0f}{spread} steps{at} (n = {num})"
        if row.comparison is not None:
            speedup = "" if row.speedup is None else f"speedup {row.speedup:+.1f} %: "
            text += f"; {speedup}{row.comparison.verdict}{row.power_text()}"
        lines.append(f"{row.label}: {text}")
    return lines
