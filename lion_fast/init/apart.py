"""Takes apart an output whose parts come from different layers: levels stacked or concatenated."""

from typing import NamedTuple

import torch
from torch import Tensor

from lion_fast.init.trace import Trace

_MAX_LEVELS = 16
"""Levels that a stack may have; more along a dimension are no levels."""


class Part(NamedTuple):
    """One stretch of a tensor along one dimension."""

    dim: int
    start: int
    length: int
    calls: list[int]
    """The layer calls, of the trace's, that give it."""


def parts_of(trace: Trace, value: Tensor, calls: list[int]) -> list[Part]:
    """Return the parts along the dimension where each comes from the fewest calls; [] if none does.

    Every level of a stack is a part; neighbours of one source in a concatenation are one.
    """
    if len(calls) < 2 or value.ndim == 0:
        return []
    try:
        supports = torch.stack(_supports(trace, value, calls))
    except (RuntimeError, NotImplementedError):
        # An operation without a second derivative, such as attention, mixes its inputs.
        return []
    best: list[Part] = []
    fewest = len(calls)
    for dim, size in enumerate(value.shape):
        others = [d + 1 for d in range(value.ndim) if d != dim]
        # others is empty for a vector, and sum() would take all dimensions then.
        owned = supports.sum(others, dtype=torch.int64) if others else supports
        rows = (owned > 0).t().tolist()
        owners = [[c for c, own in zip(calls, row, strict=True) if own] for row in rows]
        most = max(map(len, owners), default=0)
        parts = _runs(dim, owners, merge=not _stacks(value, size))
        if most < fewest or (most == fewest and 1 < len(parts) < len(best)):
            best, fewest = parts, most
    return best


def _stacks(value: Tensor, size: int) -> bool:
    node = value.grad_fn
    if node is None or not node.name().startswith("Stack"):
        return False
    return size <= _MAX_LEVELS and len(node.next_functions) == size


def _runs(dim: int, owners: list[list[int]], merge: bool) -> list[Part]:
    parts: list[Part] = []
    for index, own in enumerate(owners):
        if merge and parts and parts[-1].calls == own:
            parts[-1] = parts[-1]._replace(length=parts[-1].length + 1)
        else:
            parts.append(Part(dim, index, 1, own))
    return parts


def _supports(trace: Trace, value: Tensor, calls: list[int]) -> list[Tensor]:
    """Return for each call which elements of a value move with it.

    By the gradient of a gradient: J^T v is linear in v, and its gradient in v is J.
    """
    direction = torch.randn_like(value, requires_grad=True)
    total = (value * direction).sum()
    supports = []
    for index in calls:
        pulled = torch.autograd.grad(
            total, trace.calls[index].edges, create_graph=True, allow_unused=True
        )
        moving = [(p * torch.randn_like(p)).sum() for p in pulled if p is not None]
        moving = [scalar for scalar in moving if scalar.requires_grad]
        moved = None
        if moving:
            (moved,) = torch.autograd.grad(
                torch.stack(moving).sum(), [direction], retain_graph=True, allow_unused=True
            )
        supports.append(torch.ones_like(value) != 0 if moved is None else moved != 0)
    return supports
