"""Where the cells of a study run: what a pool of slots owes the runner, whatever is behind it."""

import signal
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from lion_fast.config import TrainConfig


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


class Result(NamedTuple):
    """What a worker tells of the cell that it was given."""

    state: Literal["done", "failed", "elsewhere", "crashed", "store error"]
    text: str


class Task(NamedTuple):
    """A cell to run."""

    cell_id: int
    config: TrainConfig


class Ended(NamedTuple):
    """A slot is gone, and with it the cell that it ran."""

    manner: str
    """How it ended, for the record of that cell."""


SlotT = TypeVar("SlotT", bound=Hashable)


class Pool(Protocol[SlotT]):
    """Slots that each run one cell at a time; the runner alone decides which."""

    def open(self) -> SlotT:
        """Start a slot."""

    def give(self, slot: SlotT, task: Task) -> None:
        """Let an idle slot run a cell. A slot that has died meanwhile is heard of as Ended."""

    def retire(self, slot: SlotT) -> None:
        """Let an idle slot end; it is heard of as Ended."""

    def hear(self, seconds: float) -> list[tuple[SlotT, Result | Ended]]:
        """Wait for news, at most so long; nothing is an empty list."""

    def stop(self, number: signal.Signals) -> None:
        """Pass a signal on to every run, once, without waiting."""

    def join(self) -> None:
        """Wait until every slot has ended."""

    def close(self) -> None:
        """End every slot at once."""
