"""The body of a worker process, which serves many cells and ends with whoever started it."""

import _thread
import csv
import gc
import os
import signal
import threading
import traceback
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lion_fast.config import TrainConfig
from lion_fast.errors import OtherData, UserError
from lion_fast.study.pools import Ended, Result, Trainer
from lion_fast.study.status import num_cores, outcome
from lion_fast.study.stopping import STOPPING
from lion_fast.study.store import Table

if TYPE_CHECKING:
    from lion_fast.training import Summary
    from lion_fast.training.step.reuse import StepCache


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
    from lion_fast.training.step.reuse import StepCache

    return StepCache(_SHAPES_KEPT)


# Two data sets times two networks, as in table1, whose cells take turns seed by seed.
_SHAPES_KEPT = 4


class Lend(NamedTuple):
    """A data set to keep for cells to come, whose files may lie on another machine."""

    dataset: str
    arrays: Any
    """LabelledArrays"""


class Stop(NamedTuple):
    """A signal to act on as if it had come to the worker."""

    signal_number: signal.Signals


Command = TrainConfig | Lend | Stop | Literal["end"]


def work(pipe: Connection, jobs: int, trainer: Trainer) -> None:
    """Run the cells that come through `pipe` until told to end; the body of a worker process."""
    for number in STOPPING:
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        try:
            _serve(pipe, jobs, trainer)
        finally:
            # The study may interrupt a worker that has just finished.
            for number in STOPPING:
                signal.signal(number, signal.SIG_IGN)


def _serve(pipe: Connection, jobs: int, trainer: Trainer) -> None:
    tasks: SimpleQueue[TrainConfig | Lend | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, tasks), daemon=True).start()
    try:
        while (task := tasks.get()) is not None:
            if isinstance(task, Lend):
                _keep(task)
            else:
                pipe.send(_run_cell(task, jobs, trainer))
    except KeyboardInterrupt:
        raise
    except BaseException:
        # A bug, or a GPU whose context is lost: the next cell gets a fresh process.
        pipe.send(Ended(traceback.format_exc()))
        raise


def _listen(pipe: Connection, tasks: "SimpleQueue[TrainConfig | Lend | None]") -> None:
    """Pass on what the study says, also in the middle of a run; die with it."""
    while True:
        try:
            command: Command = pipe.recv()
        except (EOFError, ConnectionResetError):
            os._exit(1)
        if isinstance(command, TrainConfig | Lend):
            tasks.put(command)
            continue
        tasks.put(None)
        if isinstance(command, Stop):
            _thread.interrupt_main(command.signal_number)


def _keep(lent: Lend) -> None:
    from lion_fast.data.sources import lend

    lend(lent.dataset, lent.arrays)


def _run_cell(config: TrainConfig, jobs: int, trainer: Trainer) -> Result:
    try:
        summary = trainer(config, unfinished_run(config.out), jobs)
    except OtherData as error:
        return Result("failed", f"{error}: --rerun changed does so")
    except UserError as error:
        return Result("failed", str(error))
    # A worker serves many runs: what is counted from its start says nothing of this one.
    values = summary.to_dict() | {"process_seconds": None, "jobs": jobs}
    if values.get("stopped_seconds"):
        # Taken out as well as it could be seen, which is not what seconds are compared by.
        values["seconds_to_target"] = None
    if summary.resolved["device"] == "cpu":
        values["peak_memory_mib"] = None
    names = ("metrics", "validation", "probes")
    paths = {name: summary.run / f"{name}.csv" for name in names}
    tables = {name: _read_table(path) for name, path in paths.items() if path.exists()}
    return Result("done", outcome(values), values, tables)


def unfinished_run(folder: Path) -> Path | None:
    """Return the newest run folder in `folder`: what an attempt that was cut short left behind."""
    return max((path.parent for path in folder.glob("*/config.json")), default=None)


def _read_table(path: Path) -> Table:
    with open(path, newline="", encoding="utf-8") as file:
        columns, *rows = csv.reader(file)
    return Table(columns, [[float(value) if value else None for value in row] for row in rows])
