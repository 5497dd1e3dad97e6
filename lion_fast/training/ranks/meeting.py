"""Where processes that torchrun has started meet, and how they part."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from lion_fast.errors import SaidElsewhere, UserError
from lion_fast.output import complain
from lion_fast.training.ranks.torchrun import Ranks, meeting_place, ranks_here
from lion_fast.training.ranks.world import TIMEOUT, World

_SAYING_SECONDS = 1.0
_PATIENCE = 5.0
"""Seconds of waiting before it is said; torchrun starts all within less."""
_GRACE = 10.0
"""Seconds beyond the timeout for torch's own end of waiting, which says why and comes up to two
late: a process that ends before its thread does would be aborted."""
_LOOK = 0.2
"""Seconds between two looks whether all have come; signals are acted upon in between."""


@contextmanager
def joined(timeout: float) -> Iterator[World]:
    """Meet the other processes that torchrun started, if any, and leave them at the end.

    timeout: seconds to wait for all of them.
    A process group that the caller has opened is used and stays open. Raises UserError when they
    cannot meet, and when one of them has gone.
    """
    ranks = ranks_here()
    if ranks.size == 1:
        yield World()
        return
    is_ours = not dist.is_initialized()
    if is_ours:
        _meet(ranks, timeout)
    world = World(ranks)
    try:
        with world.patience:
            yield world
    except SaidElsewhere:
        if is_ours:
            # torchrun ends all processes once one has ended: let the one that speaks do so first.
            time.sleep(_SAYING_SECONDS)
        raise
    except RuntimeError as error:
        # Leaving properly would wait for those that have gone.
        if not _is_loss(error):
            raise
        raise UserError(
            f"rank {ranks.rank} lost another process of the run, whose own message says why: start"
            " all again, with --resume where there is a checkpoint"
        ) from None
    if is_ours:
        dist.destroy_process_group()


def _meet(ranks: Ranks, timeout: float) -> None:
    """Open the process group in a thread, so that this one hears signals meanwhile."""
    failures: list[Exception] = []

    def meet() -> None:
        try:
            dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        except (ValueError, RuntimeError) as error:
            failures.append(error)

    place = meeting_place()
    who = f"rank {ranks.rank} waits for the other {ranks.size - 1} of {ranks.size} processes"
    thread = threading.Thread(target=meet, daemon=True)
    started = time.monotonic()
    thread.start()
    is_said = False
    while thread.is_alive():
        thread.join(_LOOK)
        waited = time.monotonic() - started
        if waited > timeout + _GRACE:
            break
        if waited > _PATIENCE and not is_said and thread.is_alive():
            complain(f"{who} at {place}, for {timeout:g} s at most")
            is_said = True
    if failures or thread.is_alive():
        text = str(failures[0]).splitlines()[0][:200] if failures else f"waited {timeout:g} s"
        raise UserError(
            f"rank {ranks.rank} cannot meet the other processes at {place} ({text}): start all of"
            " them with torchrun, with a --master-port that is free, or wait longer with"
            " --rendezvous-timeout"
        )
    # From here on one may be busy, with a download, for longer than others take to start.
    dist.distributed_c10d._set_pg_timeout(TIMEOUT, dist.group.WORLD)


def _is_loss(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "Connection closed" in text
