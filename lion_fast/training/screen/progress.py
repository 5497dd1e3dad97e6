"""What a run tells its console while it trains."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch

from lion_fast.data.batches import Loader
from lion_fast.training.folder.record import RunRecord
from lion_fast.training.machine.environment import peak_memory_mib
from lion_fast.training.screen.console import Console
from lion_fast.training.screen.printed import Progress
from lion_fast.training.step.history import History


class Steady:
    """A console that falls silent when it can no longer be written, instead of ending the run.

    That is so when the reader of a pipe has gone (`| head`) or the disk behind stdout is full.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._broken = False

    def say(self, lines: Iterable[str]) -> None:
        """Show notes."""
        self._attempt(lambda: self._console.say(lines))

    def progress(self, progress: Progress) -> None:
        """Show one interval."""
        self._attempt(lambda: self._console.progress(progress))

    def stage(self, text: str) -> AbstractContextManager[None]:
        """Show while it lasts what is done apart from training."""
        return self._shown(text)

    @contextmanager
    def _shown(self, text: str) -> Iterator[None]:
        with ExitStack() as shown:
            self._attempt(lambda: shown.enter_context(self._console.stage(text)))
            yield

    def close(self) -> None:
        """End the display."""
        self._attempt(self._console.close)

    def _attempt(self, show: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            show()
        except OSError:
            self._broken = True


class Reporter:
    """Shows a log line whenever the meter has passed the next multiple of `log_every` steps."""

    def __init__(
        self,
        console: Console,
        history: History,
        device: torch.device,
        *,
        log_every: int,
        max_steps: int,
    ) -> None:
        self._console, self._history, self._device = console, history, device
        self._log_every, self._max_steps = log_every, max_steps
        self._seconds_before = history.seconds
        self._step, self._seconds = len(history), history.seconds

    def report(self, record: RunRecord, loader: Loader) -> None:
        """Show the line if it is due, and hand what was recorded to the operating system."""
        history = self._history
        step = len(history)
        if step // self._log_every == self._step // self._log_every:
            return
        record.flush()
        interval = history.records[self._step : step]
        seconds = history.seconds - self._seconds
        self._console.progress(
            Progress(
                step=step,
                max_steps=self._max_steps,
                loss=sum(record.loss for record in interval) / len(interval),
                accuracy=history.recent_accuracy(),
                gradient_ratio=record.last_gradient_ratio,
                images_per_second=len(interval) * history.batch_size / seconds,
                step_milliseconds=1000 * seconds / len(interval),
                data_wait_percent=self.data_wait_percent(loader),
                memory_mib=peak_memory_mib(self._device),
            )
        )
        self._step, self._seconds = step, history.seconds

    def data_wait_percent(self, loader: Loader) -> float:
        """Return the share of this process's training time in which the host awaited a batch."""
        trained = self._history.seconds - self._seconds_before
        return 100 * loader.data_wait_seconds / trained if trained else 0.0
