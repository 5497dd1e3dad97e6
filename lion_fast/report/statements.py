"""The paper's statements, each with the bar that decides whether a study reproduces it.

The bars were set before any study had ended. "Not reproduced" says that the runs at hand do not
show it, which three seeds may simply be too few for; the evidence says how far they go.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from lion_fast.report.comparisons import ACCURACY, STEPS, Quantity, VariantRow, compare_variants
from lion_fast.report.growth import EARLY_STEPS, growth_fits
from lion_fast.report.markdown import significant
from lion_fast.report.paper import NUM_STEPS, TABLE_1, published_accuracy, published_speedup
from lion_fast.report.results import Run, StudyResults, has_values
from lion_fast.report.stats import Comparison, spearman

_LINEAR, _STEADY = 0.95, 0.5
_COMPARABLE_POINTS = 1.0
_EQUAL_PERCENT = 2.0
_DENSENET_10 = {"dataset": "cifar10", "arch": "densenet_ds"}
_TABLE_1 = ("table1", "headline", "table6", "table2", "exits")
_TABLE_1_INITS = ("he", "lion_dg", "lsuv", "lion_lsuv")


class Judgement(NamedTuple):
    """What a study says of a statement."""

    verdict: Literal["reproduced", "not reproduced", "not tested"]
    evidence: str


class _NotTested(Exception):
    """The runs at hand say nothing of a statement; the message says why."""


class _Untouched(_NotTested):
    """The study has no run that could say anything of it."""


Judge = Callable[[StudyResults], Judgement]
"""Raises _NotTested."""


@dataclass(frozen=True)
class Statement:
    """One claim of the paper."""

    source: str
    text: str
    """With the bar, where the claim itself has none."""
    studies: tuple[str, ...]
    """Studies that can test it, the most complete one first."""
    judge: Judge

    def judged_by(self, results: StudyResults) -> Judgement | None:
        """Return what a study says of it; None where it has no such runs."""
        try:
            return self.judge(results)
        except _Untouched:
            return None
        except _NotTested as why:
            return Judgement("not tested", str(why))


def judge_all(studies: Sequence[StudyResults]) -> list[tuple[Statement, Judgement]]:
    """Return every statement on runs of `studies` with what the most telling of them says of it."""
    by_name = {results.study.name: results for results in studies}
    judged = []
    for statement in STATEMENTS:
        each = [statement.judged_by(by_name[n]) for n in statement.studies if n in by_name]
        found = [judgement for judgement in each if judgement is not None]
        tested = [judgement for judgement in found if judgement.verdict != "not tested"]
        judged += [(statement, judgement) for judgement in [*tested, *found][:1]]
    return judged


def _verdict(holds: bool, evidence: str) -> Judgement:
    return Judgement("reproduced" if holds else "not reproduced", evidence)


def _row(results: StudyResults, quantity: Quantity, fields: dict[str, object]) -> VariantRow:
    """Return the table's row whose config has these values; raise _NotTested without one."""
    for row in compare_variants(results, quantity):
        if has_values(row.config, fields):
            return row
    _check_touched(results, fields)
    raise _NotTested(f"no finished runs of {_words(fields)}")


def _check_touched(results: StudyResults, fields: dict[str, object]) -> None:
    configs = (replace(results.study.base, **variant) for variant in results.study.variants)
    if not any(has_values(config, fields) for config in configs):
        raise _Untouched


def _tested(results: StudyResults, quantity: Quantity, fields: dict[str, object]) -> "_Tested":
    """Return `_row` with its comparison; raise _NotTested where that has no p value."""
    row = _row(results, quantity, fields)
    if row.comparison is None:
        raise _NotTested(f"no finished runs of the baseline of {_words(fields)}")
    if row.comparison.p_corrected is None:
        raise _NotTested(row.comparison.verdict)
    return _Tested(row, row.comparison)


class _Tested(NamedTuple):
    """A row that was tested against its baseline."""

    row: VariantRow
    comparison: Comparison

    def steps_evidence(self) -> str:
        """Say what a row of steps shows."""
        parts = [f"speedup {self.row.speedup:+.1f} %"]
        if self.row.interval is not None:
            parts.append("95 % interval {:+.1f} to {:+.1f} %".format(*self.row.interval))
        paper = published_speedup(self.row.config)
        if paper is not None:
            parts.append(f"paper {paper:+.1f} %")
        return f"{', '.join(parts)}; {self.comparison.verdict}"


def _words(fields: dict[str, object]) -> str:
    return " ".join(map(str, fields.values()))


def _check_whole_runs(row: VariantRow) -> None:
    if published_accuracy(row.config) is None:
        raise _NotTested(f"the runs did not train the paper's {NUM_STEPS:,} steps")


def _fewer_steps(**fields: object) -> Judge:
    """Return the judge of: fewer steps to the target than He-init, after Holm's correction."""

    def judge(results: StudyResults) -> Judgement:
        tested = _tested(results, STEPS, fields)
        return _verdict(tested.comparison.shown < 0, tested.steps_evidence())

    return judge


def _never_reached(**fields: object) -> Judge:
    """Return the judge of: no run reaches the target in all of the paper's steps."""

    def judge(results: StudyResults) -> Judgement:
        _check_touched(results, fields)
        runs = results.find(**fields)
        reached = [run for run in runs if run.summary["steps_to_target"] is not None]
        whole = [run for run in runs if run.summary["steps"] >= NUM_STEPS]
        if not runs or (len(whole) < len(runs) and not reached):
            raise _NotTested(f"no finished runs of {NUM_STEPS:,} steps")
        return _verdict(not reached, f"{len(reached)} of {len(runs)} runs reach it")

    return judge


def _comparable_accuracy(**fields: object) -> Judge:
    """Return the judge of: mean accuracy within a point of He-init's and no difference shown."""

    def judge(results: StudyResults) -> Judgement:
        _check_whole_runs(_row(results, ACCURACY, fields))
        comparison = _tested(results, ACCURACY, fields).comparison
        difference, p_value = comparison.difference, comparison.p_corrected
        assert difference is not None and p_value is not None
        return _verdict(
            abs(difference) <= _COMPARABLE_POINTS and p_value >= 0.05,
            f"{difference:+.2f} points; {comparison.verdict}",
        )

    return judge


def _most_accurate(init: str, **fields: object) -> Judge:
    """Return the judge of: the highest mean validation accuracy of the four of Table 1."""

    def judge(results: StudyResults) -> Judgement:
        rows = [_row(results, ACCURACY, fields | {"init": name}) for name in _TABLE_1_INITS]
        _check_whole_runs(rows[0])
        means = {row.config.init: row.sample.mean for row in rows if row.sample is not None}
        text = ", ".join(f"{name} {value:.2f} %" for name, value in means.items())
        return _verdict(max(means, key=means.__getitem__) == init, text)

    return judge


def _no_benefit(results: StudyResults) -> Judgement:
    tested = {
        init: _tested(results, STEPS, {**_DENSENET_10, "init": init})
        for init in ("fixup", "rezero")
    }
    return _verdict(
        all(each.comparison.shown >= 0 for each in tested.values()), _each_evidence(tested)
    )


def _each_evidence(tested: Mapping[str, _Tested]) -> str:
    return "; ".join(f"{name}: {each.steps_evidence()}" for name, each in tested.items())


def _gradinit_is_slower(results: StudyResults) -> Judgement:
    tested = _tested(results, STEPS, {**_DENSENET_10, "init": "gradinit"})
    return _verdict(tested.comparison.shown > 0, tested.steps_evidence())


def _explicit_ramp(results: StudyResults) -> Judgement:
    means = {
        (row.config.init, row.config.aux_warmup_steps): row.sample.mean
        for row in compare_variants(results, STEPS)
        if row.sample is not None
    }
    ours = means.get(("lion_dg", 0))
    ramps = {steps: value for (init, steps), value in means.items() if init == "he" and steps}
    if ours is None or not ramps:
        raise _NotTested("LION-DG and a ramp have not both run to the target")
    nearest = min(ramps, key=lambda steps: abs(ramps[steps] - ours))
    apart = 100 * (ramps[nearest] / ours - 1)
    return _verdict(
        abs(apart) <= _EQUAL_PERCENT,
        f"LION-DG {ours:,.0f} steps, nearest ramp ({nearest} steps) {ramps[nearest]:,.0f}"
        f" ({apart:+.1f} %)",
    )


def _residual_harms(results: StudyResults) -> Judgement:
    tested = {
        placement: _tested(results, STEPS, {"placement": placement, "init": "lion_dg"})
        for placement in ("residual", "side_tap")
    }
    return _verdict(tested["residual"].comparison.shown > 0, _each_evidence(tested))


def _probed(results: StudyResults, init: str) -> list[Run]:
    """Return the runs probed from their first step on, at every step."""
    return [
        run for run in results.find(init=init, gradient_ratio_every=1) if len(run.probes["step"])
    ]


def _zero_at_first(results: StudyResults) -> Judgement:
    runs = _probed(results, "lion_dg")
    if not runs:
        raise _NotTested("no LION-DG run was probed at its first step")
    norms = [float(run.probes["aux_gradient_norm"][0]) for run in runs]
    text = f"norm at step 1: {', '.join(f'{norm:g}' for norm in norms)} (n = {len(norms)})"
    return _verdict(all(norm == 0.0 for norm in norms), text)


def _linear_growth(results: StudyResults) -> Judgement:
    fits = [fit for run in _probed(results, "lion_dg") for fit in growth_fits(run).values()]
    if not fits:
        raise _NotTested("no LION-DG run was probed at every step")
    worst = min(fit.r_squared for fit in fits)
    text = f"lowest R² of {len(fits)} heads: {worst:.3f} over {EARLY_STEPS} steps"
    return _verdict(worst >= _LINEAR, text)


def _awakens(results: StudyResults) -> Judgement:
    he, lion = _probed(results, "he"), _probed(results, "lion_dg")
    if not he or not lion:
        raise _NotTested("He-init and LION-DG were not both probed at every step")
    highest = max(float(run.probes["gradient_ratio"][0]) for run in lion)
    lowest = min(float(run.probes["gradient_ratio"][0]) for run in he)
    ranks = []
    for run in lion:
        early = run.probes["step"] <= EARLY_STEPS
        ranks.append(spearman(run.probes["step"][early], run.probes["gradient_ratio"][early]))
    return _verdict(
        highest < lowest and min(ranks) >= _STEADY,
        f"ratio at step 1: LION-DG at most {significant(highest)}, He-init at least"
        f" {significant(lowest)}; rank correlation with the step {min(ranks):+.2f} at least",
    )


_METHODS = {"lion_dg": "LION-DG", "lsuv": "LSUV", "lion_lsuv": "The hybrid"}
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_ARCHS = {"densenet_ds": "DenseNet-DS", "resnet_ds": "ResNet-DS"}


def _comparable(dataset: str, arch: str) -> Statement:
    where = f"{_ARCHS[arch]}, {_DATASETS[dataset]}"
    return Statement(
        "Section 5.1",
        f"LION-DG's accuracy is comparable with He-init's: {where}"
        f" (bar: within {_COMPARABLE_POINTS:g} point).",
        _TABLE_1,
        _comparable_accuracy(dataset=dataset, arch=arch, init="lion_dg"),
    )


STATEMENTS = (
    Statement(
        "Proposition 1", "With zeroed heads the auxiliary gradient on the backbone is exactly 0.",
        ("figure1",), _zero_at_first,
    ),
    Statement(
        "Proposition 2",
        "Zeroed head weights grow linearly in early training"
        f" (bar: R² at least {_LINEAR} over {EARLY_STEPS} steps, every head and run).",
        ("figure1",), _linear_growth,
    ),
    Statement(
        "Section 5.3",
        "LION-DG's gradient ratio starts below He-init's and grows steadily"
        f" (bar: rank correlation at least {_STEADY} over {EARLY_STEPS} steps).",
        ("figure1",), _awakens,
    ),
    *(
        Statement(
            "Table 1",
            f"{_METHODS[init]} reaches 70 % sooner than He-init:"
            f" {_ARCHS[arch]}, {_DATASETS[dataset]}.",
            _TABLE_1,
            _fewer_steps(dataset=dataset, arch=arch, init=init),
        )
        for (dataset, arch, init), (_, _, speedup) in TABLE_1.items()
        if speedup is not None
    ),
    Statement(
        "Table 1", "No initialisation of DenseNet-DS reaches 70 % on CIFAR-100.",
        _TABLE_1, _never_reached(dataset="cifar100", arch="densenet_ds"),
    ),
    _comparable("cifar10", "densenet_ds"),
    _comparable("cifar100", "resnet_ds"),
    Statement(
        "Section 5.1", "The hybrid is the most accurate: DenseNet-DS, CIFAR-10.",
        _TABLE_1, _most_accurate("lion_lsuv", **_DENSENET_10),
    ),
    Statement(
        "Section 5.4", "LSUV is the most accurate: ResNet-DS, CIFAR-10.",
        _TABLE_1, _most_accurate("lsuv", dataset="cifar10", arch="resnet_ds"),
    ),
    Statement(
        "Theorem 1", "Zeroed auxiliary weights inside ResNet-DS's residual path slow it down.",
        ("boundary",), _residual_harms,
    ),
    Statement(
        "Corollary 1",
        "LION-DG is equivalent to an explicit ramp of the auxiliary weight"
        f" (bar: the nearest of three ramps within {_EQUAL_PERCENT:g} % of its steps).",
        ("warmup",), _explicit_ramp,
    ),
    Statement(
        "Table 7", "Fixup and ReZero bring nothing over He-init: DenseNet-DS, CIFAR-10.",
        ("table7",), _no_benefit,
    ),
    Statement(
        "Section 5.4", "GradInit is slower than He-init: DenseNet-DS, CIFAR-10.",
        ("gradinit",), _gradinit_is_slower,
    ),
)  # fmt: skip
