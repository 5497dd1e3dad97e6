"""The one place that decides which images, flips and crops make up a training step."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lion_fast.errors import UserError

_ORDER, _FLIP, _CROP = range(3)


class PlannedSteps(NamedTuple):
    """S consecutive steps of B images each."""

    indices: np.ndarray
    """(S, B) int64: rows of the training set."""
    flips: np.ndarray
    """(S, B) bool: mirror this image left to right."""
    crops: np.ndarray
    """(S, B, 2) int64: top and left corner of the crop in the padded image; all equal to the padding without crops."""


@dataclass(frozen=True)
class BatchPlan:
    """Which images, flips and crops make up global step s, for every s >= 0.

    Each epoch is a fresh permutation of the set whose incomplete last batch is dropped. All draws come from Philox, a
    counter-based generator keyed by the seed, at a counter made of epoch and purpose; a step therefore depends on
    nothing but the fields below, and resuming needs only its number. Only the generator's raw 64-bit output is used,
    which numpy guarantees to be stable across versions.
    """

    num_images: int
    batch_size: int
    seed: int
    crop_padding: int = 0

    def __post_init__(self) -> None:
        if self.batch_size > self.num_images:
            raise UserError(
                f"batch_size is {self.batch_size} but the training set holds {self.num_images} images: lower it"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the set."""
        return self.num_images // self.batch_size

    def _raw(self, epoch: int, purpose: int, num: int) -> np.ndarray:
        generator = np.random.Philox(key=self.seed, counter=[0, 0, purpose, epoch])
        return generator.random_raw(num)

    def _epoch(self, epoch: int) -> PlannedSteps:
        used = self.steps_per_epoch * self.batch_size
        shape = (self.steps_per_epoch, self.batch_size)
        order = np.argsort(self._raw(epoch, _ORDER, self.num_images), kind="stable")[:used]
        flips = (self._raw(epoch, _FLIP, used) >> np.uint64(63)).astype(bool)
        crops = np.full((used, 2), self.crop_padding, np.int64)
        if self.crop_padding:
            span = np.uint64(2 * self.crop_padding + 1)
            crops = (self._raw(epoch, _CROP, 2 * used) % span).astype(np.int64).reshape(used, 2)
        return PlannedSteps(order.reshape(shape), flips.reshape(shape), crops.reshape(*shape, 2))

    def steps(self, start: int, stop: int) -> PlannedSteps:
        """Return steps start <= s < stop (0-based)."""
        if not 0 <= start <= stop:
            raise ValueError(f"steps({start}, {stop}): need 0 <= start <= stop")
        parts = []
        per_epoch = self.steps_per_epoch
        for epoch in range(start // per_epoch, -(-stop // per_epoch)):
            first = epoch * per_epoch
            window = slice(max(start - first, 0), min(stop - first, per_epoch))
            parts.append([array[window] for array in self._epoch(epoch)])
        if not parts:
            parts = [[array[:0] for array in self._epoch(0)]]
        return PlannedSteps(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
