"""Worker processes of this machine, each of which serves many cells."""

import _thread
import csv
import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal, NamedTuple

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.study.pools import Ended, FinishedRun, Result, Task
from lion_fast.study.status import num_cores, outcome
from lion_fast.study.stopping import STOPPING, signals_blocked
from lion_fast.study.store import Store, Table

if TYPE_CHECKING:
    from lion_fast.training import Summary
    from lion_fast.training.reuse import StepCache

Trainer = Callable[[TrainConfig, Path | None, int], FinishedRun]
"""trainer(config, run folder to resume or None, number of workers beside it) -> FinishedRun"""


def train_cell(config: TrainConfig, resume: Path | None, jobs: int) -> "Summary":
    """Train one cell; `jobs` workers share the CPU's cores evenly.

    A worker keeps the steps that its cells have set up: a cell of the same shape sets up nothing.
    """
    import torch

    from lion_fast.training import train

    torch.set_num_threads(max(1, min(torch.get_num_threads(), num_cores() // jobs)))
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return train(config, resume=resume, reuse=_step_cache())


@cache
def _step_cache() -> "StepCache":
    from lion_fast.training.reuse import StepCache

    return StepCache(_SHAPES_KEPT)


# Two data sets times two networks, as in table1, whose cells take turns seed by seed.
_SHAPES_KEPT = 4


class _Stop(NamedTuple):
    """A signal to act on as if it had come to the worker."""

    signal_number: signal.Signals


_Command = Task | _Stop | Literal["end"]


@dataclass(eq=False)
class Worker:
    """A process and the way to it."""

    process: SpawnProcess
    pipe: Connection


class LocalPool:
    """Implements Pool; workers claim their cells in the store below `folder` themselves."""

    def __init__(self, folder: Path, jobs: int, trainer: Trainer) -> None:
        self.folder, self.jobs, self.trainer = folder, jobs, trainer
        self.workers: dict[Connection, Worker] = {}

    def open(self) -> Worker:
        """Start a worker, deaf to the signals of the terminal: `stop` passes them on."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.folder, self.jobs, self.trainer))
        with signals_blocked():
            process.start()
        theirs.close()
        self.workers[ours] = Worker(process, ours)
        return self.workers[ours]

    def give(self, slot: Worker, task: Task) -> None:
        """Let it run a cell."""
        _tell(slot, task)

    def retire(self, slot: Worker) -> None:
        """Let it end."""
        _tell(slot, "end")

    def hear(self, seconds: float) -> list[tuple[Worker, Result | Ended]]:
        """Wait for results and deaths, at most so long."""
        heard = connection.wait(list(self.workers), seconds)
        return [self._receive(self.workers[pipe]) for pipe in heard]  # type: ignore[index]

    def stop(self, number: signal.Signals) -> None:
        """Let each worker act as if the signal had come to it."""
        for worker in self.workers.values():
            _tell(worker, _Stop(number))

    def join(self) -> None:
        """Wait for the end of every worker."""
        for worker in self.workers.values():
            worker.process.join()

    def close(self) -> None:
        """Kill every worker."""
        for worker in self.workers.values():
            worker.process.kill()
            worker.process.join()

    def _receive(self, worker: Worker) -> tuple[Worker, Result | Ended]:
        try:
            result: Result = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            del self.workers[worker.pipe]
            worker.pipe.close()
            worker.process.join()
            return worker, Ended(_manner_of_death(worker.process.exitcode))
        return worker, result


def _tell(worker: Worker, command: _Command) -> None:
    with suppress(BrokenPipeError):  # it has died: `hear` finds out
        worker.pipe.send(command)


def _manner_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"its process was killed by {signal.Signals(-exitcode).name}"
    return f"its process ended with exit code {exitcode}"


def _work(pipe: Connection, folder: Path, jobs: int, trainer: Trainer) -> None:
    """Run cells that come through `pipe` until told to end; the body of a worker process."""
    for number in STOPPING:
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        try:
            _serve(pipe, folder, jobs, trainer)
        finally:
            # The study may interrupt a worker that has just finished.
            for number in STOPPING:
                signal.signal(number, signal.SIG_IGN)


def _serve(pipe: Connection, folder: Path, jobs: int, trainer: Trainer) -> None:
    tasks: SimpleQueue[Task | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, tasks), daemon=True).start()
    try:
        with Store.open(folder) as store:
            while (task := tasks.get()) is not None:
                pipe.send(_run_cell(store, task, jobs, trainer))
    except KeyboardInterrupt:
        raise
    except UserError as error:
        pipe.send(Result("store error", str(error)))
    except BaseException:
        # A bug, or a GPU whose context is lost: the next cell gets a fresh process.
        pipe.send(Result("crashed", traceback.format_exc()))
        raise


def _listen(pipe: Connection, tasks: "SimpleQueue[Task | None]") -> None:
    """Pass on what the study says, also in the middle of a run; die with it."""
    while True:
        try:
            command: _Command = pipe.recv()
        except (EOFError, ConnectionResetError):
            os._exit(1)
        if isinstance(command, Task):
            tasks.put(command)
            continue
        tasks.put(None)
        if isinstance(command, _Stop):
            _thread.interrupt_main(command.signal_number)


def _run_cell(store: Store, task: Task, jobs: int, trainer: Trainer) -> Result:
    with store.claim(task.cell_id) as mine:
        if not mine:
            return Result("elsewhere", "run by another process")
        try:
            summary = trainer(task.config, _unfinished_run(task.config.out), jobs)
        except UserError as error:
            store.fail(task.cell_id, str(error))
            return Result("failed", str(error))
        # A worker serves many runs: what is counted from its start says nothing of this one.
        values = summary.to_dict() | {"process_seconds": None, "jobs": jobs}
        if summary.resolved["device"] == "cpu":
            values["peak_memory_mib"] = None
        names = ("metrics", "validation", "probes")
        paths = {name: summary.run / f"{name}.csv" for name in names}
        tables = {name: _read_table(path) for name, path in paths.items() if path.exists()}
        store.finish(task.cell_id, values, tables)
        for checkpoint in summary.run.glob("checkpoint*.pt"):
            checkpoint.unlink()
        return Result("done", outcome(values))


def _unfinished_run(folder: Path) -> Path | None:
    """Return the newest run folder in `folder`: what an attempt that was cut short left behind."""
    return max((path.parent for path in folder.glob("*/config.json")), default=None)


def _read_table(path: Path) -> Table:
    with open(path, newline="", encoding="utf-8") as file:
        columns, *rows = csv.reader(file)
    return Table(columns, [[float(value) if value else None for value in row] for row in rows])
