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
from lion_fast.report.paired import Paired
from lion_fast.report.paper import (
    NUM_STEPS,
    published_accuracy,
    published_speedup,
    published_steps,
    rates_in_words,
)
from lion_fast.report.results import StudyResults, has_values
from lion_fast.report.stats import Comparison, describe

COMPARABLE_POINTS = 1.0
EQUAL_PERCENT = 2.0
STEPS_PERCENT = 5.0
DENSENET_10 = {"dataset": "cifar10", "arch": "densenet_ds"}
TABLE_1_INITS = ("he", "lion_dg", "lsuv", "lion_lsuv")
Verdict = Literal[
    "reproduced",
    "not reproduced",
    "equivalent within bounds",
    "undecided",
    "not tested",
    "not run",
]


class Judgement(NamedTuple):
    """What a study says of a statement."""

    verdict: Verdict
    evidence: str
    n: int = 0
    """Seeds of each side; 0 where nothing ran."""
    figure: str = ""
    """Ours, to stand beside the paper's; empty where the evidence is as short."""
    command: str = ""
    """What runs the study that was judged, or would be."""


class NotTested(Exception):
    """The runs at hand say nothing of a statement; the message says why."""


class Untouched(NotTested):
    """The study has no run that could say anything of it."""


Judge = Callable[[StudyResults], Judgement]
"""Raises NotTested."""


def yes_or_no(holds: bool, evidence: str, n: int) -> Judgement:
    """Return the judgement of a statement that is borne out or is not."""
    return Judgement("reproduced" if holds else "not reproduced", evidence, n)


def _row(results: StudyResults, quantity: Quantity, fields: dict[str, object]) -> VariantRow:
    """Return the table's row whose config has these values; raise NotTested without one."""
    for row in compare_variants(results, quantity):
        if has_values(row.config, fields):
            return row
    check_touched(results, fields)
    raise NotTested(f"no finished runs of {_words(fields)}")


def check_touched(results: StudyResults, fields: dict[str, object]) -> None:
    """Raise Untouched where no variant of the study has these values."""
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
    paired = compare_by_seed(compare_variants(results, quantity)).get(row.key)
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

    @property
    def figure(self) -> str:
        """The speedup and its interval."""
        if self.row.speedup is None or self.row.interval is None:
            return ""
        return "{:+.1f} % [{:+.1f}, {:+.1f}]".format(self.row.speedup, *self.row.interval)

    def judgement_of(self, claimed: Literal[-1, 1]) -> Judgement:
        """Return the judgement on a claim of fewer (-1) or more (1) steps."""
        return Judgement(self.verdict_of(claimed), self.steps_evidence(), self.row.n, self.figure)

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
        return tested.judgement_of(-1)

    return judge


def never_reached(**fields: object) -> Judge:
    """Return the judge of: no run reaches the target in all of the paper's steps."""

    def judge(results: StudyResults) -> Judgement:
        check_touched(results, fields)
        runs = results.find(**fields)
        reached = [run for run in runs if run.summary["steps_to_target"] is not None]
        whole = [run for run in runs if run.summary["steps"] >= NUM_STEPS]
        if not runs or (len(whole) < len(runs) and not reached):
            raise NotTested(f"no finished runs of {NUM_STEPS:,} steps")
        return yes_or_no(not reached, f"{len(reached)} of {len(runs)} runs reach it", len(runs))

    return judge


def comparable_accuracy(**fields: object) -> Judge:
    """Return the judge of: mean accuracy within a point of He-init's and no difference shown."""

    def judge(results: StudyResults) -> Judgement:
        _check_whole_runs(_row(results, ACCURACY, fields))
        row, comparison, _ = _tested(results, ACCURACY, fields)
        difference, p_value = comparison.difference, comparison.p_corrected
        assert difference is not None and p_value is not None
        return yes_or_no(
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
        evidence = (
            f"{row.sample.mean:.2f} %, {apart:+.2f} points from the paper's;"
            f" {rates_in_words(row.config)}"
        )
        if n < 2:
            return Judgement("undecided", evidence, n)
        return yes_or_no(abs(apart) <= COMPARABLE_POINTS, evidence, n)

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
        return yes_or_no(abs(100 * ratio) <= STEPS_PERCENT, evidence, n)

    return judge


def most_accurate(init: str, **fields: object) -> Judge:
    """Return the judge of: the highest mean validation accuracy of the four of Table 1."""

    def judge(results: StudyResults) -> Judgement:
        rows = [_row(results, ACCURACY, fields | {"init": name}) for name in TABLE_1_INITS]
        _check_whole_runs(rows[0])
        means = {row.config.init: row.sample.mean for row in rows if row.sample is not None}
        text = ", ".join(f"{name} {value:.2f} %" for name, value in means.items())
        return yes_or_no(max(means, key=means.__getitem__) == init, text, len(rows[0].values))

    return judge


def no_benefit(results: StudyResults) -> Judgement:
    """Judge of: each of Fixup and ReZero takes as many steps within bounds, or more."""
    tested = {
        init: _tested(results, STEPS, {**DENSENET_10, "init": init}) for init in ("fixup", "rezero")
    }
    n = min(each.row.n for each in tested.values())
    figure = "; ".join(f"{init} {each.figure}" for init, each in tested.items())
    verdict: Verdict = "undecided"
    if any(each.comparison.shown < 0 for each in tested.values()):
        verdict = "not reproduced"
    elif all(each.comparison.shown > 0 or each.is_equivalent for each in tested.values()):
        verdict = "reproduced"
    return Judgement(verdict, _each_evidence(tested), n, figure)


def _each_evidence(tested: Mapping[str, _Tested]) -> str:
    return "; ".join(f"{name}: {each.steps_evidence()}" for name, each in tested.items())


def gradinit_is_slower(results: StudyResults) -> Judgement:
    """Judge of: more steps than He-init."""
    tested = _tested(results, STEPS, {**DENSENET_10, "init": "gradinit"})
    return tested.judgement_of(1)


def explicit_ramp(results: StudyResults) -> Judgement:
    """Judge of: some ramp of the auxiliary weight takes as many steps as LION-DG.

    Of all ramps and seeds: a missing one might be the nearest, or move the means.
    """
    if (num_runs := len(results.runs)) < (num_cells := len(results.study.cells())):
        raise NotTested(f"{num_runs} of {num_cells} runs have finished, and it takes all")
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
    return yes_or_no(
        abs(apart) <= EQUAL_PERCENT,
        f"LION-DG {ours:,.0f} steps, nearest ramp ({nearest} steps) {ramps[nearest]:,.0f}"
        f" ({apart:+.1f} %)",
        len(results.find(init="lion_dg", aux_warmup_steps=0)),
    )


def less_sensitive(results: StudyResults) -> Judgement:
    """Judge of: LION-DG's steps spread less over the auxiliary weights than He-init's, every seed.

    The spread is the largest less the smallest, in percent of the mean over the weights.
    """
    spreads: dict[str, dict[int, float]] = {"he": {}, "lion_dg": {}}
    weights = {variant["aux_weight"] for variant in results.study.variants}
    for init, of_seed in spreads.items():
        for seed in results.study.seeds:
            steps = [run.summary["steps_to_target"] for run in results.find(init=init, seed=seed)]
            if len(steps) == len(weights) and None not in steps:
                of_seed[seed] = 100 * (max(steps) - min(steps)) / describe(steps).mean
    seeds = spreads["he"].keys() & spreads["lion_dg"].keys()
    if len(seeds) < 2:
        raise NotTested("fewer than 2 seeds have reached the target with every auxiliary weight")
    gaps = [spreads["lion_dg"][seed] - spreads["he"][seed] for seed in sorted(seeds)]
    means = {init: describe(list(spreads[init].values())).mean for init in spreads}
    figure = f"spread {means['lion_dg']:.1f} % against {means['he']:.1f} %"
    evidence = f"{figure}; LION-DG's less He-init's by seed: " + ", ".join(
        f"{gap:+.1f}" for gap in gaps
    )
    if max(gaps) < 0 or min(gaps) >= 0:
        return yes_or_no(max(gaps) < 0, evidence, len(seeds))._replace(figure=figure)
    return Judgement("undecided", evidence, len(seeds), figure)


def residual_harms(results: StudyResults) -> Judgement:
    """Judge of: more steps with LION-DG than with He-init inside the residual path."""
    tested = {
        placement: _tested(results, STEPS, {"placement": placement, "init": "lion_dg"})
        for placement in ("residual", "side_tap")
    }
    harmed = tested["residual"]
    return harmed.judgement_of(1)._replace(evidence=_each_evidence(tested))
