"""What a run says while it trains: a live bar on a terminal, plain aligned lines in a pipe."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lion_fast.training.folder.summary import Summary

if TYPE_CHECKING:
    from rich.console import RenderableType


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

    def stage(self, text: str) -> AbstractContextManager[None]:
        """Show while it lasts what is done apart from training: loading, compiling, validating."""
        return nullcontext()

    def close(self) -> None:
        """End the display."""


class Silent:
    """Says nothing."""

    def say(self, lines: Iterable[str]) -> None:
        """Drop the notes."""

    def progress(self, progress: Progress) -> None:
        """Drop the interval."""

    def stage(self, text: str) -> AbstractContextManager[None]:
        """Show nothing."""
        return nullcontext()

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
        f" {clock(p.eta_seconds):>8}"
    )


def clock(seconds: float) -> str:
    """Return h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def silence_stdout() -> None:
    """Send to nowhere what is still to be written to stdout, whose reader or disk has gone.

    What is buffered goes there too, at exit at the latest, so that the interpreter ends quietly.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


class Plain:
    """Aligned lines on stdout; falls silent when they cannot be written any more (`| head`)."""

    def __init__(self) -> None:
        self._started = False

    def say(self, lines: Iterable[str]) -> None:
        """Print the notes."""
        for line in lines:
            try:
                print(line, flush=True)
            except OSError:
                silence_stdout()

    def progress(self, progress: Progress) -> None:
        """Print one line per interval."""
        header = [] if self._started else [_HEADER]
        self._started = True
        self.say([*header, _line(progress)])

    def stage(self, text: str) -> AbstractContextManager[None]:
        """Print one line when it begins."""
        self.say([f"{text} ..."])
        return nullcontext()

    def close(self) -> None:
        """Nothing to end."""


# Narrower than this a bar says nothing.
_LEAST_BAR = 8
_BAR = 24


class Live:
    """A moving line: what is being done, or a progress bar with the same figures."""

    def __init__(self, max_steps: int) -> None:
        from rich.console import Console as Screen
        from rich.live import Live as Display
        from rich.spinner import Spinner

        self._max_steps = max_steps
        self._progress: Progress | None = None
        self._stages: list[tuple[str, float]] = []
        self._spinner = Spinner("dots")
        self._moving = False
        self._screen = Screen()
        self._display = Display(
            get_renderable=self._render, console=self._screen, refresh_per_second=8
        )

    def say(self, lines: Iterable[str]) -> None:
        """Print the notes above the bar."""
        for line in lines:
            self._screen.print(line, markup=False, highlight=False, soft_wrap=True)

    def progress(self, progress: Progress) -> None:
        """Redraw the bar."""
        self._progress = progress
        self._start()
        self._display.refresh()

    @contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Show the text beside a spinner, with the seconds that it takes."""
        self._stages.append((text, time.monotonic()))
        self._start()
        try:
            yield
        finally:
            self._stages.pop()

    def close(self) -> None:
        """Leave the last figures, if there were any, on the screen."""
        self._moving = False
        self._display.transient = self._progress is None
        self._display.stop()

    def _start(self) -> None:
        self._moving = True
        self._display.start()

    def _render(self) -> "RenderableType":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 1))
        # The line that stays when all is done has nothing that moves.
        moving = [self._spinner] if self._moving else []
        if self._stages:
            text, since = self._stages[-1]
            words = [f"{text}  {time.monotonic() - since:.0f} s"]
            bar = []
        else:
            room = self._screen.width - 2
            step = self._progress.step if self._progress else 0
            words = figures(self._progress, self._max_steps, room)
            width = min(_BAR, room - len("  ".join(words)) - 1)
            bar = [ProgressBar(self._max_steps, step, width=width)] if width >= _LEAST_BAR else []
        line.add_row(*moving, *bar, Text("  ".join(words), no_wrap=True))
        return line


def figures(progress: Progress | None, max_steps: int, width: int) -> list[str]:
    """Return the words beside a bar that fit into `width` columns, the step counter always.

    A run that has reported nothing yet has no loss to show.
    """
    if progress is None:
        return [f"0/{max_steps}"]
    counter = f"{progress.step}/{progress.max_steps}"
    words = [
        counter,
        f"loss {progress.loss:.4f}",
        f"acc {progress.accuracy:.2%}",
        f"{progress.images_per_second:.0f} images/s",
        f"{progress.step_milliseconds:.2f} ms/step",
        f"eta {clock(progress.eta_seconds)}",
    ]
    for dispensable in (words[3], words[4], words[1], words[5], words[2]):
        if len("  ".join(words)) + _LEAST_BAR < width:
            break
        words.remove(dispensable)
    return words


def make_console(max_steps: int, *, quiet: bool = False) -> Console:
    """Return the console that suits stdout; one that says nothing when `quiet`."""
    if quiet:
        return Silent()
    return Live(max_steps) if sys.stdout.isatty() else Plain()


def ending(summary: Summary) -> list[str]:
    """Return the run's outcome in words."""
    target = (
        f"{100 * summary.target_accuracy:g} % training accuracy (mean of {summary.window} steps)"
    )
    if summary.window > summary.steps and summary.steps_to_target is None:
        outcome = f"{target}: not measured, the run has {summary.steps} steps only"
    elif summary.steps_to_target is None or summary.seconds_to_target is None:
        outcome = f"{target}: not reached in {summary.steps} steps"
    else:
        outcome = (
            f"{target}: reached at step {summary.steps_to_target},"
            f" after {summary.seconds_to_target:.2f} s of training"
        )
    heads = "  ".join(f"{100 * accuracy:.2f}" for accuracy in summary.val_accuracy_per_head)
    reused = " (reused)" if summary.reused else ""
    return [
        outcome,
        f"validation accuracy {100 * summary.val_accuracy:.2f} %   (per head, main last: {heads})",
        f"init {summary.init_seconds:.2f} s   set-up {summary.setup_seconds:.2f} s{reused}"
        f"   training {summary.train_seconds:.2f} s   total {summary.total_seconds:.2f} s",
        f"run folder: {summary.run}",
    ]
