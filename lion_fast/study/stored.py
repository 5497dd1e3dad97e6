"""What a store holds of a run, and the run's folder beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lion_fast.config import TrainConfig

DATA = "data_fingerprint"
"""What tells the data that a run saw, in summaries and exports; earlier versions' have none."""

# What status, conclusion and report read of every finished run.
SUMMARY_KEYS = frozenset(
    {
        *("steps", "target_accuracy", "steps_to_target", "seconds_to_target"),
        *("init_seconds", "setup_seconds", "train_seconds", "total_seconds"),
        *("step_milliseconds_median", "val_accuracy", "val_accuracy_per_head"),
        *("resolved", "environment"),
    }
)


class Table(NamedTuple):
    """Rows of numbers; the first column is `step`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class StoredCell:
    """One run as the store knows it: missing, failed (error) or done (summary)."""

    id: int
    key: str
    config: TrainConfig
    summary: dict[str, Any] | None
    """As in the run's summary.json."""
    error: str | None
    """Why the last attempt failed; the run is tried again when the study is started again."""


def set_aside(folder: Path) -> None:
    """Give a cell's folder another name, if there is one; nothing in it is lost."""
    if folder.exists():
        number = 1
        while (other := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(other)
