"""How far a study is: one row per run, and an estimate of the time left."""

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from lion_fast.study.data import DataHere, num_unknown
from lion_fast.study.grid import Cell, Study
from lion_fast.study.store import Store, StoredCell
from lion_fast.training.screen.printed import clock

if TYPE_CHECKING:
    from rich.table import Table

_REFRESH_SECONDS = 2.0
_LEAST_SHARE = 0.05
"""Of a run that is still out, however far it has gone."""
_FRAME_LINES = 8
"""Of a table: title, head, rules, the line on rows left out, and a caption of two lines."""


@dataclass(frozen=True)
class CellState:
    """One run of a study at this moment."""

    cell: Cell
    stored: StoredCell | None
    state: Literal["missing", "running", "failed", "changed", "done"]
    """changed: done, and of other data than those that are here."""
    step: int
    """Steps that its run folder shows; at most `log_every` behind."""

    def detail(self) -> str:
        """Return the outcome, the error or the progress in words."""
        if self.stored is not None and self.stored.summary is not None:
            return outcome(self.stored.summary)
        progress = f"step {self.step} of {self.cell.config.max_steps}" if self.step else ""
        if self.state == "failed" and self.stored is not None and self.stored.error:
            return self.stored.error.splitlines()[-1]
        return progress

    def line(self) -> str:
        """Return the row as text."""
        text = f"{self.state:7}  {self.cell.label}  seed {self.cell.config.seed}  {self.detail()}"
        return text.rstrip()


def cell_states(study: Study, store: Store | None, here: DataHere | None = None) -> list[CellState]:
    """Return the state of every cell of `study`; all are missing where there is no store yet.

    here: where it is given, runs that saw other data are told apart.
    """
    if store is None:
        return [CellState(cell, None, "missing", 0) for cell in study.cells()]
    return [_state(cell, stored, store, here) for cell, stored in store.of(study)]


def _state(cell: Cell, stored: StoredCell | None, store: Store, here: DataHere | None) -> CellState:
    if stored is None:
        return CellState(cell, None, "missing", 0)
    if stored.summary is not None:
        is_changed = here is not None and here.differ(cell.config, stored.summary)
        return CellState(cell, stored, "changed" if is_changed else "done", stored.summary["steps"])
    step = steps_done(store.folder / "runs" / cell.key)
    if store.claimed_by(stored.id) is not None:
        return CellState(cell, stored, "running", step)
    return CellState(cell, stored, "failed" if stored.error else "missing", step)


def steps_done(folder: Path) -> int:
    """Return the last whole row's step of the newest metrics.csv below `folder`, or 0."""
    path = max(folder.glob("*/metrics.csv"), default=None)
    if path is None:
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        rows = file.read().split(b"\n")[1:-1]
    return int(rows[-1].split(b",")[0]) if rows else 0


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def time_left(states: Sequence[CellState], jobs: int | None = None) -> str | None:
    """Return `seconds_left` as h:mm:ss, a second at least; None without an estimate or a run."""
    left = seconds_left(states, jobs)
    return clock(max(1.0, left)) if left else None


def seconds_left(states: Sequence[CellState], jobs: int | None = None) -> float | None:
    """Estimate the seconds until no run is missing; None while none is done.

    A run is taken to last as long as the median of those finished on its data set and network, or
    of all; one that has gone further than they did, to be nearly done. `jobs` defaults to the
    number of runs in progress. On a CPU, runs beyond its cores slow one another down.
    """
    outstanding = [state for state in states if state.state in ("missing", "running")]
    num_running = sum(state.state == "running" for state in states)
    jobs = jobs or max(1, num_running)
    together = min(jobs, max(1, len(outstanding)))
    done: dict[tuple[str, str] | None, list[tuple[float, int]]] = {}
    for state in states:
        summary = state.stored.summary if state.stored else None
        if summary is not None:
            # total_seconds counts only the last stretch of a run that was resumed.
            seconds = max(summary["total_seconds"], summary["train_seconds"])
            if summary["resolved"]["device"] == "cpu":
                seconds *= _slowdown(together) / _slowdown(summary.get("jobs", 1))
            for kind in (_kind(state), None):
                done.setdefault(kind, []).append((seconds, summary["steps"]))
    if not done:
        return None
    parts = []
    for state in outstanding:
        seconds, steps = map(median, zip(*done.get(_kind(state), done[None]), strict=True))
        parts.append(seconds * max(_LEAST_SHARE, 1 - state.step / steps))
    return max(sum(parts) / together, max(parts, default=0.0))


def _slowdown(jobs: int) -> float:
    return max(1.0, jobs / num_cores())


def _kind(state: CellState) -> tuple[str, str]:
    return state.cell.config.dataset, state.cell.config.arch


def outcome(summary: dict[str, Any]) -> str:
    """Return a run's result in words."""
    target = f"{100 * summary['target_accuracy']:g} %"
    if summary["steps_to_target"] is None:
        crossing = f"{target} not reached in {summary['steps']} steps"
    else:
        seconds = summary["seconds_to_target"]
        took = "stood still meanwhile: no seconds" if seconds is None else f"{seconds:.2f} s"
        cost = summary.get("cost_to_target")
        if cost not in (None, summary["steps_to_target"]):
            took += f", cost {cost:.1f}"
        crossing = f"{target} at step {summary['steps_to_target']} ({took})"
    return f"{crossing}  validation {100 * summary['val_accuracy']:.2f} %"


def status_lines(study: Study, out: Path) -> list[str]:
    """Return every run with its state, and the totals; write nothing."""
    states = _read_states(study, out, DataHere())
    return [*(state.line() for state in states), _total(study, states)]


def cells_to_run(study: Study, out: Path) -> list[Cell]:
    """Return the cells that are not done."""
    states = _read_states(study, out, DataHere())
    return [state.cell for state in states if state.state != "done"]


def watch(study: Study, out: Path) -> None:
    """Show a table of all runs on the terminal, redrawn for as long as one is in progress."""
    from rich.live import Live

    here = DataHere()
    states = _read_states(study, out, here)
    with Live(auto_refresh=False) as live:
        while any(state.state == "running" for state in states):
            live.update(status_table(study, states, live.console.height), refresh=True)
            time.sleep(_REFRESH_SECONDS)
            states = _read_states(study, out, here)
        live.update(status_table(study, states))


def _read_states(study: Study, out: Path, here: DataHere) -> list[CellState]:
    folder = study.folder(out)
    exists = (folder / "study.sqlite").exists()
    with Store.open(folder) if exists else nullcontext() as store:
        if store is not None:
            store.check_runs_of(study)
        return cell_states(study, store, here)


def _total(study: Study, states: Sequence[CellState]) -> str:
    left = time_left(states)
    eta = "" if left is None else f"; about {left} left"
    lines = f"{study.name}: {len(states)} runs: {_counts(states)}{eta}"
    if any(state.state == "changed" for state in states):
        lines += "; changed: of other data than now, --rerun changed runs them anew"
    summaries = [s.stored.summary for s in states if s.stored and s.stored.summary]
    if unknown := num_unknown(summaries):
        lines += f"; data not known of {unknown}"
    return lines


def _counts(states: Sequence[CellState]) -> str:
    counts = {name: 0 for name in ("done", "running", "failed", "changed", "missing")}
    for state in states:
        counts[state.state] += 1
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def status_table(
    study: Study, states: Sequence[CellState], num_lines: int | None = None
) -> "Table":
    """Return a table of the runs; of those that `num_lines` have no room for, their number.

    Runs in progress come first, then failed and changed ones, then those to come.
    """
    from rich.table import Table

    urgency = {"running": 0, "failed": 1, "changed": 2, "missing": 3, "done": 4}
    kept = list(range(len(states)))
    if num_lines is not None and len(states) + _FRAME_LINES > num_lines:
        by_urgency = sorted(kept, key=lambda index: urgency[states[index].state])
        kept = sorted(by_urgency[: max(1, num_lines - _FRAME_LINES)])
    table = Table(title=study.title, caption=_total(study, states))
    for name in ("state", "run", "seed", ""):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for index in kept:
        state = states[index]
        seed = str(state.cell.config.seed)
        table.add_row(state.state, state.cell.label, seed, state.detail())
    hidden = [state for index, state in enumerate(states) if index not in kept]
    if hidden:
        table.add_row("...", f"not shown: {_counts(hidden)}")
    return table
