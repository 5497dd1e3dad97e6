"""The training clock: device time of training alone, paused for all else."""

import threading
import time
from collections.abc import Callable

import torch

_BEAT = 0.25
_LEAST_STOP = 1.0
"""Seconds that a beat must be late by: a busy machine may keep a process waiting for less."""
_MOST_CPU = 0.1
"""Share of the time in which a process that stood still had a processor."""


class Standstill:
    """Seconds in which this process stood still as a whole: Ctrl-Z, SIGSTOP, a frozen container.

    A thread beats, and so does whoever asks. A beat that comes late, in a process that has not
    computed meanwhile, comes after a stop; one that only waits for a device or for data still
    beats. Stops of less than a second are not seen. A machine that is suspended stops the clock
    that is read here, too, so that its sleep is in no seconds; it counts as a stop.
    """

    def __init__(self) -> None:
        self._seconds = self._asleep = 0.0
        self._lock, self._end = threading.Lock(), threading.Event()
        self._last = self._now()

    def start(self) -> None:
        """Watch from now on; before and after nothing is seen."""
        self._last = self._now()
        threading.Thread(target=self._beat_on, daemon=True).start()

    def seconds(self) -> float:
        """Return the time stood still so far by the clock of `time.perf_counter`."""
        with self._lock:
            if self._end.is_set():
                return self._seconds
            now = self._now()
            wall, cpu, asleep = (b - a for a, b in zip(self._last, now, strict=True))
            self._last = now
            if wall - _BEAT > _LEAST_STOP and cpu < _MOST_CPU * wall:
                self._seconds += wall - _BEAT / 2
            if asleep > _LEAST_STOP:
                self._asleep += asleep
            return self._seconds

    def total(self) -> float:
        """Return the time stood still so far, the machine's sleep included."""
        stopped = self.seconds()
        return stopped + self._asleep

    def close(self) -> None:
        """Beat a last time."""
        self.seconds()
        self._end.set()

    def _beat_on(self) -> None:
        while not self._end.wait(_BEAT):
            self.seconds()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Return wall and CPU seconds, and the seconds that the machine has slept."""
        wall = time.perf_counter()
        slept = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
        return wall, time.process_time(), slept


class TrainingClock:
    """Seconds of training on one device; never waits for the device while it runs.

    stopped: returns the seconds that the process has stood still, which do not count.
    """

    def __init__(
        self,
        device: torch.device,
        seconds: float = 0.0,
        stopped: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._stopped, self._stopped_before = stopped, 0.0
        self._cuda = device.type == "cuda"
        self._device = device
        self._base = seconds
        self._origin: torch.cuda.Event | float | None = None

    @property
    def running(self) -> bool:
        """Whether the clock counts."""
        return self._origin is not None

    def start(self) -> None:
        """Run, from now on the device's own time line."""
        self._stopped_before = self._stopped()
        self._origin = self._now()

    def mark(self) -> Callable[[], float]:
        """Record this moment of the device's work; the result waits for it and returns seconds."""
        origin, now = self._origin, self._now()
        base = self._base - (self._stopped() - self._stopped_before)
        if isinstance(origin, torch.cuda.Event) and isinstance(now, torch.cuda.Event):

            def seconds() -> float:
                now.synchronize()
                return base + origin.elapsed_time(now) / 1000

            return seconds
        assert isinstance(origin, float) and isinstance(now, float), "mark() needs a running clock"
        reading = base + now - origin
        return lambda: reading

    def pause(self) -> None:
        """Wait for the device and stop counting; no effect on a paused clock."""
        if self._origin is not None:
            self._base = self.mark()()
            self._origin = None

    def _now(self) -> "torch.cuda.Event | float":
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
