"""The paper's statements, each with the bar that decides whether a study reproduces it, and ours.

The bars were set before any study that they judge had ended, but for two: how near an accuracy
must be to the paper's, and of how many seeds, was written down after the two runs of 3,000 steps;
and the judges of the reduced studies were written after them, to the bars that bench/NOTES.md
had before. NOTES also says which verdicts were split later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lion_fast.config import TrainConfig, fields_of
from lion_fast.report.costs import DEFAULT_CARD, cost_text
from lion_fast.report.dense_judges import (
    MANY,
    RANK_ONE,
    as_good_as_he,
    behind_he,
    leaves_rank_one,
    stays_of_rank_one,
)
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
    Judge,
    Judgement,
    NotTested,
    Untouched,
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
from lion_fast.report.recipe_judges import (
    COST_SHARE,
    LOST_POINTS,
    NUM_SEEDS,
    SECONDS_SHARE,
    cheaper,
    faster,
    no_less_accurate_at_the_target,
    no_less_accurate_in_the_end,
)
from lion_fast.report.results import StudyResults, has_values
from lion_fast.report.stats import describe
from lion_fast.study.grid import Study
from lion_fast.study.studies import STUDIES

_TABLE_1 = ("table1", "headline", "table6", "after_3000", "table2", "exits")
# Cooled rates first: the paper tells no schedule, and its accuracies are no constant rate's here.
_WHOLE = ("cooled", *_TABLE_1)


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
    is_of_whole_runs: bool = False
    """Whether runs that stopped at the target say nothing of it."""

    def judged_by(self, results: StudyResults) -> Judgement | None:
        """Return what a study says of it; None where it has no such runs."""
        try:
            return self.judge(results)
        except Untouched:
            return None
        except NotTested as why:
            return Judgement("not tested", str(why))


def judge_all(
    studies: Sequence[StudyResults], *, whole: bool = False, card: str = DEFAULT_CARD
) -> list[tuple[Statement, Judgement]]:
    """Return every statement on runs of `studies` with what the most telling of them says of it.

    With `whole`, also those of the paper that no run at hand can test, each with what it would cost
    on `card`.
    """
    judged = []
    for statement in (*STATEMENTS, *BEYOND):
        telling = [r for name in statement.studies for r in studies if r.study.name == name]
        found = []
        for results in telling:
            judgement = statement.judged_by(results)
            if judgement is not None:
                found.append(judgement._replace(command=command_of(results.study)))
        tested = [judgement for judgement in found if judgement.verdict != "not tested"]
        if whole and not tested and statement in STATEMENTS:
            tested = [not_run(statement, found, studies, card)]
        judged += [(statement, judgement) for judgement in [*tested, *found][:1]]
    return judged


def not_run(
    statement: Statement,
    found: Sequence[Judgement],
    studies: Sequence[StudyResults],
    card: str,
) -> Judgement:
    """Return what a statement that no run tests needs: runs of the first study that can."""
    study = STUDIES[statement.studies[0]]
    done = runs_done(studies, whole=statement.is_of_whole_runs)
    missing = [
        cell.config
        for cell in study.cells()
        if any(has_values(cell.config, wanted) for wanted in statement.runs)
        and numbers_of(cell.config) not in done
    ]
    why = [judgement.evidence for judgement in found if judgement.evidence]
    cost = cost_text(missing, studies, card)
    return Judgement(
        "not run",
        "; ".join([*why[:1], cost]),
        figure=cost,
        command=command_of(study),
    )


def runs_done(studies: Sequence[StudyResults], *, whole: bool) -> set[tuple[Any, ...]]:
    """Return `numbers_of` every finished run; with `whole`, of those that went to their end."""
    return {
        numbers_of(run.config)
        for results in studies
        for run in results.runs
        if not (whole and run.config.stop_at_target)
    }


def studies_not_run(studies: Sequence[StudyResults]) -> list[tuple[Study, list[TrainConfig]]]:
    """Return the named studies that are not among `studies`, each with the runs that it lacks."""
    names = {results.study.name for results in studies}
    done = runs_done(studies, whole=False)
    lacking = [
        (study, [cell.config for cell in study.cells() if numbers_of(cell.config) not in done])
        for study in STUDIES.values()
        if study.name not in names and study.base.dataset.startswith("cifar")
    ]
    return [(study, missing) for study, missing in lacking if missing]


def numbers_of(config: TrainConfig) -> tuple[Any, ...]:
    """Return what decides a run's course, but for where it stops."""
    values = config.to_dict()
    return tuple(values[name] for name in sorted(fields_of("numbers") - {"stop_at_target"}))


def command_of(study: Study) -> str:
    """Return the command that runs a study as it is, whatever the named one has set."""
    named = STUDIES.get(study.name, study)
    flags = [
        f" --{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name in ("engine", "max_steps", "stop_at_target", "device")
        if (value := getattr(study.base, name)) != getattr(named.base, name)
    ]
    seeds = f" --seeds {' '.join(map(str, study.seeds))}" if study.seeds != named.seeds else ""
    return study.command + "".join(flags) + seeds


_NONE = "\N{EN DASH}"
"""Of a statement of ours, on which the paper has no figure."""
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
    Statement(
        "Table 1, whitened stem",
        "LION-DG reaches 70 % sooner than He-init on a whitened stem: DenseNet-DS, CIFAR-10.",
        ("whitening",), fewer_steps(**DENSENET_10, init="lion_dg", whiten=24),
        ({"whiten": 24},), _NONE,
    ),
    *(
        Statement("Preset fast", f"Preset fast, against the one before: {text}.", (study,), judge,
                  paper=_NONE)
        for text, study, judge in (
            (f"at most {COST_SHARE:g} of its computation to 70 % (bar: mean ratio of {NUM_SEEDS}"
             " seeds)", "speedrun2", cheaper),
            (f"at most {SECONDS_SHARE:g} of its seconds (bar: the same)", "speedrun2", faster),
            (f"at the crossing at most {LOST_POINTS:g} points less accurate (bar: paired one-sided"
             f" test at 5 %, {NUM_SEEDS} seeds)", "speedrun2", no_less_accurate_at_the_target),
            (f"not less accurate after {NUM_STEPS:,} steps cooled to zero (bar: at most"
             f" {COMPARABLE_POINTS:g} point, none shown)", "speedrun2_whole",
             no_less_accurate_in_the_end),
        )
    ),
)  # fmt: skip


def _dense(text: str, judge: Judge, **fields: object) -> Statement:
    """Return a statement on mIoU after 1,500 steps, or on heads, of study `dense`."""
    return Statement("Beyond the paper", text, ("dense",), judge, (fields,), paper="asked here")


_SCENES = {"dataset": "scenes", "dice": 0.0, "aux_weight": 0.5}
_WITH_DICE = {**_SCENES, "dice": 1.0}
_FOREGROUND = {**_SCENES, "dataset": "scenes_foreground"}
_PLAIN = {"init": "lion_dg", "head_bias": "zero"}
_PRIOR = {"init": "lion_dg", "head_bias": "prior"}
_BY_SEED = "(bar: mIoU after 1,500 steps, by seed, Holm over the study"

BEYOND = (
    *(
        _dense(
            f"LION-DG is behind He-init on UNet-DS where most pixels are background, {loss}"
            f" {_BY_SEED}).",
            behind_he(**setting, **_PLAIN),
            **setting,
        )
        for setting, loss in ((_SCENES, "cross-entropy"), (_WITH_DICE, "cross-entropy and Dice"))
    ),
    *(
        _dense(
            f"A class prior as the heads' bias restores LION-DG, {loss} {_BY_SEED}: within 5 % of"
            " He-init's).",
            as_good_as_he(**setting, **_PRIOR),
            **setting,
        )
        for setting, loss in ((_SCENES, "cross-entropy"), (_WITH_DICE, "cross-entropy and Dice"))
    ),
    _dense(
        f"Imbalance is the cause: with the background ignored LION-DG is as good {_BY_SEED}: within"
        " 5 % of He-init's).",
        as_good_as_he(**_FOREGROUND, **_PLAIN),
        **_FOREGROUND,
    ),
    _dense(
        "Zeroed heads stay of rank 1 where most pixels are background (bar: effective rank at most"
        f" {RANK_ONE:g} after 50, 150 and 600 steps in every head and run, He-init's at least"
        f" {MANY:g}).",
        stays_of_rank_one(**_SCENES, head_bias="zero"),
        **_SCENES,
    ),
    Statement(
        "Beyond the paper",
        "On balanced digits the zeroed heads of DenseNet-DS do not (bar: effective rank at least"
        f" {MANY:g} after 50, 150 and 600 steps in every head and run).",
        ("head_ranks",),
        leaves_rank_one(),
        paper="asked here",
    ),
)
"""What the paper leaves open, asked here: the bars were committed before the studies ran."""
