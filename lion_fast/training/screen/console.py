"""Where a run prints: a live bar on a terminal, plain aligned lines in a pipe, or nowhere."""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from lion_fast.output import OUTPUT
from lion_fast.training.screen.printed import HEADER, LEAST_BAR, Progress, figures, progress_line

if TYPE_CHECKING:
    from rich.console import RenderableType


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


class Plain:
    """Aligned lines on stdout; falls silent when they cannot be written any more (`| head`).

    pause: seconds that pass at least between two lines of progress.
    """

    def __init__(self, pause: float = 0.0) -> None:
        self._started = False
        self._pause, self._next = pause, 0.0

    def say(self, lines: Iterable[str]) -> None:
        """Print the notes."""
        for line in lines:
            OUTPUT.say(line)

    def progress(self, progress: Progress) -> None:
        """Print one line per interval, if it is time."""
        now = time.monotonic()
        if now < self._next and progress.step < progress.max_steps:
            return
        self._next = now + self._pause
        header = [] if self._started else [HEADER]
        self._started = True
        self.say([*header, progress_line(progress)])

    def stage(self, text: str) -> AbstractContextManager[None]:
        """Print one line when it begins."""
        self.say([f"{text} ..."])
        return nullcontext()

    def close(self) -> None:
        """Nothing to end."""


_BAR = 24
# Seconds between two lines on a terminal that cannot draw.
_PAUSE = 10.0


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
            bar = [ProgressBar(self._max_steps, step, width=width)] if width >= LEAST_BAR else []
        line.add_row(*moving, *bar, Text("  ".join(words), no_wrap=True))
        return line


def make_console(max_steps: int, *, quiet: bool = False) -> Console:
    """Return the console that suits stdout; one that says nothing when `quiet`.

    A terminal that moves no cursor, or takes no characters of a bar, is watched by a person none
    the less: it has a line now and then.
    """
    if quiet:
        return Silent()
    if OUTPUT.can_draw:
        return Live(max_steps)
    return Plain(_PAUSE if OUTPUT.is_terminal else 0.0)
