"""The training clock: device time of training alone, paused for all else."""

import time
from collections.abc import Callable

import torch


class TrainingClock:
    """Seconds of training on one device; never waits for the device while it runs."""

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
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
        self._origin = self._now()

    def mark(self) -> Callable[[], float]:
        """Record this moment of the device's work; the result waits for it and returns seconds."""
        base, origin, now = self._base, self._origin, self._now()
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
