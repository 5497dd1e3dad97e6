"""The judges of study `dense`: a class for every pixel, paired by seed, and the ranks of heads.

The bars were set before any run of the study; a pilot of three seeds that it does not use had been
seen. Quantities are mIoU after all steps. A comparison with He-init is of the logarithms of the
ratio, seed by seed; p values are Holm's over every comparison of the study.
"""

from lion_fast.report.comparisons import ACCURACY, compare_by_seed, compare_variants
from lion_fast.report.judges import (
    Judge,
    Judgement,
    NotTested,
    Verdict,
    check_touched,
    yes_or_no,
)
from lion_fast.report.paired import Paired
from lion_fast.report.results import Run, StudyResults, has_values

WHOLE_STEPS = 1500
RANK_STEPS = (51, 151, 601)
"""Probes before these steps: after 50, 150 and 600 updates."""
RANK_ONE, MANY = 1.1, 2.0
"""An effective rank up to which a head counts as of rank 1, and from which as of several."""


def _paired(results: StudyResults, fields: dict[str, object]) -> tuple[Paired, str]:
    """Return the paired tests of the variant with these values, and what they show in words."""
    check_touched(results, fields)
    rows = compare_variants(results, ACCURACY)
    found = compare_by_seed(rows)
    for row in rows:
        if has_values(row.config, fields) and row.key in found:
            break
    else:
        raise NotTested("the variant and He-init have not both finished two seeds")
    if any(run.summary["steps"] < WHOLE_STEPS for run in results.of(row.variant)):
        raise NotTested(f"the runs did not train {WHOLE_STEPS:,} steps")
    test = found[row.key]
    low, high = (100 * (bound - 1) for bound in test.interval)
    means = [
        sum(v for v in values.values() if v is not None) / len(values)
        for values in (row.values, row.baseline)
    ]
    text = (
        f"mIoU {means[0]:.1f} against {means[1]:.1f} %; ratio {100 * (test.ratio - 1):+.1f} %"
        f" [{low:+.1f}, {high:+.1f}]; {test.verdict}"
    )
    return test, text


def _judged(results: StudyResults, test: Paired, verdict: Verdict, text: str) -> Judgement:
    """Return the judgement; that of fewer seeds than the study's is open."""
    if test.n < len(results.study.seeds):
        verdict = "undecided"
    return Judgement(verdict, text, test.n)


def behind_he(**fields: object) -> Judge:
    """Return the judge of: a lower mIoU than He-init's, shown by seed."""

    def judge(results: StudyResults) -> Judgement:
        test, text = _paired(results, fields)
        differs = test.verdict in ("different", "different within bounds")
        verdict: Verdict = "undecided"
        if differs:
            verdict = "reproduced" if test.ratio < 1 else "not reproduced"
        elif test.verdict == "equivalent":
            verdict = "equivalent within bounds"
        return _judged(results, test, verdict, text)

    return judge


def as_good_as_he(**fields: object) -> Judge:
    """Return the judge of: mIoU within 5 % of He-init's, shown by two one-sided tests by seed."""

    def judge(results: StudyResults) -> Judgement:
        test, text = _paired(results, fields)
        verdict: Verdict = "undecided"
        if test.verdict in ("equivalent", "different within bounds"):
            verdict = "reproduced"
        elif test.verdict == "different":
            verdict = "not reproduced"
        return _judged(results, test, verdict, text)

    return judge


def _ranks(runs: list[Run]) -> list[float]:
    """Return the effective rank of every auxiliary head at each of RANK_STEPS, of all runs."""
    found = []
    for run in runs:
        names = [name for name in run.probes if name.endswith("_effective_rank")]
        for step in RANK_STEPS:
            at = run.probes["step"] == step
            if not names or at.sum() != 1:
                wanted = ", ".join(map(str, RANK_STEPS))
                raise NotTested(f"not every run was probed at steps {wanted}")
            found += [float(run.probes[name][at][0]) for name in names]
    if not found:
        raise NotTested("no run was probed")
    return found


def stays_of_rank_one(**fields: object) -> Judge:
    """Return the judge of: zeroed heads are of rank 1 for 600 steps, He-init's of several."""

    def judge(results: StudyResults) -> Judgement:
        check_touched(results, fields | {"init": "lion_dg"})
        runs = results.find(**fields, init="lion_dg")
        ours, theirs = _ranks(runs), _ranks(results.find(**fields, init="he"))
        text = (
            f"effective rank at most {max(ours):.2f}; He-init's {min(theirs):.2f} to"
            f" {max(theirs):.2f}"
        )
        if len(runs) < len(results.study.seeds):
            return Judgement("undecided", text, len(runs))
        return yes_or_no(max(ours) <= RANK_ONE and min(theirs) >= MANY, text, len(runs))

    return judge


def leaves_rank_one(**fields: object) -> Judge:
    """Return the judge of: zeroed heads are of several ranks after 50 steps already."""

    def judge(results: StudyResults) -> Judgement:
        check_touched(results, fields | {"init": "lion_dg"})
        runs = results.find(**fields, init="lion_dg")
        ours = _ranks(runs)
        text = f"effective rank {min(ours):.2f} to {max(ours):.2f}"
        if len(runs) < len(results.study.seeds):
            return Judgement("undecided", text, len(runs))
        return yes_or_no(min(ours) >= MANY, text, len(runs))

    return judge
