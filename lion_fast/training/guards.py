"""What may befall a run from outside: Ctrl-C and the end of memory."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event to look at between chunks; a second one interrupts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, previous)
        event.set()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def memory_advice(config: TrainConfig) -> Iterator[None]:
    """Turn running out of memory into one line that says what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            if "can't allocate memory" not in text:
                raise
        raise UserError(
            f"out of memory at batch_size {config.batch_size}: lower --batch-size"
            " (or --growth-rate, --base-width, --steps-per-run)"
        ) from error
