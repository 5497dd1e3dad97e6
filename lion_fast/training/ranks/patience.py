"""How long a process waits for others that no longer answer, and who can still end it meanwhile.

A collective waits inside torch, where Python hears no signal, and neither gloo nor a stopped peer
lets go of it: a thread watches, hears, says what is waited for and ends the process.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn, Self

from lion_fast.output import OUTPUT, complain
from lion_fast.training.machine.guards import heeded_signals
from lion_fast.training.ranks.torchrun import Ranks, meeting_place

LOOK = 0.2
"""Seconds between two looks."""
PATIENCE = 10.0
"""Seconds of waiting before it is said; a slow disk or a long compilation of others takes less."""
OBEY = 1.8
"""Seconds that a wait may go on after a signal: it ends well where the others answer by then."""
_MOST_BUSY = 0.1
"""Share of the time in which a process that waits for others computes, or waits for a processor."""


class _Wait(NamedTuple):
    """What the main thread is in: a collective."""

    where: str | None
    """In what part of the run, in words; None where the time may be the process's own."""
    most: float
    """Seconds to wait."""


class Patience:
    """While entered, ends this process where it waits for others and is told to stop, or too long.

    Only time in which the process does not compute, and does not wait for a processor on a busy
    machine, counts: a long step is no waiting. On a GPU the host may compute while it waits, and
    all the time in a collective counts, after the patience of saying so. Nothing is torn: what ends
    is a wait, and the last checkpoint stands.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.last_words: Callable[[], None] = lambda: None
        """Ends the display and says what is kept, before the end."""
        self.computes_on_cpu = True
        self._wait: _Wait | None = None
        self._idle, self._is_said = 0.0, False
        self._lock, self._over = threading.Lock(), threading.Event()
        self._signal: int | None = None
        self._heard = 0.0

    @contextmanager
    def waiting(self, where: str | None, most: float) -> Iterator[None]:
        """Watch a block that may wait for other processes, at most so many seconds.

        where: what is said of it; None where the block may as well wait for a compiler.
        """
        with self._lock:
            self._idle, self._is_said = 0.0, False
            self._wait = _Wait(where, most)
        try:
            yield
        finally:
            with self._lock:
                self._wait = None

    def __enter__(self) -> Self:
        # What a signal's number is written to at once, whatever the main thread is in.
        self._ears, mouth = socket.socketpair()
        mouth.setblocking(False)
        self._mouth, self._before = mouth, -1
        self._heeded = heeded_signals()
        if self._is_main():
            self._before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_main():
            signal.set_wakeup_fd(self._before)
        self._over.set()
        self._thread.join()
        self._ears.close()
        self._mouth.close()

    @staticmethod
    def _is_main() -> bool:
        return threading.current_thread() is threading.main_thread()

    def _watch(self) -> None:
        last = time.monotonic(), _busy_seconds()
        while not self._over.is_set():
            if select.select([self._ears], [], [], LOOK)[0]:
                self._hear(self._ears.recv(64))
            now = time.monotonic(), _busy_seconds()
            wall, busy = (b - a for a, b in zip(last, now, strict=True))
            last = now
            with self._lock:
                if self._wait is not None:
                    self._look(self._wait, wall, busy)

    def _hear(self, numbers: bytes) -> None:
        """Note the first signal that is to end a run; workers' ends are signals, too."""
        for number in numbers:
            if number in self._heeded and self._signal is None:
                self._signal, self._heard = number, time.monotonic()

    def _look(self, wait: _Wait, wall: float, busy: float) -> None:
        """Take in that so many seconds have passed; of a process that stood still itself, a few."""
        is_idle = not self.computes_on_cpu or busy < _MOST_BUSY * wall
        self._idle = self._idle + min(wall, 2 * LOOK) if is_idle else 0.0
        least = OBEY if self.computes_on_cpu else PATIENCE
        if self._signal is not None:
            waited = time.monotonic() - self._heard
            if min(waited, self._idle) > least - LOOK:
                self._end(128 + self._signal)
        if wait.where is None:
            return
        if self._idle > PATIENCE and not self._is_said:
            self._is_said = True
            complain(f"{self._who(wait.where)}, for {wait.most:g} s at most")
        if self._idle > wait.most:
            complain(
                f"{self._who(wait.where)} for more than {wait.most:g} s, and gives up: start all"
                " again, with --resume where there is a checkpoint"
            )
            self._end(2)

    def _who(self, where: str) -> str:
        others = f"the other {self._ranks.size - 1} of {self._ranks.size} processes"
        return f"rank {self._ranks.rank} waits for {others}, met at {meeting_place()}, {where}"

    def _end(self, code: int) -> NoReturn:
        """Leave as a kill does: torch would wait for the others in every proper way out."""
        self.last_words()
        OUTPUT.flush()
        os._exit(code)


def _busy_seconds() -> float:
    """Return the seconds in which this process has computed, or its main thread would have.

    Linux counts those in which a thread stood in the queue for a processor.
    """
    try:
        _, queued, _ = Path("/proc/self/schedstat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        queued = "0"
    return time.process_time() + int(queued) / 1e9
