"""The one place that decides which images, flips and crops make up a training step."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lion_fast.errors import UserError

_ORDER, _FLIP, _CROP = range(3)


class PlannedSteps(NamedTuple):
    """S consecutive steps of B images each; B is a rank's share where several share a plan."""

    indices: np.ndarray
    """(S, B) int64: rows of the training set."""
    flips: np.ndarray
    """(S, B) bool: mirror this image left to right."""
    crops: np.ndarray
    """(S, B, 2) int64: top and left corner of the crop in the padded image; zero without crops."""


@dataclass(frozen=True)
class BatchPlan:
    """Which images, flips and crops make up global step s, for every s >= 0.

    Each epoch is a fresh permutation of the set whose incomplete last batch is dropped. All draws
    come from Philox, a counter-based generator keyed by the seed, at a counter made of epoch and
    purpose; a step therefore depends on nothing but the fields below, and resuming needs only its
    number. Only the generator's raw 64-bit output is used, which numpy guarantees to be stable
    across versions.

    `world_size` processes may share the batches: `batch_size` stays that of all of them, and each
    plan delivers the columns of its rank, so the ranks in order make up the batch of one process.
    """

    num_images: int
    batch_size: int
    seed: int
    crop_padding: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank} of {self.world_size}: need 0 <= rank < number")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}: it must be at least 1")
        if self.batch_size > self.num_images:
            raise UserError(
                f"batch_size is {self.batch_size}, beyond the {self.num_images} training images: "
                "lower it"
            )
        if self.batch_size % self.world_size:
            raise UserError(
                f"batch_size is {self.batch_size}, which {self.world_size} processes cannot share"
                f" equally: take a multiple of {self.world_size}"
            )

    @property
    def local_batch_size(self) -> int:
        """Images of a step that this rank processes."""
        return self.batch_size // self.world_size

    @property
    def whole(self) -> "BatchPlan":
        """The plan of all ranks together."""
        return self.of_rank(0, 1)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the set."""
        return self.num_images // self.batch_size

    def of_rank(self, rank: int, world_size: int) -> "BatchPlan":
        """Return the plan of one of `world_size` processes that share the batches."""
        return dataclasses.replace(self, rank=rank, world_size=world_size)

    def steps(self, start: int, stop: int) -> PlannedSteps:
        """Return this rank's part of steps start <= s < stop (0-based), in arrays to keep."""
        if not 0 <= start <= stop:
            raise ValueError(f"steps({start}, {stop}): need 0 <= start <= stop")
        per_epoch = self.steps_per_epoch
        first_column = self.rank * self.local_batch_size
        columns = slice(first_column, first_column + self.local_batch_size)
        parts = []
        for epoch in range(start // per_epoch, max(start, stop - 1) // per_epoch + 1):
            first = epoch * per_epoch
            window = slice(max(start - first, 0), max(stop - first, 0))
            parts.append([array[window, columns] for array in _epoch(self.whole, epoch)])
        return PlannedSteps(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


# Two epochs, because a reader that takes several steps at a time may straddle a boundary.
@functools.lru_cache(maxsize=2)
def _epoch(plan: BatchPlan, epoch: int) -> PlannedSteps:
    used = plan.steps_per_epoch * plan.batch_size
    shape = (plan.steps_per_epoch, plan.batch_size)
    order = np.argsort(_raw(plan, epoch, _ORDER, plan.num_images), kind="stable")[:used]
    flips = (_raw(plan, epoch, _FLIP, used) >> np.uint64(63)).astype(bool)
    crops = np.zeros((used, 2), np.int64)
    if plan.crop_padding:
        span = np.uint64(2 * plan.crop_padding + 1)
        crops = (_raw(plan, epoch, _CROP, 2 * used) % span).astype(np.int64)
    return PlannedSteps(order.reshape(shape), flips.reshape(shape), crops.reshape(*shape, 2))


def _raw(plan: BatchPlan, epoch: int, purpose: int, num: int) -> np.ndarray:
    return np.random.Philox(key=plan.seed, counter=[0, 0, purpose, epoch]).random_raw(num)
