"""Runs compared seed by seed: the mean log of their ratio, and whether it is near 1 (TOST).

Two runs of one seed share their batches and, where the method leaves them alone, their initial
weights, so that what both have in common drops out of their ratio.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Literal, NamedTuple

from scipy import stats

from lion_fast.report.stats import NameT, holm

Values = Mapping[int, float | None]
"""By seed; None where a run has no value."""
PairedVerdict = Literal["different", "different within bounds", "equivalent", "undecided"]


class Bounds(NamedTuple):
    """Between which log ratios two methods count as equivalent."""

    low: float
    high: float

    @classmethod
    def of_percent(cls, percent: float) -> "Bounds":
        """Return the bounds of that many percent less and more than the baseline."""
        return cls(math.log(1 - percent / 100), math.log(1 + percent / 100))


@dataclass(frozen=True)
class Paired:
    """One method against the baseline, seed by seed."""

    n: int
    ratio: float
    """Geometric mean of value over baseline's value."""
    interval: tuple[float, float]
    """95 % t interval of `ratio`."""
    narrow_interval: tuple[float, float]
    """90 % t interval: it lies within the bounds exactly where TOST at 5 % shows equivalence."""
    log_std: float
    """Sample standard deviation of the log ratios."""
    p_difference: float
    """Of the two-sided paired t-test that the ratio is 1."""
    p_equivalence: float
    """The larger p of the two one-sided paired t-tests against the bounds."""
    verdict: PairedVerdict = "undecided"
    """At 5 %, after Holm's correction over the table."""


def log_ratios(values: Values, baseline: Values) -> list[float] | None:
    """Return log(value / baseline's) of the seeds that both ran; None where one has no value."""
    ratios = []
    for seed in values.keys() & baseline.keys():
        ours, theirs = values[seed], baseline[seed]
        if not ours or not theirs:
            return None
        ratios.append(math.log(ours / theirs))
    return ratios


def pair(values: Values, baseline: Values, bounds: Bounds) -> Paired | None:
    """Test by seed; None below two seeds, where a run has no value or where nothing varies."""
    ratios = log_ratios(values, baseline)
    if ratios is None or len(ratios) < 2 or not (deviation := stdev(ratios)):
        return None
    n, centre = len(ratios), mean(ratios)
    error, freedom = deviation / math.sqrt(n), n - 1

    def interval(level: float) -> tuple[float, float]:
        half = error * float(stats.t.isf((1 - level) / 2, freedom))
        return math.exp(centre - half), math.exp(centre + half)

    return Paired(
        n=n,
        ratio=math.exp(centre),
        interval=interval(0.95),
        narrow_interval=interval(0.90),
        log_std=deviation,
        p_difference=2 * float(stats.t.sf(abs(centre) / error, freedom)),
        p_equivalence=max(
            float(stats.t.sf((centre - bounds.low) / error, freedom)),
            float(stats.t.cdf((centre - bounds.high) / error, freedom)),
        ),
    )


def compare_pairs(
    pairs: Mapping[NameT, tuple[Values, Values]], bounds: Bounds, *, significance: float = 0.05
) -> dict[NameT, Paired | None]:
    """Test every row of a table, (values, baseline's values), by seed."""
    found = {name: pair(*values, bounds) for name, values in pairs.items()}
    tests = list(found.values())
    differences = holm([None if test is None else test.p_difference for test in tests])
    equivalences = holm([None if test is None else test.p_equivalence for test in tests])
    for (name, test), differs, is_near in zip(
        list(found.items()), differences, equivalences, strict=True
    ):
        if test is not None and differs is not None and is_near is not None:
            verdict = _verdict(differs < significance, is_near < significance)
            found[name] = replace(test, verdict=verdict)
    return found


def _verdict(is_different: bool, is_equivalent: bool) -> PairedVerdict:
    if is_different:
        return "different within bounds" if is_equivalent else "different"
    return "equivalent" if is_equivalent else "undecided"
