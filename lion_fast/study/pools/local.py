"""Worker processes of this machine, each of which serves many cells."""

import multiprocessing
import signal
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from lion_fast.config import TrainConfig
from lion_fast.study.pools import Ended, Result, Trainer
from lion_fast.study.pools.worker import Command, Lend, Stop, work
from lion_fast.study.status import num_cores
from lion_fast.study.stopping import signals_blocked, signals_held

_SECONDS_TO_END = 30.0
"""For a worker that has said its last word, before it is killed."""


@dataclass(eq=False)
class Worker:
    """A process and the way to it."""

    process: SpawnProcess
    pipe: Connection


class LocalPool:
    """Implements Pool."""

    def __init__(self, jobs: int, trainer: Trainer) -> None:
        self.num_slots, self.trainer = jobs, trainer
        self.workers: dict[Connection, Worker] = {}

    def notes(self, num_runs: int) -> list[str]:
        """Say where more runs at a time than cores would make the study no faster."""
        cores = num_cores()
        if min(self.num_slots, num_runs) <= cores:
            return []
        return [
            f"oversubscribed: {self.num_slots} runs at a time share {cores} cores, which makes each"
            f" slower and the study no faster: --jobs {cores} is enough"
        ]

    def open(self) -> Worker:
        """Start a worker, deaf to the signals of the terminal: `stop` passes them on."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self.num_slots, self.trainer))
        with signals_blocked():
            process.start()
        theirs.close()
        self.workers[ours] = Worker(process, ours)
        return self.workers[ours]

    def give(self, slot: Worker, config: TrainConfig) -> None:
        """Let it run a cell."""
        _tell(slot, config)

    def lend(self, slot: Worker, lent: Lend) -> None:
        """Let it keep a data set for cells to come."""
        _tell(slot, lent)

    def retire(self, slot: Worker) -> None:
        """Let it end."""
        _tell(slot, "end")

    def hear(self, seconds: float) -> list[tuple[Worker, Result | Ended]]:
        """Wait for results and deaths, at most so long."""
        heard = connection.wait(list(self.workers), seconds)
        # A signal that broke off a message would leave the rest of it to be taken for the next.
        with signals_held():
            return [self._receive(self.workers[pipe]) for pipe in heard]  # type: ignore[index]

    def stop(self, number: signal.Signals) -> None:
        """Let each worker act as if the signal had come to it."""
        for worker in self.workers.values():
            _tell(worker, Stop(number))

    def close(self) -> None:
        """Kill every worker."""
        for worker in self.workers.values():
            worker.process.kill()
            worker.process.join()

    def _receive(self, worker: Worker) -> tuple[Worker, Result | Ended]:
        told: Result | Ended | None = None
        with suppress(EOFError, OSError):  # the latter in the middle of a message
            told = worker.pipe.recv()
        if isinstance(told, Result):
            return worker, told
        del self.workers[worker.pipe]
        worker.process.join(_SECONDS_TO_END)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        return worker, told or Ended(_manner_of_death(worker.process.exitcode))


def _tell(worker: Worker, command: Command) -> None:
    with suppress(BrokenPipeError):  # it has died: `hear` finds out
        worker.pipe.send(command)


def _manner_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"its process was killed by {signal.Signals(-exitcode).name}"
    return f"its process ended with exit code {exitcode}"
