"""Run the missing cells of a study in worker processes, each of which serves many cells."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lion_fast.errors import UserError
from lion_fast.study.grid import Cell, Study
from lion_fast.study.pools import Ended, Pool, Result, Task
from lion_fast.study.pools.local import LocalPool, Trainer, Worker, train_cell
from lion_fast.study.saying import say as say_aloud
from lion_fast.study.status import cell_states, num_cores, steps_done, time_left
from lion_fast.study.stopping import signal_of, stop_signals
from lion_fast.study.store import Store
from lion_fast.training.console import clock
from lion_fast.training.ranks import ranks_here

PROGRESS_SECONDS = 60.0
"""Silence after which the steps of the runs in flight are said."""


@dataclass(frozen=True)
class StudyOutcome:
    """What became of the cells that were missing when a study was started."""

    num_done: int
    num_failed: int
    num_elsewhere: int
    """Run by another process on the same study, perhaps still."""


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
    if (size := ranks_here().size) > 1:
        raise UserError(f"a study is one process, and torchrun has started {size}: leave it out")
    with Store.create(study, out) as store, stop_signals():
        return _Start(study, store, jobs, say, trainer).execute()


@dataclass
class _Given:
    """The cell that a slot runs now, and that cell's id."""

    cell: Cell
    cell_id: int
    step_said: int = 0


class _Start:
    """One start of a study."""

    def __init__(
        self, study: Study, store: Store, jobs: int, say: Callable[[str], None], trainer: Trainer
    ) -> None:
        self.study, self.store, self.jobs = study, store, jobs
        self.started = time.perf_counter()
        self.say = lambda text: say(f"{clock(time.perf_counter() - self.started):>8}  {text}")
        cells = store.of(study)
        self.pending = deque((c, s.id) for c, s in cells if s is not None and s.summary is None)
        self.total = len(cells)
        self.pool: Pool[Worker] = LocalPool(store.folder, jobs, trainer)
        self.slots: dict[Worker, _Given | None] = {}
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
            while self.pending or self.slots:
                while self.pending and len(self.slots) < self.jobs:
                    self._give_next(self.pool.open())
                heard = self.pool.hear(PROGRESS_SECONDS)
                for slot, news in heard:
                    self._hear(slot, news)
                if not heard:
                    self._say_steps()
        except KeyboardInterrupt as stop:
            self.pool.stop(signal_of(stop))
            self.say("interrupted: runs in flight save a checkpoint (Ctrl-C again: at once)")
            self.pool.join()
            raise
        finally:
            self.pool.close()
        done, failed, elsewhere = self.counts.values()
        self.say(f"{self.study.name}: {done} done, {failed} failed, {elsewhere} run elsewhere")
        return StudyOutcome(done, failed, elsewhere)

    def _say_steps(self) -> None:
        for given in self.slots.values():
            if given is None:
                continue
            cell = given.cell
            step = steps_done(self.store.folder / "runs" / cell.key)
            if step > given.step_said:
                given.step_said = step
                where = f"step {step} of {cell.config.max_steps}"
                self.say(f"running {cell.label}  seed {cell.config.seed}  {where}")

    def _give_next(self, slot: Worker) -> None:
        """Give the slot the next cell, or let it end."""
        if not self.pending:
            self.slots[slot] = None
            self.pool.retire(slot)
            return
        cell, cell_id = self.pending.popleft()
        self.slots[slot] = _Given(cell, cell_id)
        self.say(f"start   {cell.label}  seed {cell.config.seed}")
        config = replace(cell.config, out=self.store.folder / "runs" / cell.key)
        self.pool.give(slot, Task(cell_id, config))

    def _hear(self, slot: Worker, news: Result | Ended) -> None:
        """Take in a slot's result, or its end."""
        given = self.slots[slot]
        if isinstance(news, Ended):
            del self.slots[slot]
            if given is not None:
                self._record_crash(given, news.manner)
            return
        assert given is not None
        if news.state == "store error":
            raise UserError(news.text)
        if news.state == "crashed":
            self._record_crash(given, news.text)
            self.slots[slot] = None
            return
        self._count(given.cell, news)
        self._give_next(slot)

    def _record_crash(self, given: _Given, text: str) -> None:
        self.store.fail(given.cell_id, text)
        self._count(given.cell, Result("failed", text.splitlines()[-1]))

    def _count(self, cell: Cell, result: Result) -> None:
        self.counts[result.state] += 1
        states = cell_states(self.study, self.store)
        num_done = sum(state.state == "done" for state in states)
        left = time_left(states, self.jobs)
        eta = "" if left is None else f"  about {left} left"
        self.say(
            f"{result.state:7} {cell.label}  seed {cell.config.seed}  {result.text}"
            f"  [{num_done}/{self.total}]{eta}"
        )
