"""The batch counters of batch norms, advanced in one launch a step instead of one a layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lion_fast.models import DeeplySupervised


class BatchCounts:
    """Counts what the batch norms of `model` would count in a forward pass, for all of them.

    `num_batches_tracked` takes part in no result as long as running averages have a momentum, but
    stock batch norm adds 1 to it on the device, a kernel a layer. Left to count for themselves are
    norms whose average needs the number, those with a forward of their own, and all norms of a
    network that does not promise to run each exactly once (`DeeplySupervised.runs_norms_once`).
    """

    def __init__(self, model: DeeplySupervised) -> None:
        self._norms: list[_BatchNorm] = []
        if model.runs_norms_once:
            self._norms = [norm for norm in model.modules() if _only_counts(norm)]

    @contextmanager
    def ahead(self, steps_done: Tensor) -> Iterator[None]:
        """Count now, and keep the norms from counting in the forward pass inside.

        steps_done: () int64, a counter of the step's own that takes part in the launch.
        """
        # A norm in evaluation mode counts nothing.
        counters: list[tuple[_BatchNorm, Tensor]] = [
            (norm, norm.num_batches_tracked)
            for norm in self._norms
            if norm.training and norm.num_batches_tracked is not None
        ]
        torch._foreach_add_([steps_done, *(counter for _, counter in counters)], 1)
        for norm, _ in counters:
            norm.num_batches_tracked = None
        try:
            yield
        finally:
            for norm, counter in counters:
                norm.num_batches_tracked = counter


def _only_counts(module: torch.nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether it is a batch norm that counts its batches and does nothing with the number."""
    return (
        isinstance(module, _BatchNorm)
        and type(module).forward is _BatchNorm.forward
        and module.momentum is not None
    )
