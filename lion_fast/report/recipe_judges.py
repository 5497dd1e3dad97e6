"""What decides whether a recipe of ours is better than the one before it: one judge a bar.

The bars are bench/NOTES.md's, written down before the runs that they judge.
"""

import math
from collections.abc import Mapping
from statistics import mean, stdev

from scipy import stats

from lion_fast.report.comparisons import (
    ACCURACY,
    COST,
    SECONDS,
    Quantity,
    VariantRow,
    compare_variants,
)
from lion_fast.report.judges import (
    COMPARABLE_POINTS,
    Judge,
    Judgement,
    NotTested,
    yes_or_no,
)
from lion_fast.report.paired import Bounds, pair
from lion_fast.report.results import StudyResults

COST_SHARE = 0.52
SECONDS_SHARE = 0.55
LOST_POINTS = 0.5
NUM_SEEDS = 10


def _new_recipe(results: StudyResults, quantity: Quantity) -> VariantRow:
    """Return the row that has a baseline; raise NotTested where either has not run."""
    for row in compare_variants(results, quantity):
        if row.baseline:
            return row
    raise NotTested("no finished runs of both recipes")


def _by_seed(row: VariantRow) -> Mapping[int, tuple[float, float]]:
    """Return value and baseline's of every seed that both ran; raise NotTested without a value."""
    found = {}
    for seed in row.values.keys() & row.baseline.keys():
        ours, theirs = row.values[seed], row.baseline[seed]
        if ours is None or theirs is None:
            raise NotTested(f"seed {seed} has no value: a run did not reach the target")
        found[seed] = ours, theirs
    if len(found) < 2:
        raise NotTested(f"{len(found)} seeds have run with both recipes, and it takes 2")
    return found


def share_of_the_former(quantity: Quantity, bar: float) -> Judge:
    """Return the judge of: the geometric mean over ten seeds of new / old is at most `bar`."""

    def judge(results: StudyResults) -> Judgement:
        row = _new_recipe(results, quantity)
        n = len(_by_seed(row))
        tested = pair(row.values, row.baseline, Bounds.of_percent(5))
        if tested is None:
            raise NotTested("the seeds do not differ")
        low, high = tested.interval
        figure = f"{tested.ratio:.3f} [{low:.3f}, {high:.3f}]"
        if n < NUM_SEEDS:
            return Judgement("undecided", f"{figure}, of {n} of {NUM_SEEDS} seeds", n, figure)
        return yes_or_no(tested.ratio <= bar, figure, n)._replace(figure=figure)

    return judge


def no_less_accurate_at_the_target(results: StudyResults) -> Judgement:
    """Judge of: new - old > -LOST_POINTS by a one-sided paired t-test at 5 %, ten seeds."""
    points = [ours - theirs for ours, theirs in _by_seed(_new_recipe(results, ACCURACY)).values()]
    n, centre, deviation = len(points), mean(points), stdev(points)
    if not deviation:
        raise NotTested("the seeds do not differ")
    error = deviation / math.sqrt(n)
    p_value = float(stats.t.sf((centre + LOST_POINTS) / error, n - 1))
    half = error * float(stats.t.isf(0.025, n - 1))
    figure = f"{centre:+.2f} points [{centre - half:+.2f}, {centre + half:+.2f}]"
    evidence = f"{figure}, p = {p_value:.3f} that it is lower by {LOST_POINTS:g}"
    if n < NUM_SEEDS:
        return Judgement("undecided", f"{evidence}, of {n} of {NUM_SEEDS} seeds", n, figure)
    return yes_or_no(p_value < 0.05, evidence, n)._replace(figure=figure)


def no_less_accurate_in_the_end(results: StudyResults) -> Judgement:
    """Judge of: the mean is lower by at most COMPARABLE_POINTS, and not shown to be lower."""
    row = _new_recipe(results, ACCURACY)
    n = len(_by_seed(row))
    assert row.comparison is not None
    points = row.comparison.difference
    assert points is not None
    evidence = f"{points:+.2f} points; {row.comparison.verdict}"
    holds = points >= -COMPARABLE_POINTS and row.comparison.shown >= 0
    return yes_or_no(holds, evidence, n)._replace(figure=f"{points:+.2f} points")


cheaper = share_of_the_former(COST, COST_SHARE)
faster = share_of_the_former(SECONDS, SECONDS_SHARE)
