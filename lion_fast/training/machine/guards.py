"""What may befall a run from outside: a signal to stop, and the end of memory."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

import torch

from lion_fast.errors import UserError

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What a cluster sends, if asked to, some time before its limit (`sbatch --signal=USR1@60`). A
# process may have a use of its own for them, so that they are taken only where they would kill.
_WARNING = (signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run; what it had trained is in its checkpoint."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal.Signals(signal_number).name)


class StopSignals:
    """While entered, Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 end a run alike.

    They are a scheduler's order, a closed terminal and a cluster's warning of its time limit.

    The first of them raises Interrupted where the run stands or, inside `deferred`, at the next
    `check`. A second one acts as it would have without this guard: at once. Signals that are
    ignored (nohup) stay so. Outside the main thread, where no handler can be set, it does nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._deferring = False
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
            for number in _WARNING:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        self._received = number
        if not self._deferring:
            self.check()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def received(self) -> int | None:
        """Number of the signal that has come, if any."""
        return self._received

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._received is not None:
            raise Interrupted(self._received)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal wait for `check`, so that nothing inside is torn apart."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False


def heeded_signals() -> frozenset[int]:
    """Return the signals that a `StopSignals`, entered now, takes in this process."""
    handlers = {number: signal.getsignal(number) for number in (*_STOPPING, *_WARNING)}
    return frozenset(
        number
        for number, handler in handlers.items()
        if isinstance(getattr(handler, "__self__", None), StopSignals)
    )


@contextmanager
def memory_advice(batch_size: int) -> Iterator[None]:
    """Turn running out of memory into one line that says what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            if "can't allocate memory" not in text:
                raise
        raise UserError(
            f"out of memory at batch_size {batch_size}: start anew with a lower --batch-size"
            " (or --image-size, --growth-rate, --base-width), or lower --steps-per-run"
        ) from error
