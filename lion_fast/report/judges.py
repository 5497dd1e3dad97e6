"""What decides whether a study's runs bear out a statement of the paper: one judge a kind.

"Equivalent within bounds" is what two one-sided tests show. "Not reproduced" is a difference shown
the other way, or a paired 95 % interval that excludes the paper's value; "undecided", that the runs
at hand are too few to say.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

from lion_fast.report.comparisons import (
    ACCURACY,
    STEPS,
    Quantity,
    VariantRow,
    compare_by_seed,
    compare_variants,
)
from lion_fast.report.growth import EARLY_STEPS, ON_THE_LINE, growth_fits, lines
from lion_fast.report.markdown import significant
from lion_fast.report.paired import Paired
from lion_fast.report.paper import (
    NUM_STEPS,
    published_accuracy,
    published_speedup,
    published_steps,
)
from lion_fast.report.results import Run, StudyResults, has_values
from lion_fast.report.stats import Comparison, describe, spearman

LINEAR, STEADY = 0.95, 0.5
COMPARABLE_POINTS = 1.0
EQUAL_PERCENT = 2.0
STEPS_PERCENT = 5.0
DENSENET_10 = {"dataset": "cifar10", "arch": "densenet_ds"}
TABLE_1_INITS = ("he", "lion_dg", "lsuv", "lion_lsuv")
Verdict = Literal[
    "reproduced", "not reproduced", "equivalent within bounds", "undecided", "not tested"
]


class Judgement(NamedTuple):
    """What a study says of a statement."""

    verdict: Verdict
    evidence: str
    n: int = 0
    """Seeds of each side; 0 where nothing ran."""


class NotTested(Exception):
    """The runs at hand say nothing of a statement; the message says why."""


class Untouched(NotTested):
    """The study has no run that could say anything of it."""


Judge = Callable[[StudyResults], Judgement]
"""Raises NotTested."""


def _verdict(holds: bool, evidence: str, n: int) -> Judgement:
    return Judgement("reproduced" if holds else "not reproduced", evidence, n)


def _row(results: StudyResults, quantity: Quantity, fields: dict[str, object]) -> VariantRow:
    """Return the table's row whose config has these values; raise NotTested without one."""
    for row in compare_variants(results, quantity):
        if has_values(row.config, fields):
            return row
    _check_touched(results, fields)
    raise NotTested(f"no finished runs of {_words(fields)}")


def _check_touched(results: StudyResults, fields: dict[str, object]) -> None:
    configs = (replace(results.study.base, **variant) for variant in results.study.variants)
    if not any(has_values(config, fields) for config in configs):
        raise Untouched


def _tested(results: StudyResults, quantity: Quantity, fields: dict[str, object]) -> "_Tested":
    """Return `_row` with its comparison; raise NotTested where that has no p value."""
    row = _row(results, quantity, fields)
    if row.comparison is None:
        raise NotTested(f"no finished runs of the baseline of {_words(fields)}")
    if row.comparison.p_corrected is None:
        raise NotTested(row.comparison.verdict)
    paired = compare_by_seed(compare_variants(results, quantity)).get(row.label)
    return _Tested(row, row.comparison, paired)


class _Tested(NamedTuple):
    """A row that was tested against its baseline."""

    row: VariantRow
    comparison: Comparison
    paired: Paired | None

    @property
    def is_equivalent(self) -> bool:
        """Whether the paired tests show its steps to be within the bounds."""
        return self.paired is not None and self.paired.verdict in (
            "equivalent",
            "different within bounds",
        )

    @property
    def excludes_the_papers(self) -> bool:
        """Whether the paper's value lies outside the paired 95 % interval."""
        published = published_speedup(self.row.config)
        if published is None or self.paired is None:
            return False
        low, high = self.paired.interval
        return not low <= 1 - published / 100 <= high

    def verdict_of(self, claimed: Literal[-1, 1]) -> Verdict:
        """Return the verdict on a claim of fewer (-1) or more (1) steps."""
        if self.comparison.shown == claimed:
            return "reproduced"
        if self.is_equivalent:
            return "equivalent within bounds"
        if self.comparison.shown or self.excludes_the_papers:
            return "not reproduced"
        return "undecided"

    def steps_evidence(self) -> str:
        """Say what a row of steps shows."""
        parts = [f"speedup {self.row.speedup:+.1f} %"]
        if self.row.interval is not None:
            parts.append("95 % interval {:+.1f} to {:+.1f} %".format(*self.row.interval))
        paper = published_speedup(self.row.config)
        if paper is not None:
            parts.append(f"paper {paper:+.1f} %")
        text = f"{', '.join(parts)}; {self.comparison.verdict}{self.row.power_text()}"
        if self.paired is None:
            return text
        p_value = self.paired.p_equivalence
        return f"{text}; paired by seed: {self.paired.verdict} (TOST p = {p_value:.3f})"


def _words(fields: dict[str, object]) -> str:
    return " ".join(map(str, fields.values()))


def _check_whole_runs(row: VariantRow) -> None:
    if published_accuracy(row.config) is None:
        raise NotTested(f"the runs did not train the paper's {NUM_STEPS:,} steps")


def fewer_steps(**fields: object) -> Judge:
    """Return the judge of: fewer steps to the target than He-init, after Holm's correction."""

    def judge(results: StudyResults) -> Judgement:
        tested = _tested(results, STEPS, fields)
        return Judgement(tested.verdict_of(-1), tested.steps_evidence(), tested.row.n)

    return judge


def never_reached(**fields: object) -> Judge:
    """Return the judge of: no run reaches the target in all of the paper's steps."""

    def judge(results: StudyResults) -> Judgement:
        _check_touched(results, fields)
        runs = results.find(**fields)
        reached = [run for run in runs if run.summary["steps_to_target"] is not None]
        whole = [run for run in runs if run.summary["steps"] >= NUM_STEPS]
        if not runs or (len(whole) < len(runs) and not reached):
            raise NotTested(f"no finished runs of {NUM_STEPS:,} steps")
        return _verdict(not reached, f"{len(reached)} of {len(runs)} runs reach it", len(runs))

    return judge


def comparable_accuracy(**fields: object) -> Judge:
    """Return the judge of: mean accuracy within a point of He-init's and no difference shown."""

    def judge(results: StudyResults) -> Judgement:
        _check_whole_runs(_row(results, ACCURACY, fields))
        row, comparison, _ = _tested(results, ACCURACY, fields)
        difference, p_value = comparison.difference, comparison.p_corrected
        assert difference is not None and p_value is not None
        return _verdict(
            abs(difference) <= COMPARABLE_POINTS and p_value >= 0.05,
            f"{difference:+.2f} points; {comparison.verdict}",
            row.n,
        )

    return judge


def accuracy_as_published(**fields: object) -> Judge:
    """Return the judge of: mean accuracy within a point of the paper's own."""

    def judge(results: StudyResults) -> Judgement:
        row = _row(results, ACCURACY, fields)
        _check_whole_runs(row)
        paper = published_accuracy(row.config)
        assert paper is not None and row.sample is not None
        apart = row.sample.mean - paper.value
        n = len(row.values)
        evidence = f"{row.sample.mean:.2f} %, {apart:+.2f} points from the paper's"
        if n < 2:
            return Judgement("undecided", evidence, n)
        return _verdict(abs(apart) <= COMPARABLE_POINTS, evidence, n)

    return judge


def steps_as_published(**fields: object) -> Judge:
    """Return the judge of: mean steps to the target within 5 % of the paper's own."""

    def judge(results: StudyResults) -> Judgement:
        row = _row(results, STEPS, fields)
        paper = published_steps(row.config)
        if paper is None or row.sample is None:
            raise NotTested(f"{row.num_reached} of {len(row.values)} runs reach the target")
        ratio = row.sample.mean / describe(list(paper.values())).mean - 1
        evidence = f"{row.sample.mean:,.0f} steps, {100 * ratio:+.1f} % from the paper's"
        n = len(row.values)
        if n < 2:
            return Judgement("undecided", evidence, n)
        return _verdict(abs(100 * ratio) <= STEPS_PERCENT, evidence, n)

    return judge


def most_accurate(init: str, **fields: object) -> Judge:
    """Return the judge of: the highest mean validation accuracy of the four of Table 1."""

    def judge(results: StudyResults) -> Judgement:
        rows = [_row(results, ACCURACY, fields | {"init": name}) for name in TABLE_1_INITS]
        _check_whole_runs(rows[0])
        means = {row.config.init: row.sample.mean for row in rows if row.sample is not None}
        text = ", ".join(f"{name} {value:.2f} %" for name, value in means.items())
        return _verdict(max(means, key=means.__getitem__) == init, text, len(rows[0].values))

    return judge


def no_benefit(results: StudyResults) -> Judgement:
    """Judge of: each of Fixup and ReZero takes as many steps within bounds, or more."""
    tested = {
        init: _tested(results, STEPS, {**DENSENET_10, "init": init}) for init in ("fixup", "rezero")
    }
    evidence, n = _each_evidence(tested), min(each.row.n for each in tested.values())
    if any(each.comparison.shown < 0 for each in tested.values()):
        return Judgement("not reproduced", evidence, n)
    bring_nothing = all(e.comparison.shown > 0 or e.is_equivalent for e in tested.values())
    return Judgement("reproduced" if bring_nothing else "undecided", evidence, n)


def _each_evidence(tested: Mapping[str, _Tested]) -> str:
    return "; ".join(f"{name}: {each.steps_evidence()}" for name, each in tested.items())


def gradinit_is_slower(results: StudyResults) -> Judgement:
    """Judge of: more steps than He-init."""
    tested = _tested(results, STEPS, {**DENSENET_10, "init": "gradinit"})
    return Judgement(tested.verdict_of(1), tested.steps_evidence(), tested.row.n)


def explicit_ramp(results: StudyResults) -> Judgement:
    """Judge of: some ramp of the auxiliary weight takes as many steps as LION-DG."""
    means = {
        (row.config.init, row.config.aux_warmup_steps): row.sample.mean
        for row in compare_variants(results, STEPS)
        if row.sample is not None
    }
    ours = means.get(("lion_dg", 0))
    ramps = {steps: value for (init, steps), value in means.items() if init == "he" and steps}
    if ours is None or not ramps:
        raise NotTested("LION-DG and a ramp have not both run to the target")
    nearest = min(ramps, key=lambda steps: abs(ramps[steps] - ours))
    apart = 100 * (ramps[nearest] / ours - 1)
    return _verdict(
        abs(apart) <= EQUAL_PERCENT,
        f"LION-DG {ours:,.0f} steps, nearest ramp ({nearest} steps) {ramps[nearest]:,.0f}"
        f" ({apart:+.1f} %)",
        len(results.find(init="lion_dg", aux_warmup_steps=0)),
    )


def residual_harms(results: StudyResults) -> Judgement:
    """Judge of: more steps with LION-DG than with He-init inside the residual path."""
    tested = {
        placement: _tested(results, STEPS, {"placement": placement, "init": "lion_dg"})
        for placement in ("residual", "side_tap")
    }
    harmed = tested["residual"]
    return Judgement(harmed.verdict_of(1), _each_evidence(tested), harmed.row.n)


def _probed(results: StudyResults, init: str) -> list[Run]:
    """Return the runs probed from their first step on, at every step."""
    return [
        run for run in results.find(init=init, gradient_ratio_every=1) if len(run.probes["step"])
    ]


def zero_at_first(results: StudyResults) -> Judgement:
    """Judge of: every run's first auxiliary gradient is exactly 0."""
    runs = _probed(results, "lion_dg")
    if not runs:
        raise NotTested("no LION-DG run was probed at its first step")
    norms = [float(run.probes["aux_gradient_norm"][0]) for run in runs]
    text = f"norm at step 1: {', '.join(f'{norm:g}' for norm in norms)} (n = {len(norms)})"
    return _verdict(all(norm == 0.0 for norm in norms), text, len(norms))


def linear_growth(results: StudyResults) -> Judgement:
    """Judge of: a line explains the early growth of every head."""
    fits = [fit for run in _probed(results, "lion_dg") for fit in growth_fits(run).values()]
    if not fits:
        raise NotTested("no LION-DG run was probed at every step")
    worst = min(fit.r_squared for fit in fits)
    text = f"lowest R² of {len(fits)} heads: {worst:.3f} over {EARLY_STEPS} steps"
    return _verdict(worst >= LINEAR, text, len(_probed(results, "lion_dg")))


def grows_as_predicted(**fields: object) -> Judge:
    """Return the judge of: under gradient descent every head's norm is eta t C (`growth.Line`)."""

    def judge(results: StudyResults) -> Judgement:
        _check_touched(results, fields)
        runs = [run for run in results.find(**fields) if lines(run)]
        found = [line for run in runs for line in lines(run).values()]
        if not found or min(line.updates[-1] for line in found) < EARLY_STEPS - 1:
            raise NotTested(f"no run was probed at each of its first {EARLY_STEPS} steps")
        early = [line.ratio[: EARLY_STEPS - 1] for line in found]
        off = max(float(abs(ratio - 1).max()) for ratio in early)
        left = [t for line in found if (t := line.leaves_after()) is not None]
        text = (
            f"off the line by {100 * off:.1f} % at most in {EARLY_STEPS} steps; {len(left)} of"
            f" {len(found)} heads leave it"
        )
        if left:
            text += f", after {min(left)} to {max(left)} updates"
        return _verdict(off <= ON_THE_LINE, text, len(runs))

    return judge


def awakens(results: StudyResults) -> Judgement:
    """Judge of: the ratio starts below every He-init run's and rises with the step."""
    he, lion = _probed(results, "he"), _probed(results, "lion_dg")
    if not he or not lion:
        raise NotTested("He-init and LION-DG were not both probed at every step")
    highest = max(float(run.probes["gradient_ratio"][0]) for run in lion)
    lowest = min(float(run.probes["gradient_ratio"][0]) for run in he)
    ranks = []
    for run in lion:
        early = run.probes["step"] <= EARLY_STEPS
        ranks.append(spearman(run.probes["step"][early], run.probes["gradient_ratio"][early]))
    return _verdict(
        highest < lowest and min(ranks) >= STEADY,
        f"ratio at step 1: LION-DG at most {significant(highest)}, He-init at least"
        f" {significant(lowest)}; rank correlation with the step {min(ranks):+.2f} at least",
        len(lion),
    )
