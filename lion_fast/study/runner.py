"""Run the missing cells of a study in a pool's slots, each of which serves many cells."""

import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lion_fast.errors import UserError
from lion_fast.output import say as say_aloud
from lion_fast.study.data import (
    DataHere,
    Source,
    drop_unfinished,
    finished,
    forget_changed,
    known_data,
    num_unknown,
    refuse_changed,
    source_of,
)
from lion_fast.study.grid import Cell, Study
from lion_fast.study.pools import Ended, MakePool, Pool, Result, Trainer
from lion_fast.study.pools.local import LocalPool
from lion_fast.study.pools.worker import train_cell
from lion_fast.study.status import cell_states, steps_done, time_left
from lion_fast.study.stopping import signal_of, stop_signals
from lion_fast.study.store import Store
from lion_fast.study.stored import DATA
from lion_fast.training.ranks.torchrun import ranks_here
from lion_fast.training.screen.printed import clock

PROGRESS_SECONDS = 60.0
"""Silence after which the steps of the runs in flight are said."""

MOST_ATTEMPTS = 4
"""At a cell whose slot is lost with its machine, before the cell is taken to be the cause."""


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
    make_pool: MakePool | None = None,
    rerun_changed: bool = False,
) -> StudyOutcome:
    """Run every cell of `study` that its store below `out` does not hold yet; say what happens.

    make_pool: what runs them; without it, `jobs` worker processes of this machine. rerun_changed:
    also run anew what has seen other data than those that are here; without it, such runs are
    refused.

    A failed cell is recorded and the rest goes on. Raises UserError on bad input and when the store
    fails. Raises KeyboardInterrupt on Ctrl-C, its subclass Stopped on SIGTERM, SIGHUP, SIGUSR1
    and SIGUSR2, once the runs in flight have saved a checkpoint (a second signal does not wait).
    Kill this process and its workers end with it; nothing that was finished is lost.
    """
    if jobs < 1:
        raise UserError(f"jobs is {jobs}: it must be at least 1")
    if (size := ranks_here().size) > 1:
        raise UserError(f"a study is one process, and torchrun has started {size}: leave it out")
    with Store.create(study, out) as store:
        make = make_pool or partial(LocalPool, jobs)
        with stop_signals(), closing(make(trainer)) as pool:
            return _Start(study, store, pool, say, rerun_changed).execute()


@dataclass
class _Run:
    """A cell that is to run, or that a slot runs now."""

    cell: Cell
    cell_id: int
    attempt: int = 1
    step_said: int = 0


class _Start:
    """One start of a study."""

    def __init__(
        self,
        study: Study,
        store: Store,
        pool: Pool[Any],
        say: Callable[[str], None],
        rerun_changed: bool,
    ) -> None:
        self.study, self.store, self.pool = study, store, pool
        self.started = time.perf_counter()
        self.say = lambda text: say(f"{clock(time.perf_counter() - self.started):>8}  {text}")
        self.here, self.rerun_changed = DataHere(), rerun_changed
        self.data = self._settle_data()
        cells = store.of(study)
        self.pending = deque(_Run(c, s.id) for c, s in cells if s and s.summary is None)
        self.total = len(cells)
        self.slots: dict[Hashable, _Run | None] = {}
        self.claims: dict[Hashable, ExitStack] = {}
        self.is_stopping = False
        self.counts = {"done": 0, "failed": 0, "elsewhere": 0}

    def _settle_data(self) -> dict[Source, str]:
        """Return which data the finished runs saw, and no others are to; raises UserError."""
        cells = self.store.of(self.study)
        if self.rerun_changed:
            if count := forget_changed(cells, self.store, self.here):
                self.say(f"{count} finished runs are of other data than now: they run anew")
            cells = self.store.of(self.study)
        runs = finished(cells)
        changed = [cell for cell, summary in runs if self.here.differ(cell.config, summary)]
        refuse_changed(changed, self.store.path)
        if count := num_unknown(summary for _, summary in runs):
            self.say(f"data not known of {count} finished runs, which do not say what they saw")
        return known_data([(cell.config, summary) for cell, summary in runs], self.store.path)

    def execute(self) -> StudyOutcome:
        """Run until nothing is pending."""
        self.say(f"{self.study.name}: {self.total} runs, {len(self.pending)} to do")
        for note in self.pool.notes(len(self.pending)):
            self.say(note)
        try:
            self._run()
        except KeyboardInterrupt as stop:
            self.is_stopping = True
            self.pending.clear()
            self.pool.stop(signal_of(stop))
            self.say("interrupted: runs in flight save a checkpoint (Ctrl-C again: at once)")
            self._run()
            raise
        finally:
            for claim in self.claims.values():
                claim.close()
        done, failed, elsewhere = self.counts.values()
        self.say(f"{self.study.name}: {done} done, {failed} failed, {elsewhere} run elsewhere")
        return StudyOutcome(done, failed, elsewhere)

    def _run(self) -> None:
        """Keep the slots busy until nothing is pending and every slot has ended."""
        while self.pending or self.slots:
            while self.pending and len(self.slots) < self.pool.num_slots:
                self._give_next(self.pool.open())
            heard = self.pool.hear(PROGRESS_SECONDS)
            for slot, news in heard:
                self._hear(slot, news)
            if not heard:
                self._say_steps()

    def _say_steps(self) -> None:
        for run in self.slots.values():
            if run is None:
                continue
            cell = run.cell
            step = steps_done(self._folder(cell))
            if step > run.step_said:
                run.step_said = step
                where = f"step {step} of {cell.config.max_steps}"
                self.say(f"running {cell.label}  seed {cell.config.seed}  {where}")

    def _folder(self, cell: Cell) -> Path:
        return self.store.folder / "runs" / cell.key

    def _give_next(self, slot: Hashable) -> None:
        """Give the slot the next cell that no other process has, or let it end."""
        while self.pending:
            run = self.pending.popleft()
            claim = ExitStack()
            if claim.enter_context(self.store.claim(run.cell_id)):
                break
            claim.close()
            self._count(run.cell, Result("elsewhere", "run by another process"))
        else:
            self.slots[slot] = None
            self.pool.retire(slot)
            return
        self.slots[slot], self.claims[slot] = run, claim
        if self.rerun_changed:
            drop_unfinished(self._folder(run.cell), run.cell.config, self.here)
        self.say(f"start   {run.cell.label}  seed {run.cell.config.seed}")
        self.pool.give(slot, replace(run.cell.config, out=self._folder(run.cell)))

    def _hear(self, slot: Hashable, news: Result | Ended) -> None:
        """Take in a slot's result, or its end."""
        run = self.slots[slot]
        if isinstance(news, Result):
            assert run is not None
            self._record(run, news)
        elif run is not None and not self.is_stopping:
            self._record_end(run, news)
        if slot in self.claims:
            self.claims.pop(slot).close()
        if isinstance(news, Result):
            self._give_next(slot)
        else:
            del self.slots[slot]

    def _record(self, run: _Run, result: Result) -> None:
        if result.state == "done" and self._saw_other_data(run.cell, result.values):
            result = Result(
                "failed",
                f"{run.cell.config.dataset} was another data set in this run than in the others:"
                " start the study again with --rerun changed",
            )
        if result.state == "done":
            self.store.finish(run.cell_id, result.values, result.tables)
            for checkpoint in self._folder(run.cell).glob("*/checkpoint*.pt"):
                checkpoint.unlink()
        else:
            self.store.fail(run.cell_id, result.text)
        self._count(run.cell, result)

    def _saw_other_data(self, cell: Cell, summary: dict[str, Any]) -> bool:
        """Whether a run saw other data than those before it, such as some changed meanwhile."""
        told = summary.get(DATA)
        if told is None:
            return False
        source = source_of(cell.config)
        now = self.here.of(cell.config)
        return self.data.setdefault(source, now or told) != told

    def _record_end(self, run: _Run, end: Ended) -> None:
        """Record a run that its slot took with it, or let another slot go on with it."""
        last = end.manner.splitlines()[-1]
        if end.is_lost and run.attempt < MOST_ATTEMPTS:
            self.say(f"lost    {run.cell.label}  seed {run.cell.config.seed}  {last}")
            self.pending.appendleft(replace(run, attempt=run.attempt + 1))
            return
        self.store.fail(run.cell_id, end.manner)
        self._count(run.cell, Result("failed", last))

    def _count(self, cell: Cell, result: Result) -> None:
        self.counts[result.state] += 1
        states = cell_states(self.study, self.store)
        num_done = sum(state.state == "done" for state in states)
        left = time_left(states, max(1, len(self.slots)))
        eta = "" if left is None else f"  about {left} left"
        self.say(
            f"{result.state:7} {cell.label}  seed {cell.config.seed}  {result.text}"
            f"  [{num_done}/{self.total}]{eta}"
        )
