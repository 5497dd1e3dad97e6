"""The paper's statements, each with the bar that decides whether a study reproduces it.

The bars were set before any study that they judge had ended, but for two: how near an accuracy
must be to the paper's, and of how many seeds, was written down after the two runs of 3,000 steps;
and the judges of the reduced studies were written after them, to the bars that bench/NOTES.md
had before. NOTES also says which verdicts were split later.
"""

from typing import Any

from lion_fast.report.gradient_judges import (
    LINEAR,
    STEADY,
    awakens,
    grows_as_predicted,
    linear_growth,
    zero_at_first,
)
from lion_fast.report.growth import EARLY_STEPS, ON_THE_LINE
from lion_fast.report.judges import (
    COMPARABLE_POINTS,
    DENSENET_10,
    EQUAL_PERCENT,
    STEPS_PERCENT,
    TABLE_1_INITS,
    accuracy_as_published,
    comparable_accuracy,
    explicit_ramp,
    fewer_steps,
    gradinit_is_slower,
    less_sensitive,
    most_accurate,
    never_reached,
    no_benefit,
    residual_harms,
    steps_as_published,
)
from lion_fast.report.paper import NUM_STEPS, TABLE_1, TABLE_7
from lion_fast.report.statement import Statement
from lion_fast.report.stats import describe

_TABLE_1 = ("table1", "headline", "table6", "after_3000", "table2", "exits")
# Cooled rates first: the paper tells no schedule, and its accuracies are no constant rate's here.
_WHOLE = ("cooled", *_TABLE_1)

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
        _WHOLE,
        comparable_accuracy(dataset=dataset, arch=arch, init="lion_dg"),
        _of(dataset, arch, "he", "lion_dg"),
        f"{apart:+.2f} points",
        is_of_whole_runs=True,
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
        _WHOLE,
        accuracy_as_published(dataset=dataset, arch=arch, init=init),
        _of(dataset, arch, init),
        f"{mean:.2f} ± {deviation:.2f} %",
        is_of_whole_runs=True,
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
            ("proposition2",),
            grows_as_predicted(optimizer="sgd", batch_size=batch_size),
            ({"optimizer": "sgd", "batch_size": batch_size},),
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
        _of("cifar100", "densenet_ds", *TABLE_1_INITS), is_of_whole_runs=True,
    ),
    _comparable("cifar10", "densenet_ds"),
    _comparable("cifar100", "resnet_ds"),
    Statement(
        "Section 5.1", "The hybrid is the most accurate: DenseNet-DS, CIFAR-10.",
        _WHOLE, most_accurate("lion_lsuv", **DENSENET_10),
        _of("cifar10", "densenet_ds", *TABLE_1_INITS), "81.92 %", is_of_whole_runs=True,
    ),
    Statement(
        "Section 5.4", "LSUV is the most accurate: ResNet-DS, CIFAR-10.",
        _WHOLE, most_accurate("lsuv", dataset="cifar10", arch="resnet_ds"),
        _of("cifar10", "resnet_ds", *TABLE_1_INITS), "90.02 %", is_of_whole_runs=True,
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
        "Section 4.5",
        "LION-DG needs no tuning: over auxiliary weights of 0.1, 0.3 and 0.5 its steps spread less"
        " than He-init's (bar: for every seed; undecided where seeds differ).",
        ("alpha",), less_sensitive,
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
    *(
        Statement(
            "Section 5.1, reduced",
            "LION-DG reaches its target sooner than He-init: ResNet-DS of width 16,"
            f" {num_classes} classes of CIFAR-100.",
            ("reduced-sensitivity",), fewer_steps(num_classes=num_classes, init="lion_dg"),
            ({"num_classes": num_classes},),
        )
        for num_classes in (10, 20, 50, 100)
    ),
)  # fmt: skip
