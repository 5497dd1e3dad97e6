"""Where processes that torchrun has started meet, and how they part."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from lion_fast.errors import SaidElsewhere, UserError
from lion_fast.training.ranks.torchrun import Ranks, ranks_here
from lion_fast.training.ranks.world import TIMEOUT, World

_SAYING_SECONDS = 1.0


@contextmanager
def joined() -> Iterator[World]:
    """Meet the other processes that torchrun started, if any, and leave them at the end.

    A process group that the caller has opened is used and stays open. Raises UserError when they
    cannot meet, and when one of them has gone.
    """
    ranks = ranks_here()
    if ranks.size == 1:
        yield World()
        return
    is_ours = not dist.is_initialized()
    if is_ours:
        _meet(ranks)
    try:
        yield World(ranks)
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


def _meet(ranks: Ranks) -> None:
    try:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        text = str(error).splitlines()[0][:200]
        raise UserError(
            f"rank {ranks.rank} cannot meet the other processes ({text}): start all of them with"
            " torchrun, with a --master-port that is free"
        ) from None


def _is_loss(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "Connection closed" in text
