"""What a run says while it trains: a live bar on a terminal, plain aligned lines in a pipe."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from lion_fast.training.summary import Summary


@dataclass(frozen=True)
class Progress:
    """State of a run at one log interval."""

    step: int
    max_steps: int
    loss: float
    """Mean over the interval."""
    accuracy: float
    """Main-head training accuracy over the last `window` steps, or over all where there are
    fewer."""
    gradient_ratio: float | None
    images_per_second: float
    step_milliseconds: float
    data_wait_percent: float
    memory_mib: float

    @property
    def eta_seconds(self) -> float:
        """Training seconds left at the present pace, were the run to go to max_steps."""
        return (self.max_steps - self.step) * self.step_milliseconds / 1000


class Console(Protocol):
    """Receives a run's messages."""

    def say(self, lines: Iterable[str]) -> None:
        """Show notes."""

    def progress(self, progress: Progress) -> None:
        """Show one interval."""

    def close(self) -> None:
        """End the display."""


class Silent:
    """Says nothing."""

    def say(self, lines: Iterable[str]) -> None:
        """Drop the notes."""

    def progress(self, progress: Progress) -> None:
        """Drop the interval."""

    def close(self) -> None:
        """Nothing to end."""


_HEADER = (
    f"{'step':>7} {'loss':>8} {'acc %':>7} {'aux/main':>9} {'images/s':>10} {'ms/step':>9}"
    f" {'wait %':>7} {'MiB':>7} {'eta':>8}"
)


def _line(p: Progress) -> str:
    ratio = "-" if p.gradient_ratio is None else f"{p.gradient_ratio:.4f}"
    return (
        f"{p.step:7d} {p.loss:8.4f} {100 * p.accuracy:7.2f} {ratio:>9} {p.images_per_second:10.0f}"
        f" {p.step_milliseconds:9.3f} {p.data_wait_percent:7.1f} {p.memory_mib:7.0f}"
        f" {_clock(p.eta_seconds):>8}"
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class Plain:
    """Aligned lines on stdout."""

    def __init__(self) -> None:
        self._started = False

    def say(self, lines: Iterable[str]) -> None:
        """Print the notes."""
        for line in lines:
            print(line, flush=True)

    def progress(self, progress: Progress) -> None:
        """Print one line per interval."""
        if not self._started:
            print(_HEADER)
            self._started = True
        print(_line(progress), flush=True)

    def close(self) -> None:
        """Nothing to end."""


class Live:
    """A progress bar with the same figures, redrawn in place."""

    def __init__(self, max_steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn

        self._bar = Bar(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  acc {task.fields[accuracy]:.2%}"),
            TextColumn("{task.fields[speed]:.0f} images/s  {task.fields[pace]:.2f} ms/step"),
            TextColumn("eta {task.fields[eta]}"),
        )
        self._task = self._bar.add_task(
            "", total=max_steps, loss=float("nan"), accuracy=0.0, speed=0.0, pace=0.0, eta="-"
        )

    def say(self, lines: Iterable[str]) -> None:
        """Print the notes above the bar."""
        for line in lines:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def progress(self, progress: Progress) -> None:
        """Redraw the bar."""
        self._bar.start()
        self._bar.update(
            self._task,
            completed=progress.step,
            loss=progress.loss,
            accuracy=progress.accuracy,
            speed=progress.images_per_second,
            pace=progress.step_milliseconds,
            eta=_clock(progress.eta_seconds),
        )

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._bar.stop()


def make_console(max_steps: int) -> Console:
    """Return the console that suits stdout."""
    return Live(max_steps) if sys.stdout.isatty() else Plain()


def ending(summary: Summary) -> list[str]:
    """Return the run's outcome in words."""
    target = (
        f"{100 * summary.target_accuracy:g} % training accuracy (mean of {summary.window} steps)"
    )
    if summary.steps_to_target is None or summary.seconds_to_target is None:
        outcome = f"{target}: not reached in {summary.steps} steps"
    else:
        outcome = (
            f"{target}: reached at step {summary.steps_to_target},"
            f" after {summary.seconds_to_target:.2f} s of training"
        )
    heads = "  ".join(f"{100 * accuracy:.2f}" for accuracy in summary.val_accuracy_per_head)
    return [
        outcome,
        f"validation accuracy {100 * summary.val_accuracy:.2f} %   (per head, main last: {heads})",
        f"init {summary.init_seconds:.2f} s   set-up {summary.setup_seconds:.2f} s"
        f"   training {summary.train_seconds:.2f} s   total {summary.total_seconds:.2f} s",
        f"run folder: {summary.run}",
    ]
