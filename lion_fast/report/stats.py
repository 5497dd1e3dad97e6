"""Statistics over seeds: Welch's test, Cohen's d, bootstrapped speedups, Holm's correction."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, pstdev, stdev
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

NameT = TypeVar("NameT", bound=Hashable)
"""What tells the rows of a table apart."""

_THRESHOLDS = ((0.2, "negligible"), (0.5, "small"), (0.8, "medium"), (math.inf, "large"))


@dataclass(frozen=True)
class Sample:
    """n values of one quantity, one per seed."""

    n: int
    mean: float
    std: float | None
    """Sample standard deviation (n - 1); None below two values."""
    population_std: float
    """Divisor n: what the paper's Table 1 prints behind its +- sign."""


def describe(values: Sequence[float]) -> Sample:
    """Return mean and standard deviations of at least one value."""
    # Exact arithmetic: the spread of equal values is 0, not a rounding error.
    std = stdev(values) if len(values) > 1 else None
    return Sample(len(values), mean(values), std, pstdev(values))


def t_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Return Student's interval of the mean of at least two values."""
    sample = describe(values)
    assert sample.std is not None
    half = float(stats.t.isf((1 - level) / 2, sample.n - 1)) * sample.std / math.sqrt(sample.n)
    return sample.mean - half, sample.mean + half


def describe_whole(values: Sequence[float | None]) -> Sample | None:
    """Return `describe` of the values; None where there is none or one is missing."""
    present = _reached(values)
    return describe(present) if present else None


def welch_p_value(values: Sequence[float], baseline: Sequence[float]) -> float | None:
    """Return the two-sided p of Welch's t-test; None below two seeds or where nothing varies."""
    ours, theirs = describe(values), describe(baseline)
    if not ours.std and not theirs.std or ours.std is None or theirs.std is None:
        return None
    # From statistics: from values, scipy warns where all of one sample are equal.
    return float(
        stats.ttest_ind_from_stats(
            ours.mean, ours.std, ours.n, theirs.mean, theirs.std, theirs.n, equal_var=False
        ).pvalue
    )


def cohens_d(values: Sequence[float], baseline: Sequence[float]) -> float | None:
    """Return (mean - baseline mean) / pooled standard deviation (the paper's equation 11).

    None below two seeds or where nothing varies.
    """
    ours, theirs = describe(values), describe(baseline)
    if ours.std is None or theirs.std is None:
        return None
    freedom = ours.n + theirs.n - 2
    variance = ((ours.n - 1) * ours.std**2 + (theirs.n - 1) * theirs.std**2) / freedom
    return (ours.mean - theirs.mean) / math.sqrt(variance) if variance else None


def effect_size(d: float) -> str:
    """Return Cohen's word for |d|, with the paper's thresholds 0.2, 0.5 and 0.8."""
    return next(word for bound, word in _THRESHOLDS if abs(d) < bound)


def speedup_percent(
    steps: Sequence[float | None], baseline: Sequence[float | None]
) -> float | None:
    """Return 100 (mean baseline - mean) / mean baseline.

    None where a run never got there, and of a baseline of 0, such as the accuracy of a network that
    learned nothing.
    """
    ours, theirs = _reached(steps), _reached(baseline)
    if not ours or not theirs or mean(theirs) == 0:
        return None
    return 100 * (1 - mean(ours) / mean(theirs))


def speedup_interval(
    steps: Sequence[float | None],
    baseline: Sequence[float | None],
    *,
    level: float = 0.95,
    num_resamples: int = 9_999,
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of `speedup_percent`, seeds drawn per method.

    With three seeds it can only say how far apart the runs lie. None below two seeds, where a run
    never got there, and where the baseline has a 0, which may be all that is drawn of it. The draws
    are the same on every call.
    """
    ours, theirs = _reached(steps), _reached(baseline)
    if min(len(ours), len(theirs)) < 2 or 0 in theirs:
        return None

    def speedup(ours: NDArray, theirs: NDArray, axis: int) -> NDArray:
        return 100 * (1 - ours.mean(axis) / theirs.mean(axis))

    return bootstrap_interval((ours, theirs), speedup, level=level, num_resamples=num_resamples)


def bootstrap_interval(
    samples: Sequence[ArrayLike],
    statistic: Callable[..., NDArray],
    *,
    level: float = 0.95,
    num_resamples: int = 9_999,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of `statistic(*samples, axis=)`, each resampled by itself.

    The draws are the same on every call.
    """
    interval = stats.bootstrap(
        samples,
        statistic,
        n_resamples=num_resamples,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def paired_speedups(
    steps: Mapping[int, float | None], baseline: Mapping[int, float | None]
) -> dict[int, float | None]:
    """Return `speedup_percent` of each seed that both methods ran."""
    return {
        seed: speedup_percent([steps[seed]], [baseline[seed]]) for seed in steps if seed in baseline
    }


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down correction of one table's p values; None is no test."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[i] = largest
    return corrected


@dataclass(frozen=True)
class Comparison:
    """One method against the baseline in one quantity."""

    difference: float | None
    """Mean minus baseline mean; None where a run has no value."""
    p_value: float | None
    p_corrected: float | None
    """By Holm over the table."""
    d: float | None
    effect: str | None
    shown: Literal[-1, 0, 1]
    """Sign of the difference where the corrected p value shows one; 0 where none is shown."""
    verdict: str


def compare(
    rows: Mapping[NameT, Sequence[float | None]],
    baseline: Mapping[NameT, Sequence[float | None]],
    *,
    words: tuple[str, str] = ("lower", "higher"),
    significance: float = 0.05,
) -> dict[NameT, Comparison]:
    """Compare every row of a table with its baseline; `words` name a smaller and a larger mean.

    A None among the values is a run without the quantity, such as one that never reached its
    target; such a row is not tested.
    """
    p_values = []
    for name, values in rows.items():
        ours, theirs = _reached(values), _reached(baseline[name])
        p_values.append(welch_p_value(ours, theirs) if ours and theirs else None)
    return {
        name: _comparison(values, baseline[name], p, corrected, words, significance)
        for (name, values), p, corrected in zip(rows.items(), p_values, holm(p_values), strict=True)
    }


def _comparison(
    values: Sequence[float | None],
    baseline: Sequence[float | None],
    p: float | None,
    corrected: float | None,
    words: tuple[str, str],
    significance: float,
) -> Comparison:
    ours, theirs = _reached(values), _reached(baseline)
    if not ours or not theirs:
        missing = sum(value is None for value in (*values, *baseline))
        verdict = f"not compared: {missing} of {len(values) + len(baseline)} runs have no value"
        return Comparison(None, None, None, None, None, 0, verdict)
    difference = mean(ours) - mean(theirs)
    d = cohens_d(ours, theirs)
    n = min(len(ours), len(theirs))
    shown: Literal[-1, 0, 1] = 0
    if n < 2:
        verdict = f"not tested: no p value from fewer than 2 seeds (n = {n})"
    elif corrected is None:
        verdict = f"not tested: no spread between seeds (n = {n})"
    elif corrected < significance:
        shown = 1 if difference > 0 else -1
        verdict = f"{words[difference > 0]} (Holm-corrected p = {corrected:.2g}, n = {n})"
    else:
        verdict = f"no difference shown at n = {n}"
    effect = None if d is None else effect_size(d)
    return Comparison(difference, p, corrected, d, effect, shown, verdict)


def _reached(values: Sequence[float | None]) -> list[float]:
    """Return the values, or nothing where one is missing."""
    present = [value for value in values if value is not None]
    return present if len(present) == len(values) else []


class LinearFit(NamedTuple):
    """y = intercept + slope x, and the share of variance that it explains."""

    slope: float
    intercept: float
    r_squared: float


def linear_fit(x: ArrayLike, y: ArrayLike) -> LinearFit:
    """Fit a line, as to a head's weight norm over early steps (the paper's Proposition 2)."""
    line = stats.linregress(x, y)
    return LinearFit(float(line.slope), float(line.intercept), float(line.rvalue**2))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Return the rank correlation: 1 where y only ever grows with x."""
    return float(stats.spearmanr(x, y).statistic)
