"""What every loader is: an executor of a BatchPlan."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lion_fast.config import Impl
from lion_fast.data.encoded import EncodedSet
from lion_fast.data.images import ImageSet
from lion_fast.data.plan import BatchPlan


class Batch(NamedTuple):
    """One training step's images and labels."""

    images: Tensor
    """(B, 3, H, W) normalised, in the loader's dtype and memory format, on its device."""
    labels: Tensor
    """(B,) int64 on the same device."""


class Loader(ABC):
    """Delivers the batches of a plan in order, from any step.

    Every loader delivers the same batches for the same plan. Tensors it returns are valid until the
    next call of `next`; work is ordered on the current CUDA stream, and nothing in `next` waits for
    the device.
    """

    name: ClassVar[str]
    walks_on_device: ClassVar[bool] = False
    """True: `next` is device work alone, steered by a counter there, so a graph may capture it."""

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
        """Copy the next R batches into (R, B, 3, H, W) images and (R, B) labels; no host sync."""
        for image_slot, label_slot in zip(images.unbind(0), labels.unbind(0), strict=True):
            batch = self.next()
            image_slot.copy_(batch.images, non_blocking=True)
            label_slot.copy_(batch.labels, non_blocking=True)

    @property
    def num_skipped(self) -> int:
        """Unreadable images that the loader met and replaced."""
        return 0

    def memory_bytes(self) -> tuple[int, int]:
        """Return host and device bytes that the loader holds for data."""
        return 0, 0

    def close(self) -> None:  # noqa: B027 - most loaders have nothing to release
        """Release worker processes, threads and device memory."""


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return the torch memory format that the flag names."""
    return torch.channels_last if channels_last else torch.contiguous_format


def make_loader(
    name: Literal["resident", "dali", "workers"],
    image_set: ImageSet | EncodedSet,
    plan: BatchPlan,
    *,
    num_steps: int,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool = True,
    impl: Impl = "auto",
    steps_per_run: int = 16,
    num_workers: int = 2,
) -> Loader:
    """Return the named loader over the training images of `image_set`, at step 0 of `plan`.

    It can deliver steps 0 <= s < num_steps. `impl` steers resident, `steps_per_run` dali, and
    `num_workers` workers (processes) and dali (threads). The loader's module is imported here, so
    that only dali needs DALI.
    """
    common: dict[str, Any] = {
        "num_steps": num_steps,
        "mean": image_set.mean,
        "std": image_set.std,
        "device": device,
        "dtype": dtype,
        "channels_last": channels_last,
    }
    pipeline: dict[str, Any] = {"steps_per_run": steps_per_run, "num_threads": num_workers}
    if isinstance(image_set, EncodedSet):
        if name != "dali":
            raise ValueError(f"loader is {name!r}: an encoded folder needs dali")
        from lion_fast.data.dali_folder import DaliFolderLoader

        return DaliFolderLoader(
            image_set.listing.train,
            plan,
            image_size=image_set.image_size,
            skip_corrupt=image_set.skip_corrupt,
            **common,
            **pipeline,
        )
    images, labels = image_set.train_images, image_set.train_labels
    if name == "resident":
        from lion_fast.data.resident import ResidentLoader

        return ResidentLoader(images, labels, plan, impl=impl, **common)
    if name == "workers":
        from lion_fast.data.workers import WorkersLoader

        return WorkersLoader(images, labels, plan, num_workers=num_workers, **common)
    if name == "dali":
        from lion_fast.data.dali import DaliLoader

        return DaliLoader(images, labels, plan, **common, **pipeline)
    raise ValueError(f"loader is {name!r}: take one of resident, dali, workers")
