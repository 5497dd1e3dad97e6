"""The paper's statements, each with the bar that decides whether a study reproduces it.

The bars were set before any study that they judge had ended, but for two: how near an accuracy
must be to the paper's, and of how many seeds, was written down after the two runs of 3,000 steps;
and the judge of the reduced boundary study was written after it, to the bar that bench/NOTES.md
had before. NOTES also says which verdicts were split later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lion_fast.report.growth import EARLY_STEPS, ON_THE_LINE
from lion_fast.report.judges import (
    COMPARABLE_POINTS,
    DENSENET_10,
    EQUAL_PERCENT,
    LINEAR,
    STEADY,
    STEPS_PERCENT,
    TABLE_1_INITS,
    Judge,
    Judgement,
    NotTested,
    Untouched,
    accuracy_as_published,
    awakens,
    comparable_accuracy,
    explicit_ramp,
    fewer_steps,
    gradinit_is_slower,
    grows_as_predicted,
    linear_growth,
    most_accurate,
    never_reached,
    no_benefit,
    residual_harms,
    steps_as_published,
    zero_at_first,
)
from lion_fast.report.paper import NUM_STEPS, TABLE_1, TABLE_7
from lion_fast.report.results import StudyResults
from lion_fast.report.stats import describe

_TABLE_1 = ("table1", "headline", "table6", "table2", "exits")


@dataclass(frozen=True)
class Statement:
    """One claim of the paper."""

    source: str
    text: str
    """With the bar, where the claim itself has none."""
    studies: tuple[str, ...]
    """Studies that can test it, the most complete one first."""
    judge: Judge
    runs: tuple[Mapping[str, Any], ...] = ({},)
    """Values of config fields of the runs that it needs, all of one seed."""
    paper: str = "claimed"
    """Its figure."""

    def judged_by(self, results: StudyResults) -> Judgement | None:
        """Return what a study says of it; None where it has no such runs."""
        try:
            return self.judge(results)
        except Untouched:
            return None
        except NotTested as why:
            return Judgement("not tested", str(why))


def judge_all(studies: Sequence[StudyResults]) -> list[tuple[Statement, Judgement]]:
    """Return every statement on runs of `studies` with what the most telling of them says of it."""
    judged = []
    for statement in STATEMENTS:
        telling = [r for name in statement.studies for r in studies if r.study.name == name]
        each = [statement.judged_by(results) for results in telling]
        found = [judgement for judgement in each if judgement is not None]
        tested = [judgement for judgement in found if judgement.verdict != "not tested"]
        judged += [(statement, judgement) for judgement in [*tested, *found][:1]]
    return judged


_METHODS = {"he": "He-init", "lion_dg": "LION-DG", "lsuv": "LSUV", "lion_lsuv": "The hybrid"}
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_ARCHS = {"densenet_ds": "DenseNet-DS", "resnet_ds": "ResNet-DS"}


def _of(dataset: str, arch: str, *inits: str) -> tuple[dict[str, Any], ...]:
    return tuple({"dataset": dataset, "arch": arch, "init": init} for init in inits)


def _comparable(dataset: str, arch: str) -> Statement:
    where = f"{_ARCHS[arch]}, {_DATASETS[dataset]}"
    apart = TABLE_1[dataset, arch, "lion_dg"][0] - TABLE_1[dataset, arch, "he"][0]
    return Statement(
        "Section 5.1",
        f"LION-DG's accuracy is comparable with He-init's: {where}"
        f" (bar: within {COMPARABLE_POINTS:g} point).",
        _TABLE_1,
        comparable_accuracy(dataset=dataset, arch=arch, init="lion_dg"),
        _of(dataset, arch, "he", "lion_dg"),
        f"{apart:+.2f} points",
    )


def _sooner(dataset: str, arch: str, init: str, speedup: float) -> Statement:
    return Statement(
        "Table 1",
        f"{_METHODS[init]} reaches 70 % sooner than He-init: {_ARCHS[arch]}, {_DATASETS[dataset]}.",
        _TABLE_1,
        fewer_steps(dataset=dataset, arch=arch, init=init),
        _of(dataset, arch, "he", init),
        f"{speedup:+.1f} %",
    )


def _accuracy(dataset: str, arch: str, init: str) -> Statement:
    also = ", 6" if (dataset, arch) == ("cifar10", "densenet_ds") else ""
    also = f", 2{also}" if init in ("he", "lion_dg") else also
    mean, deviation, _ = TABLE_1[dataset, arch, init]
    return Statement(
        f"Table 1{also}",
        f"{_METHODS[init]}'s validation accuracy after {NUM_STEPS:,} steps:"
        f" {_ARCHS[arch]}, {_DATASETS[dataset]} (bar: within {COMPARABLE_POINTS:g} point).",
        _TABLE_1,
        accuracy_as_published(dataset=dataset, arch=arch, init=init),
        _of(dataset, arch, init),
        f"{mean:.2f} ± {deviation:.2f} %",
    )


def _steps(init: str, name: str) -> Statement:
    paper = describe(list(TABLE_7[init].values()))
    return Statement(
        "Table 7",
        f"{name}'s steps to 70 %: DenseNet-DS, CIFAR-10 (bar: within {STEPS_PERCENT:g} %).",
        ("table7",),
        steps_as_published(**DENSENET_10, init=init),
        ({"init": init},),
        f"{paper.mean:,.0f} ± {paper.population_std:,.0f} steps",
    )


STATEMENTS = (
    Statement(
        "Proposition 1", "With zeroed heads the auxiliary gradient on the backbone is exactly 0.",
        ("figure1",), zero_at_first,
    ),
    Statement(
        "Proposition 2",
        "Zeroed head weights grow linearly in early training"
        f" (bar: R² at least {LINEAR} over {EARLY_STEPS} steps, every head and run).",
        ("figure1",), linear_growth,
    ),
    *(
        Statement(
            "Proposition 2, as stated",
            f"Under gradient descent, {batches}, zeroed head weights grow as eta t C"
            f" (bar: within {100 * ON_THE_LINE:g} % over {EARLY_STEPS} steps, every head and run).",
            ("proposition2",), grows_as_predicted(optimizer="sgd", batch_size=batch_size),
        )
        for batch_size, batches in (
            (120, "each step on all of 120 images"), (128, "in the paper's batches of 128")
        )
    ),
    Statement(
        "Section 5.3",
        "LION-DG's gradient ratio starts below He-init's and grows steadily"
        f" (bar: rank correlation at least {STEADY} over {EARLY_STEPS} steps).",
        ("figure1",), awakens,
    ),
    *(_sooner(*row, speedup) for row, (_, _, speedup) in TABLE_1.items() if speedup is not None),
    *(_accuracy(*row) for row in TABLE_1),
    Statement(
        "Table 1", "No initialisation of DenseNet-DS reaches 70 % on CIFAR-100.",
        _TABLE_1, never_reached(dataset="cifar100", arch="densenet_ds"),
        _of("cifar100", "densenet_ds", *TABLE_1_INITS),
    ),
    _comparable("cifar10", "densenet_ds"),
    _comparable("cifar100", "resnet_ds"),
    Statement(
        "Section 5.1", "The hybrid is the most accurate: DenseNet-DS, CIFAR-10.",
        _TABLE_1, most_accurate("lion_lsuv", **DENSENET_10),
        _of("cifar10", "densenet_ds", *TABLE_1_INITS), "81.92 %",
    ),
    Statement(
        "Section 5.4", "LSUV is the most accurate: ResNet-DS, CIFAR-10.",
        _TABLE_1, most_accurate("lsuv", dataset="cifar10", arch="resnet_ds"),
        _of("cifar10", "resnet_ds", *TABLE_1_INITS), "90.02 %",
    ),
    Statement(
        "Theorem 1", "Zeroed auxiliary weights inside ResNet-DS's residual path slow it down.",
        ("boundary",), residual_harms,
    ),
    Statement(
        "Corollary 1",
        "LION-DG is equivalent to an explicit ramp of the auxiliary weight"
        f" (bar: the nearest of three ramps within {EQUAL_PERCENT:g} % of its steps).",
        ("warmup",), explicit_ramp,
    ),
    Statement(
        "Table 7", "Fixup and ReZero bring nothing over He-init: DenseNet-DS, CIFAR-10.",
        ("table7",), no_benefit,
    ),
    Statement(
        "Section 5.4", "GradInit is slower than He-init: DenseNet-DS, CIFAR-10.",
        ("gradinit",), gradinit_is_slower,
    ),
    _steps("fixup", "Fixup"),
    _steps("rezero", "ReZero"),
    Statement(
        "Table 1, reduced",
        "LION-DG reaches its target sooner than He-init: ResNet-DS of width 16, CIFAR-10.",
        ("reduced-boundary",), fewer_steps(placement="side_tap", init="lion_dg"),
    ),
    Statement(
        "Theorem 1, reduced",
        "Zeroed auxiliary weights inside the residual path slow down: ResNet-DS of width 16.",
        ("reduced-boundary",), residual_harms,
    ),
)  # fmt: skip
