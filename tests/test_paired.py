import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lion_fast.report.paired import Bounds, compare_pairs, log_ratios, pair
from lion_fast.report.power import (
    Spread,
    power_of_difference,
    power_of_equivalence,
    seeds_needed,
    smallest_shown,
)

BOUNDS = Bounds.of_percent(5)
STUDIES = Path(__file__).parent.parent / "bench" / "results" / "studies"


def by_seed(*values):
    return dict(enumerate(values))


def headline(of_seed=lambda seed: True):
    """Steps of LION-DG and of He-init in the committed export."""
    steps = {"lion_dg": {}, "he": {}}
    with open(STUDIES / "headline" / "summaries.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if of_seed(int(row["seed"])):
                steps[row["init"]][int(row["seed"])] = float(row["steps_to_target"])
    return steps["lion_dg"], steps["he"]


@pytest.mark.parametrize(
    ("of_seed", "n", "p", "verdict"),
    [
        (lambda seed: True, 10, 0.0070, "equivalent"),
        (lambda seed: seed > 1000, 7, 0.0617, "undecided"),
    ],
)
def test_the_headline_is_equivalent_with_ten_seeds_and_undecided_with_the_new_seven(
    of_seed, n, p, verdict
):
    test = compare_pairs({"lion_dg": headline(of_seed)}, BOUNDS)["lion_dg"]
    assert (test.n, test.verdict) == (n, verdict)
    assert test.p_equivalence == pytest.approx(p, abs=5e-5)


def test_the_tests_are_paired_t_tests_of_logarithms():
    ours, theirs = by_seed(900, 1010, 980, 1003), by_seed(1000, 1000, 1020, 1005)
    logs = [np.log(list(values.values())) for values in (ours, theirs)]
    test = pair(ours, theirs, BOUNDS)
    assert test.p_difference == pytest.approx(stats.ttest_rel(*logs).pvalue)
    low = stats.ttest_rel(logs[0] - math.log(0.95), logs[1], alternative="greater").pvalue
    high = stats.ttest_rel(logs[0] - math.log(1.05), logs[1], alternative="less").pvalue
    assert test.p_equivalence == pytest.approx(max(low, high))
    assert test.ratio == pytest.approx(math.exp(np.mean(logs[0] - logs[1])))


@pytest.mark.parametrize("spread", [5, 25, 60])
def test_equivalence_is_shown_where_the_90_percent_interval_lies_within_the_bounds(spread):
    ours = by_seed(1000 - spread, 1010, 1000 + spread)
    test = pair(ours, by_seed(1000, 1000, 1000), BOUNDS)
    low, high = test.narrow_interval
    assert (test.p_equivalence < 0.05) == (low > 0.95 and high < 1.05)
    assert test.interval[0] < low < test.ratio < high < test.interval[1]


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((1001, 999, 1002), "equivalent"),
        ((1010, 1012, 1011), "different within bounds"),
        ((800, 802, 804), "different"),
        ((800, 1002, 1204), "undecided"),
    ],
)
def test_a_pair_is_different_or_equivalent_or_both_or_undecided(ours, verdict):
    pairs = {"row": (by_seed(*ours), by_seed(1000, 1000, 1000))}
    assert compare_pairs(pairs, BOUNDS)["row"].verdict == verdict


def test_a_table_of_many_rows_needs_smaller_p_values():
    row = (by_seed(970, 985, 1000), by_seed(1000, 1000, 1000))
    assert compare_pairs({"a": row}, BOUNDS)["a"].verdict == "equivalent"
    crowded = compare_pairs({name: row for name in "abcd"}, BOUNDS)
    assert {test.verdict for test in crowded.values()} == {"undecided"}


@pytest.mark.parametrize(
    "pairs",
    [
        (by_seed(1.0), by_seed(2.0)),
        (by_seed(1.0, None), by_seed(2.0, 3.0)),
        (by_seed(1.0, 1.0), by_seed(2.0, 2.0)),
        ({1: 1.0, 2: 2.0}, {3: 1.0, 4: 2.0}),
    ],
    ids=["one seed", "not reached", "no spread", "no seed in common"],
)
def test_runs_that_cannot_be_paired_are_not_tested(pairs):
    assert compare_pairs({"row": pairs}, BOUNDS) == {"row": None}


def test_only_seeds_that_both_ran_are_paired():
    assert log_ratios({1: 2.0, 2: 4.0}, {2: 4.0, 3: 1.0}) == [0.0]


# The textbook's numbers (Cohen 1988): seeds for 80 % power at 5 %, two-sided.
@pytest.mark.parametrize(
    ("d", "variances", "n"),
    [(0.5, (1.0, 1.0), 64), (1.0, (1.0, 1.0), 17), (0.5, (1.0,), 34), (1.0, (1.0,), 10)],
)
def test_the_seeds_needed_are_those_of_the_textbook(d, variances, n):
    spread = Spread(variances)
    assert seeds_needed(lambda n: power_of_difference(d, spread, n)) == n


# Welch's degrees of freedom are estimated in a test and given in the power: with few seeds of
# unlike spread its power is lower.
@pytest.mark.parametrize(
    ("n", "variances"), [(2, (1.0,)), (3, (1.0,)), (10, (1.0,)), (10, (1.0, 4.0))]
)
def test_the_smallest_shown_effect_is_shown_four_times_in_five(n, variances):
    spread = Spread(variances)
    effect = smallest_shown(spread, n)
    assert power_of_difference(effect, spread, n) == pytest.approx(0.8)
    assert power_of_difference(-effect, spread, n) == pytest.approx(0.8)
    rng = np.random.default_rng(n)
    ours, *theirs = (rng.normal(0, math.sqrt(v), (20_000, n)) for v in variances)
    ours += effect
    if theirs:
        found = stats.ttest_ind(ours, theirs[0], axis=1, equal_var=False).pvalue < 0.05
    else:
        found = stats.ttest_1samp(ours, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.015)


@pytest.mark.parametrize("n", [3, 6, 10])
def test_the_power_of_equivalence_is_how_often_simulated_runs_show_it(n):
    deviation = 0.03
    logs = np.random.default_rng(n).normal(0, deviation, (20_000, n))
    low = stats.ttest_1samp(logs, BOUNDS.low, axis=1, alternative="greater").pvalue
    high = stats.ttest_1samp(logs, BOUNDS.high, axis=1, alternative="less").pvalue
    shown = np.maximum(low, high) < 0.05
    power = power_of_equivalence(BOUNDS, Spread((deviation**2,)), n)
    assert power == pytest.approx(shown.mean(), abs=0.015)


def test_an_effect_of_nothing_is_never_shown():
    assert seeds_needed(lambda n: power_of_difference(0.0, Spread((1.0,)), n)) is None
