"""A step whose batch is processed in parts: on several ranks, in virtual shards, or both."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch
from lion_fast.errors import UserError
from lion_fast.models import DeeplySupervised
from lion_fast.training.ranks.flat import FlatVector
from lion_fast.training.ranks.world import TIMEOUT, World

Measure = Callable[[Batch, Tensor], None]
"""Forward and backward of a batch; writes what it measured into a row (1 + 2H,)."""


class Sharing:
    """Puts one step together from the ranks' parts of its batch, in one all-reduce.

    Gradients, losses and, with batch_norm local, running statistics are averaged and hits summed,
    so that every rank updates alike. Overflown gradients of one rank reach all of them, and their
    gradient scalers agree. The last value of a row says whether any rank wants to stop: all read it
    at the same step.
    """

    def __init__(
        self, model: DeeplySupervised, world: World, device: torch.device, *, own_statistics: bool
    ) -> None:
        self.world = world
        num_heads = len(list(model.heads))
        self.flat = FlatVector(model, num_heads, device, with_statistics=own_statistics)
        self._wish = torch.zeros(1, device=device)
        self.where: str | None = None
        """Which step it is that other ranks may be waited for in; None before the first."""
        self.most_seconds = TIMEOUT.total_seconds()
        """To wait for them."""

    def ask_to_stop(self) -> None:
        """Let all ranks know, with the next step enqueued, that this one has to stop."""
        self._wish.fill_(1)

    def start(self) -> None:
        """Forget an earlier run's wish."""
        self._wish.zero_()

    def waiting(self) -> AbstractContextManager[None]:
        """Watch a block that may wait for other ranks."""
        if self.world.size == 1:
            return nullcontext()
        return self.world.patience.waiting(self.where, self.most_seconds)

    def __call__(self, measure: Measure, batch: Batch, row: Tensor) -> None:
        """Measure this rank's part; leave all parts' gradients, and their row (2 + 2H,)."""
        with self.waiting():
            self._put_together(measure, batch, row)

    def _put_together(self, measure: Measure, batch: Batch, row: Tensor) -> None:
        measure(batch, self.flat.row)
        self.flat.collect()
        self.flat.flag.copy_(self._wish)
        dist.all_reduce(self.flat.values, group=self.world.group)
        self._end(self.world.size, row)

    def _end(self, num_parts: int, row: Tensor) -> None:
        self.flat.hand_out(num_parts)
        row[:-1].copy_(self.flat.row)
        row[-1:].copy_(self.flat.flag)


class VirtualShards(Sharing):
    """A step of V shards of the batch, summed in their order on every rank.

    Each has batch statistics of its own, and a rank processes V / ranks of them one after another.
    So every convolution sees the same shapes and every sum has the same order, on however many
    ranks: the bits are the same, at equal numbers of threads.
    """

    def __init__(
        self, model: DeeplySupervised, world: World, device: torch.device, num_shards: int
    ) -> None:
        super().__init__(model, world, device, own_statistics=True)
        self.num_shards, self.num_local = num_shards, num_shards // world.size
        size = len(self.flat.values)
        self._local = torch.zeros(self.num_local, size, device=device)
        self._all = self._local
        if world.size > 1:
            self._all = torch.zeros(num_shards, size, device=device)
        self._parameters = list(model.parameters())
        self._norms = [norm for norm in model.modules() if isinstance(norm, _BatchNorm)]

    def _put_together(self, measure: Measure, batch: Batch, row: Tensor) -> None:
        images, labels = batch.images.chunk(self.num_local), batch.labels.chunk(self.num_local)
        buffers = self._buffers()
        before = [buffer.clone() for buffer in buffers]
        for shard in range(self.num_local):
            for parameter in self._parameters:
                parameter.grad = None
            # Each shard moves the same averages by its own statistics.
            if buffers:
                torch._foreach_copy_(buffers, before)
            measure(Batch(images[shard], labels[shard]), self.flat.row)
            self.flat.collect()
            self.flat.flag.copy_(self._wish)
            self._local[shard].copy_(self.flat.values)
        if self.world.size > 1:
            dist.all_gather_into_tensor(self._all, self._local, group=self.world.group)
        self.flat.values.copy_(self._all[0])
        for values in self._all[1:]:
            self.flat.values.add_(values)
        self._end(self.num_shards, row)

    def _buffers(self) -> list[Tensor]:
        """Return what batch norms write in a forward pass, but for counters that a step keeps."""
        found = [
            (norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in self._norms
        ]
        return [buffer for each in found for buffer in each if buffer is not None]


def check_shares(config: TrainConfig, world: World) -> None:
    """Raise UserError where ranks or shards cannot share a batch equally."""
    shards, size = config.virtual_shards, world.size
    if shards and config.batch_size % shards:
        raise UserError(
            f"batch_size is {config.batch_size}, which {shards} virtual shards cannot share"
            f" equally: take a multiple of {shards}"
        )
    if shards and shards % size:
        raise UserError(
            f"virtual_shards is {shards}, which {size} processes cannot share equally: take a"
            f" multiple of {size}"
        )
    if config.batch_size % size:
        raise UserError(
            f"batch_size is {config.batch_size}, which {size} processes cannot share equally: take"
            f" a multiple of {size}"
        )


def make_sharing(
    model: DeeplySupervised, config: TrainConfig, world: World, device: torch.device
) -> Sharing | None:
    """Return how the steps of `config` are put together; None where a batch is one part.

    Raises UserError where parts are of a network that gives a class to every pixel: the mean over
    the pixels of a batch is not that of its parts' means, whose numbers of pixels differ.
    """
    if model.heads.is_dense and (config.virtual_shards > 1 or world.size > 1):
        parts = max(config.virtual_shards, world.size)
        raise UserError(
            f"{type(model).__name__} trains on whole batches, not on {parts} parts of them: start"
            " one process, without virtual_shards"
        )
    if config.virtual_shards > 1:
        return VirtualShards(model, world, device, config.virtual_shards)
    if world.size == 1:
        return None
    return Sharing(model, world, device, own_statistics=config.batch_norm == "local")
