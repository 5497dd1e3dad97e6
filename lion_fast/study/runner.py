"""Run the missing cells of a study in worker processes, each of which serves many cells."""

import _thread
import csv
import gc
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.study.grid import Cell, Study
from lion_fast.study.saying import say as say_aloud
from lion_fast.study.status import (
    cell_states,
    num_cores,
    outcome,
    steps_done,
    time_left,
)
from lion_fast.study.stopping import STOPPING, signal_of, signals_blocked, stop_signals
from lion_fast.study.store import Store, Table
from lion_fast.training.console import clock

if TYPE_CHECKING:
    from lion_fast.training import Summary


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
"""trainer(config, run folder to resume or None, number of workers beside it) -> FinishedRun"""


PROGRESS_SECONDS = 60.0
"""Silence after which the steps of the runs in flight are said."""


@dataclass(frozen=True)
class StudyOutcome:
    """What became of the cells that were missing when a study was started."""

    num_done: int
    num_failed: int
    num_elsewhere: int
    """Run by another process on the same study, perhaps still."""


def train_cell(config: TrainConfig, resume: Path | None, jobs: int) -> "Summary":
    """Train one cell; `jobs` workers share the CPU's cores evenly."""
    import torch

    from lion_fast.training import train

    torch.set_num_threads(max(1, min(torch.get_num_threads(), num_cores() // jobs)))
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return train(config, resume=resume)


def run_study(
    study: Study,
    out: Path,
    *,
    jobs: int = 1,
    say: Callable[[str], None] = say_aloud,
    trainer: Trainer = train_cell,
) -> StudyOutcome:
    """Run every cell of `study` that its store below `out` does not hold yet; say what happens.

    A failed cell is recorded and the rest goes on. Raises UserError on bad input and when the store
    fails. Raises KeyboardInterrupt on Ctrl-C, its subclass Stopped on SIGTERM and SIGHUP, once the
    runs in flight have saved a checkpoint (a second signal does not wait). Kill this process and
    its workers end with it; nothing that was finished is lost.
    """
    if jobs < 1:
        raise UserError(f"jobs is {jobs}: it must be at least 1")
    with Store.create(study, out) as store, stop_signals():
        return _Start(study, store, jobs, say, trainer).execute()


class _Result(NamedTuple):
    """What a worker tells of the cell that it was given."""

    state: Literal["done", "failed", "elsewhere", "crashed", "store error"]
    text: str


class _Task(NamedTuple):
    """A cell to run."""

    cell_id: int
    config: TrainConfig


class _Stop(NamedTuple):
    """A signal to act on as if it had come to the worker."""

    signal_number: signal.Signals


_Command = _Task | _Stop | Literal["end"]


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    task: tuple[Cell, int] | None = None
    """The cell that it runs now, and that cell's id."""
    step_said: int = 0


class _Start:
    """One start of a study."""

    def __init__(
        self, study: Study, store: Store, jobs: int, say: Callable[[str], None], trainer: Trainer
    ) -> None:
        self.study, self.store, self.jobs, self.trainer = study, store, jobs, trainer
        self.started = time.perf_counter()
        self.say = lambda text: say(f"{clock(time.perf_counter() - self.started):>8}  {text}")
        cells = store.of(study)
        self.pending = deque((c, s.id) for c, s in cells if s is not None and s.summary is None)
        self.total = len(cells)
        self.workers: dict[Connection, _Worker] = {}
        self.counts = {"done": 0, "failed": 0, "elsewhere": 0}

    def execute(self) -> StudyOutcome:
        """Run until nothing is pending."""
        self.say(f"{self.study.name}: {self.total} runs, {len(self.pending)} to do")
        cores = num_cores()
        if min(self.jobs, len(self.pending)) > cores:
            self.say(
                f"oversubscribed: {self.jobs} runs at a time share {cores} cores, which makes each"
                f" slower and the study no faster: --jobs {cores} is enough"
            )
        try:
            while self.pending or self.workers:
                while self.pending and len(self.workers) < self.jobs:
                    self._give_next(self._start_worker())
                heard = connection.wait(list(self.workers), PROGRESS_SECONDS)
                for pipe in heard:
                    self._hear(self.workers[pipe])  # type: ignore[index]
                if not heard:
                    self._say_steps()
        except KeyboardInterrupt as stop:
            for worker in self.workers.values():
                _tell(worker, _Stop(signal_of(stop)))
            self.say("interrupted: runs in flight save a checkpoint (Ctrl-C again: at once)")
            for worker in self.workers.values():
                worker.process.join()
            raise
        finally:
            for worker in self.workers.values():
                worker.process.kill()
                worker.process.join()
        done, failed, elsewhere = self.counts.values()
        self.say(f"{self.study.name}: {done} done, {failed} failed, {elsewhere} run elsewhere")
        return StudyOutcome(done, failed, elsewhere)

    def _say_steps(self) -> None:
        for worker in self.workers.values():
            if worker.task is None:
                continue
            cell, _ = worker.task
            step = steps_done(self.store.folder / "runs" / cell.key)
            if step > worker.step_said:
                worker.step_said = step
                where = f"step {step} of {cell.config.max_steps}"
                self.say(f"running {cell.label}  seed {cell.config.seed}  {where}")

    def _start_worker(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, self.store.folder, self.jobs, self.trainer)
        )
        with signals_blocked():
            process.start()
        theirs.close()
        self.workers[ours] = _Worker(process, ours)
        return self.workers[ours]

    def _give_next(self, worker: _Worker) -> None:
        """Give the worker the next cell, or let it end."""
        if not self.pending:
            worker.task = None
            _tell(worker, "end")
            return
        worker.task = cell, cell_id = self.pending.popleft()
        worker.step_said = 0
        self.say(f"start   {cell.label}  seed {cell.config.seed}")
        config = replace(cell.config, out=self.store.folder / "runs" / cell.key)
        _tell(worker, _Task(cell_id, config))

    def _hear(self, worker: _Worker) -> None:
        """Take in one message of a worker, or its end."""
        try:
            result: _Result = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            del self.workers[worker.pipe]
            worker.pipe.close()
            worker.process.join()
            if worker.task is not None:
                self._record_crash(worker.task, _manner_of_death(worker.process.exitcode))
            return
        assert worker.task is not None
        if result.state == "store error":
            raise UserError(result.text)
        if result.state == "crashed":
            self._record_crash(worker.task, result.text)
            worker.task = None
            return
        self._count(worker.task[0], result)
        self._give_next(worker)

    def _record_crash(self, task: tuple[Cell, int], text: str) -> None:
        cell, cell_id = task
        self.store.fail(cell_id, text)
        self._count(cell, _Result("failed", text.splitlines()[-1]))

    def _count(self, cell: Cell, result: _Result) -> None:
        self.counts[result.state] += 1
        states = cell_states(self.study, self.store)
        num_done = sum(state.state == "done" for state in states)
        left = time_left(states, self.jobs)
        eta = "" if left is None else f"  about {left} left"
        self.say(
            f"{result.state:7} {cell.label}  seed {cell.config.seed}  {result.text}"
            f"  [{num_done}/{self.total}]{eta}"
        )


def _tell(worker: _Worker, command: _Command) -> None:
    with suppress(BrokenPipeError):  # it has died: `_hear` finds out
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
    tasks: SimpleQueue[_Task | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, tasks), daemon=True).start()
    try:
        with Store.open(folder) as store:
            while (task := tasks.get()) is not None:
                pipe.send(_run_cell(store, task, jobs, trainer))
    except KeyboardInterrupt:
        raise
    except UserError as error:
        pipe.send(_Result("store error", str(error)))
    except BaseException:
        # A bug, or a GPU whose context is lost: the next cell gets a fresh process.
        pipe.send(_Result("crashed", traceback.format_exc()))
        raise


def _listen(pipe: Connection, tasks: "SimpleQueue[_Task | None]") -> None:
    """Pass on what the study says, also in the middle of a run; die with it."""
    while True:
        try:
            command: _Command = pipe.recv()
        except (EOFError, ConnectionResetError):
            os._exit(1)
        if isinstance(command, _Task):
            tasks.put(command)
            continue
        tasks.put(None)
        if isinstance(command, _Stop):
            _thread.interrupt_main(command.signal_number)


def _run_cell(store: Store, task: _Task, jobs: int, trainer: Trainer) -> _Result:
    with store.claim(task.cell_id) as mine:
        if not mine:
            return _Result("elsewhere", "run by another process")
        try:
            summary = trainer(task.config, _unfinished_run(task.config.out), jobs)
        except UserError as error:
            store.fail(task.cell_id, str(error))
            return _Result("failed", str(error))
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
        return _Result("done", outcome(values))


def _unfinished_run(folder: Path) -> Path | None:
    """Return the newest run folder in `folder`: what an attempt that was cut short left behind."""
    return max((path.parent for path in folder.glob("*/config.json")), default=None)


def _read_table(path: Path) -> Table:
    with open(path, newline="", encoding="utf-8") as file:
        columns, *rows = csv.reader(file)
    return Table(columns, [[float(value) if value else None for value in row] for row in rows])
