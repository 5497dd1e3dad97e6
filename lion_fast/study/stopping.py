"""Signals that end a study: Ctrl-C, SIGTERM, SIGHUP, and a cluster's warning, SIGUSR1 or 2."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

_WARNING = (signal.SIGUSR1, signal.SIGUSR2)
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *_WARNING)


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's has ended the study."""

    def __init__(self, signal_number: signal.Signals) -> None:
        self.signal_number = signal_number
        super().__init__(signal_number.name)


def signal_of(stop: KeyboardInterrupt) -> signal.Signals:
    """Return the signal behind `stop`."""
    return stop.signal_number if isinstance(stop, Stopped) else signal.SIGINT


@contextmanager
def stop_signals() -> Iterator[None]:
    """Inside, they raise Stopped where the main thread stands, as Ctrl-C raises its own.

    Signals that are ignored (nohup) stay so, and so do SIGUSR1 and SIGUSR2 where the process has a
    use of its own for them. A hang-up may come once from the shell and once from the kernel, so
    that only its first counts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        raise Stopped(signal.Signals(number))

    previous = {number: signal.getsignal(number) for number in STOPPING[1:]}
    heeded = [
        number
        for number, handler in previous.items()
        if handler != signal.SIG_IGN and (number not in _WARNING or handler == signal.SIG_DFL)
    ]
    for number in heeded:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, previous[number])


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Let a process started inside be deaf to them: a terminal or a scheduler signals all at once.

    The study passes on what it hears, once.
    """
    resource_tracker.ensure_running()  # its own start would unblock the signals
    with signals_held():
        yield


@contextmanager
def signals_held() -> Iterator[None]:
    """Let signals that come inside wait for its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
