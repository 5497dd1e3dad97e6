"""What a batch is, and what every loader is: an executor of a BatchPlan."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from lion_fast.config import Impl
from lion_fast.data.dataset import DataSet
from lion_fast.data.plan import BatchPlan
from lion_fast.kernels import augment_batch


class Batch(NamedTuple):
    """One training step's images and labels."""

    images: Tensor
    """(B, 3, h, w) normalised, of the set's size or reduced, in the loader's dtype and memory
    format, on its device."""
    labels: Tensor
    """(B,) int64 on the same device, or masks (B, H, W) uint8."""


@dataclass(frozen=True)
class BatchSpec:
    """How many batches a loader shall deliver, and in what form: the same for every loader."""

    num_steps: int
    """Steps 0 <= s < num_steps may be asked for."""
    mean: tuple[float, float, float]
    """Per channel, in units of full scale; subtracted."""
    std: tuple[float, float, float]
    """Per channel, in the same units; divided by."""
    device: torch.device
    dtype: torch.dtype
    """Of the images, normalised."""
    channels_last: bool = True
    reduces: bool = False
    """Whether batches may be asked for at smaller sides too."""

    @classmethod
    def of(
        cls,
        images: DataSet,
        *,
        num_steps: int,
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool = True,
        reduces: bool = False,
    ) -> Self:
        """Return the spec of batches that are normalised with the statistics of `images`."""
        return cls(num_steps, images.mean, images.std, device, dtype, channels_last, reduces)

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the images (B, 3, H, W)."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class Loader(ABC):
    """Delivers the batches of a plan in order, from any step.

    Every loader delivers the same batches for the same plan, at full size or, where its spec says
    so, reduced to a smaller side by `reduce_images` before they are cast. Tensors it returns are
    valid until the next call of `next`; work is ordered on the current CUDA stream, and nothing in
    `next` waits for the device.
    """

    name: ClassVar[str]
    walks_on_device: ClassVar[bool] = False
    """True: `next` is device work alone, steered by a counter there, so a graph may capture it."""

    plan: BatchPlan
    spec: BatchSpec
    data_wait_seconds: float = 0.0
    """Host seconds spent waiting inside `next` for a batch that was not ready."""

    @abstractmethod
    def seek(self, step: int) -> None:
        """Make the next batch that of global step `step` (0-based)."""

    def _check_sought(self, step: int) -> None:
        if not 0 <= step <= self.spec.num_steps:
            raise ValueError(f"seek({step}): the loader holds {self.spec.num_steps} steps")

    @abstractmethod
    def next(self, side: int | None = None) -> Batch:
        """Return the current step's batch and advance by one step.

        side: pixels of height and width that its images are reduced to; None: full size.
        """

    def next_into(self, images: Tensor, labels: Tensor, side: int | None = None) -> None:
        """Copy the next R batches into (R, B, 3, h, w) images and their labels; no host sync."""
        for image_slot, label_slot in zip(images.unbind(0), labels.unbind(0), strict=True):
            batch = self.next(side)
            image_slot.copy_(batch.images, non_blocking=True)
            label_slot.copy_(batch.labels, non_blocking=True)

    def replan(self, plan: BatchPlan) -> None:
        """Execute another plan of the same shape, in place; for a loader that walks on the device.

        Raises NotImplementedError where a new loader serves as well.
        """
        raise NotImplementedError(f"loader {self.name} is made anew for another plan")

    @property
    def num_skipped(self) -> int:
        """Unreadable images that the loader met and replaced."""
        return 0

    def memory_bytes(self) -> tuple[int, int]:
        """Return host and device bytes that the loader holds for data."""
        return 0, 0

    def close(self) -> None:  # noqa: B027 - most loaders have nothing to release
        """Release worker processes, threads and device memory."""


def planned_batch(
    images: DataSet,
    indices: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    *,
    side: int | None = None,
    impl: Impl = "auto",
) -> Batch:
    """Return the training images `indices`, unflipped and normalised, on `device`.

    side: as in `Loader.next`.
    """
    pixels, labels = images.train_rows(indices)
    return normalised(pixels, labels, images, device, dtype, side=side, impl=impl)


def normalised(
    pixels: Tensor,
    labels: Tensor,
    images: DataSet,
    device: torch.device,
    dtype: torch.dtype,
    *,
    side: int | None = None,
    impl: Impl = "auto",
) -> Batch:
    """Return uint8 pixels (B, H, W, 3) of `images` as a normalised batch on `device`."""
    order = torch.arange(len(labels), device=device)
    upright = torch.zeros_like(order, dtype=torch.bool)
    batch, _ = augment_batch(
        pixels.to(device),
        order,
        order,
        upright,
        images.mean,
        images.std,
        out_dtype=dtype,
        side=side,
        impl=impl,
    )
    return Batch(batch, labels.to(device))
