"""What the studies at hand say of every statement, and what those lack that can say more."""

from collections.abc import Sequence
from typing import Any

from lion_fast.config import TrainConfig, fields_of
from lion_fast.report.beyond import BEYOND
from lion_fast.report.costs import DEFAULT_CARD, cost_text
from lion_fast.report.judges import Judgement
from lion_fast.report.results import StudyResults, has_values
from lion_fast.report.statement import Statement
from lion_fast.report.statements import STATEMENTS
from lion_fast.study.grid import Study
from lion_fast.study.studies import STUDIES


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
