"""Which data the runs of a study saw: what two sets of one name gave is never averaged."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lion_fast.config import TrainConfig
from lion_fast.data.sources import BUILT_IN, data_fingerprint
from lion_fast.errors import UserError
from lion_fast.study.grid import Cell
from lion_fast.study.store import Store
from lion_fast.study.stored import DATA, StoredCell, set_aside

Source = tuple[str, int | None]
"""What names the data of a run: runs that have it in common must have seen the same."""

_FINISHED = Iterable[tuple[TrainConfig, dict[str, Any]]]
"""Configs and summaries."""


def source_of(config: TrainConfig) -> Source:
    """Return what names a run's data: of a folder, only the classes that are kept are looked at."""
    is_whole = config.dataset in BUILT_IN or config.dataset.lower().endswith(".npz")
    return config.dataset, None if is_whole else config.num_classes


def finished(cells: Iterable[tuple[Cell, StoredCell | None]]) -> list[tuple[Cell, dict[str, Any]]]:
    """Return the finished runs, each with its summary."""
    return [(cell, s.summary) for cell, s in cells if s is not None and s.summary is not None]


class DataHere:
    """The data sets of a study as they are on this machine; each is looked at once."""

    def __init__(self) -> None:
        self._found: dict[Source, str | None] = {}

    def of(self, config: TrainConfig) -> str | None:
        """Return the fingerprint that a run of `config` would note now; None where none is here."""
        source = source_of(config)
        if source not in self._found:
            self._found[source] = data_fingerprint(config)
        return self._found[source]

    def differ(self, config: TrainConfig, summary: dict[str, Any]) -> bool:
        """Whether a finished run is known to have seen other data than those that are here."""
        told = summary.get(DATA)
        if told is None:
            return False
        now = self.of(config)
        return now is not None and now != told


def known_data(runs: _FINISHED, where: object) -> dict[Source, str]:
    """Return the fingerprint of each data set that runs have noted.

    Raises UserError, naming `where`, where runs of one set have noted two.
    """
    found: dict[Source, dict[str, None]] = defaultdict(dict)
    for config, summary in runs:
        if told := summary.get(DATA):
            found[source_of(config)][told] = None
    for (dataset, _), prints in found.items():
        if len(prints) > 1:
            short = " and ".join(each[:12] for each in prints)
            raise UserError(
                f"{where} holds runs of different data under the name {dataset} ({short}): start"
                " the study where its data are, with --rerun changed, to run anew what is of others"
            )
    return {source: next(iter(prints)) for source, prints in found.items()}


def num_unknown(summaries: Iterable[dict[str, Any]]) -> int:
    """Return how many runs do not say what data they saw, as those of earlier versions."""
    return sum(summary.get(DATA) is None for summary in summaries)


def refuse_changed(changed: Sequence[Cell], where: object) -> None:
    """Raise UserError if any finished run saw other data than those that are here."""
    if not changed:
        return
    first = changed[0]
    raise UserError(
        f"{len(changed)} finished runs in {where}, {first.label} seed {first.config.seed} the"
        f" first, are of other data than {first.config.dataset} is now: --rerun changed runs them"
        " anew, another --out keeps both; or put the data back"
    )


def forget_changed(
    cells: Iterable[tuple[Cell, StoredCell | None]], store: Store, here: DataHere
) -> int:
    """Make runs that saw other data missing again, and return of how many; run folders are kept."""
    count = 0
    for cell, stored in cells:
        if stored is None or stored.summary is None:
            continue
        if here.differ(cell.config, stored.summary):
            count += store.forget(stored, stored.summary[DATA])
    return count


def drop_unfinished(folder: Path, config: TrainConfig, here: DataHere) -> None:
    """Set aside what an attempt at a cell has left in `folder`, if it saw other data."""
    from lion_fast.data.facts import DataFacts
    from lion_fast.study.pools.worker import unfinished_run
    from lion_fast.training.folder.checkpoint import load_checkpoint

    left = unfinished_run(folder)
    try:
        checkpoint = None if left is None else load_checkpoint(left)
        facts = DataFacts.from_dict((checkpoint or {})["data"])
    except (UserError, KeyError, TypeError, AttributeError):
        return  # Damaged, of an earlier version or none: the run itself says what it makes of it.
    if here.differ(config, {DATA: facts.fingerprint}):
        set_aside(folder)
