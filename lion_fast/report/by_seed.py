"""Steps compared seed by seed, and what so many seeds can show: two tables of a report."""

import math
from collections.abc import Collection, Iterator, Sequence

from lion_fast.report.comparisons import (
    BOUND_PERCENT,
    BOUNDS,
    STEPS,
    VariantRow,
    compare_by_seed,
    compare_variants,
)
from lion_fast.report.markdown import ABSENT, table
from lion_fast.report.paired import Paired
from lion_fast.report.paper import published_speedup
from lion_fast.report.power import (
    POWER,
    Spread,
    power_of_difference,
    power_of_equivalence,
    seeds_needed,
    smallest_shown,
)
from lion_fast.report.results import StudyResults
from lion_fast.report.stats import describe_whole
from lion_fast.study.grid import PAPER_SEEDS


def by_seed_tables(seeds: Sequence[int], rows: Sequence[VariantRow]) -> Iterator[str]:
    """Yield the paired tests of rows of steps and their power; nothing where none can be made."""
    lines = list(_paired_lines(seeds, rows))
    if not lines:
        return
    yield from ("", "#### Paired by seed", "")
    yield (
        "Ratio of steps to the baseline's of the same seed, geometric mean; two one-sided paired"
        f" t-tests (TOST) against ±{BOUND_PERCENT:g} %; verdicts at 5 % after Holm's correction"
        " over the rows of the same seeds."
    )
    yield ""
    header = (
        *("run against its baseline", "verdict", "seeds", "n", "ratio", "95 % interval"),
        *("90 % interval", "p (paired)", "p (TOST)"),
    )
    yield from table(header, lines, text_columns=3)
    yield from ("", "#### Power", "")
    yield from power_table(rows)


def _paired_lines(seeds: Sequence[int], rows: Sequence[VariantRow]) -> Iterator[Sequence[str]]:
    for name, group in _seed_groups(seeds):
        tests = compare_by_seed(rows, group)
        for row in rows:
            if (test := tests.get(row.key)) is None:
                continue
            yield (
                row.label,
                test.verdict,
                name,
                str(test.n),
                f"{test.ratio:.3f}",
                "{:.3f} to {:.3f}".format(*test.interval),
                "{:.3f} to {:.3f}".format(*test.narrow_interval),
                f"{test.p_difference:.4f}",
                f"{test.p_equivalence:.4f}",
            )


def _seed_groups(seeds: Sequence[int]) -> Iterator[tuple[str, Collection[int]]]:
    """Yield all seeds and, where there are others, those that are not the paper's."""
    yield "all", seeds
    others = [seed for seed in seeds if seed not in PAPER_SEEDS]
    if 1 < len(others) < len(seeds):
        yield "without the paper's", others


def power_lines(results: StudyResults) -> list[str]:
    """Return the power of a study's test of steps, from the spread of its finished runs."""
    rows = compare_variants(results, STEPS)
    if not any(row.spread for row in rows):
        return [
            f"{results.study.name}: no spread of steps is known yet: two finished seeds of a method"
            f" and of its baseline that reach the target are needed; run `{results.study.command}`"
        ]
    return [f"{results.study.name}: {results.study.title}", "", *power_table(rows)]


def power_table(rows: Sequence[VariantRow]) -> list[str]:
    """Return the seeds that the paper's effect needs, and what the seeds at hand can show."""
    header = (
        *("run against its baseline", "n", "effect %", "seeds for it, paired", "Welch"),
        *("shown at this n %, paired", "Welch", "seeds for equivalence"),
    )
    tests = compare_by_seed(rows)
    lines = [_power_line(row, tests.get(row.key)) for row in rows if row.spread is not None]
    note = (
        f"Seeds a method for {100 * POWER:.0f} % power at 5 %, from the spread of the runs at hand,"
        f" before Holm's correction. Effect: the paper's, else {BOUND_PERCENT:g} %. Equivalence:"
        f" within ±{BOUND_PERCENT:g} % where there is no difference."
    )
    return [*table(header, lines), "", note]


def _power_line(row: VariantRow, test: Paired | None) -> list[str]:
    published = published_speedup(row.config)
    percent = BOUND_PERCENT if published is None else published
    base = describe_whole(list(row.baseline.values()))
    assert row.spread is not None and row.smallest_shown is not None and base is not None
    by_welch = _seeds(percent / 100 * base.mean, row.spread)
    shown_by_welch = f"{100 * row.smallest_shown / base.mean:.1f}"
    effect = f"{percent:.1f} ({'bound' if published is None else 'paper'})"
    if test is None:
        return [row.label, str(row.n), effect, ABSENT, by_welch, ABSENT, shown_by_welch, ABSENT]
    spread = Spread((test.log_std**2,))
    shown = 100 * (1 - math.exp(-smallest_shown(spread, test.n)))
    for_equivalence = seeds_needed(lambda n: power_of_equivalence(BOUNDS, spread, n))
    return [
        *(row.label, str(row.n), effect),
        *(_seeds(math.log(1 - percent / 100), spread), by_welch),
        *(f"{shown:.1f}", shown_by_welch),
        ABSENT if for_equivalence is None else f"{for_equivalence:,}",
    ]


def _seeds(effect: float, spread: Spread) -> str:
    needed = seeds_needed(lambda n: power_of_difference(effect, spread, n))
    return ABSENT if needed is None else f"{needed:,}"
