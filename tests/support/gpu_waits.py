"""Refuse what waits for the GPU."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def waits_refused() -> Iterator[None]:
    """Raise RuntimeError from operations inside that wait for the GPU, as far as torch sees it."""
    try:
        with warnings.catch_warnings():
            # That it does not know all of them; an error here would leave the mode switched on.
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
