"""Where the cells of a study run: what a pool of slots owes the runner, whatever is behind it."""

import signal
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from lion_fast.config import TrainConfig
from lion_fast.study.store import Table


class FinishedRun(Protocol):
    """What a study uses of a Summary."""

    @property
    def run(self) -> Path:
        """The run folder."""

    @property
    def resolved(self) -> dict[str, str]:
        """How it was executed."""

    def to_dict(self) -> dict[str, Any]:
        """Return what the store keeps."""


Trainer = Callable[[TrainConfig, Path | None, int], FinishedRun]
"""trainer(config, run folder to resume or None, number of runs beside it) -> FinishedRun"""


class Result(NamedTuple):
    """What a slot tells of the cell that it was given."""

    state: Literal["done", "failed", "elsewhere"]
    text: str
    """The outcome in words, or why it failed."""
    values: dict[str, Any] = {}
    """Of a run that is done, for the store: its summary."""
    tables: dict[str, Table] = {}
    """Likewise: its metrics, validation and probes."""


class Ended(NamedTuple):
    """A slot is gone, and with it the cell that it ran."""

    manner: str
    """How it ended, for the record of that cell."""
    is_lost: bool = False
    """Whether a machine failed and not the cell, which may go on in another slot."""


SlotT = TypeVar("SlotT", bound=Hashable)


class Pool(Protocol[SlotT]):
    """Slots that each run one cell at a time; the runner alone decides which.

    The runner holds the cells' claims and writes the store: a pool sees neither.
    """

    @property
    def num_slots(self) -> int:
        """How many slots there is room for now, at least 1; raises UserError where none is left."""

    def notes(self, num_runs: int) -> list[str]:
        """Return what to say before that many runs start."""

    def open(self) -> SlotT:
        """Start a slot."""

    def give(self, slot: SlotT, config: TrainConfig) -> None:
        """Let an idle slot run a cell, from where the newest run folder in `config.out` left it.

        A slot that has died meanwhile is heard of as Ended.
        """

    def retire(self, slot: SlotT) -> None:
        """Let an idle slot end; it is heard of as Ended."""

    def hear(self, seconds: float) -> list[tuple[SlotT, Result | Ended]]:
        """Wait for news, at most so long; nothing is an empty list.

        What a Result tells of lies in the cell's run folder by then.
        """

    def stop(self, number: signal.Signals) -> None:
        """Pass a signal on to every run, once, without waiting; every slot is heard of as Ended."""

    def close(self) -> None:
        """End every slot at once."""


MakePool = Callable[[Trainer], Pool[Any]]
"""Opens a pool whose slots run cells with that trainer."""
