"""What every loader is: an executor of a BatchPlan."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lion_fast.data.plan import BatchPlan


class Batch(NamedTuple):
    """One training step's images and labels."""

    images: Tensor
    """(B, 3, H, W) normalised, in the loader's dtype and memory format, on its device."""
    labels: Tensor
    """(B,) int64 on the same device."""


class Loader(ABC):
    """Delivers the batches of a plan in order, from any step.

    Every loader delivers the same batches for the same plan. Tensors it returns are valid until the next call of
    `next`; work is ordered on the current CUDA stream, and nothing in `next` waits for the device.
    """

    name: ClassVar[str]
    walks_on_device: ClassVar[bool] = False
    """True: `next` is device work alone, steered by a step counter on the device, so it may be captured in a graph."""

    plan: BatchPlan
    data_wait_seconds: float = 0.0
    """Host seconds spent waiting inside `next` for a batch that was not ready."""

    @abstractmethod
    def seek(self, step: int) -> None:
        """Make the next batch that of global step `step` (0-based)."""

    @abstractmethod
    def next(self) -> Batch:
        """Return the current step's batch and advance by one step."""

    def next_into(self, images: Tensor, labels: Tensor) -> None:
        """Copy the next R batches into (R, B, 3, H, W) images and (R, B) labels, without a host sync."""
        for image_slot, label_slot in zip(images.unbind(0), labels.unbind(0), strict=True):
            batch = self.next()
            image_slot.copy_(batch.images, non_blocking=True)
            label_slot.copy_(batch.labels, non_blocking=True)

    def memory_bytes(self) -> tuple[int, int]:
        """Return host and device bytes that the loader holds for data."""
        return 0, 0

    def close(self) -> None:
        """Release worker processes, threads and device memory."""


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return the torch memory format that the flag names."""
    return torch.channels_last if channels_last else torch.contiguous_format
