"""WorkersLoader: torchvision transforms in DataLoader workers, the customary baseline."""

import multiprocessing.connection
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from lion_fast.data.batches import Batch, BatchSpec, Loader
from lion_fast.data.plan import BatchPlan

Planned = tuple[int, bool, list[int]]
"""Row of the set, mirror or not, [top, left] of the crop: what a worker needs for one image."""

_PREFETCH_FACTOR = 2
# What a terminal or a scheduler sends to every process of a run.
_HEARD_BY_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class _PlannedImages(Dataset[tuple[Tensor, Tensor]]):
    """The training set, indexed by what is planned for one image instead of by a row alone."""

    def __init__(self, images: Tensor, labels: Tensor, padding: int, spec: BatchSpec) -> None:
        self.images, self.labels, self.padding = images, labels, padding
        self.to_normalised = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(spec.mean), list(spec.std))]
        )

    def __getitem__(self, planned: Planned) -> tuple[Tensor, Tensor]:
        index, flip, (top, left) = planned
        image = self.images[index].permute(2, 0, 1)
        if self.padding:
            height, width = image.shape[1:]
            image = TF.crop(TF.pad(image, [self.padding]), top, left, height, width)
        if flip:
            image = TF.horizontal_flip(image)
        return self.to_normalised(image), self.labels[index]


class _PlannedBatches(Sampler[list[Planned]]):
    """Yields the plan's batches from step `start` to `num_steps`."""

    def __init__(self, plan: BatchPlan, num_steps: int) -> None:
        self.plan, self.num_steps = plan, num_steps
        self.start = 0

    def __iter__(self) -> Iterator[list[Planned]]:
        for step in range(self.start, self.num_steps):
            planned = self.plan.steps(step, step + 1)
            yield list(zip(*(array[0].tolist() for array in planned), strict=True))


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Survive what a terminal or a scheduler sends to workers too: the parent has a step to finish.

    Workers end when their parent says so or is gone.
    """
    for number in _HEARD_BY_ALL:
        signal.signal(number, signal.SIG_IGN)


class WorkersLoader(Loader):
    """Executes a plan with per-image torchvision transforms in `num_workers` DataLoader processes.

    images: (N, H, W, 3) uint8. labels: (N,) int64.
    With 0 workers the images are made inside `next`. For a GPU, batches come through pinned memory
    and asynchronous copies. The plan travels with each task, so which worker makes a batch decides
    nothing. Workers start with the loader and outlive `seek`. What a worker raises, `next` raises
    with the worker's traceback; a worker that dies makes it raise RuntimeError.
    """

    name = "workers"

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        plan: BatchPlan,
        spec: BatchSpec,
        *,
        num_workers: int = 2,
    ) -> None:
        assert plan.num_images == len(images) == len(labels)
        self.plan, self.spec = plan, spec
        self._data = _PlannedImages(images, labels, plan.crop_padding, spec)
        self._sampler = _PlannedBatches(plan, spec.num_steps)
        self._loader = DataLoader(
            self._data,
            batch_sampler=self._sampler,
            num_workers=num_workers,
            pin_memory=spec.device.type == "cuda",
            persistent_workers=num_workers > 0,
            prefetch_factor=_PREFETCH_FACTOR if num_workers else None,
            # Without its own, the DataLoader draws from the global generator, as training does.
            generator=torch.Generator(),
            worker_init_fn=_leave_interrupts_to_the_parent,
        )
        self._batches: Any = iter(())
        self.seek(0)

    def seek(self, step: int) -> None:
        """Make the next batch that of global step `step` (0-based) and begin to make it."""
        self._check_sought(step)
        self._sampler.start = step
        self._batches = iter(self._loader)

    def next(self) -> Batch:
        """Return the current step's batch and advance by one step."""
        started = time.perf_counter()
        try:
            batch = next(self._batches, None)
        except (OSError, EOFError) as error:  # the process that held the batch is gone
            self._reap()
            raise RuntimeError(
                "a DataLoader worker died, perhaps killed for want of memory: lower --num-workers"
            ) from error
        self.data_wait_seconds += time.perf_counter() - started
        if batch is None:
            raise ValueError(f"no step is left of {self.spec.num_steps}: seek back first")
        # Copy first, convert there: in one call the host would convert, out of pinned memory.
        images, labels = (tensor.to(self.spec.device, non_blocking=True) for tensor in batch)
        return Batch(images.to(self.spec.dtype, memory_format=self.spec.memory_format), labels)

    def _reap(self) -> None:
        """Wait for the dying worker, whose signal would else make torch raise within close."""
        workers = {worker.sentinel: worker for worker in self._batches._workers}
        for sentinel in multiprocessing.connection.wait(workers, timeout=5):
            workers[sentinel].join()

    def memory_bytes(self) -> tuple[int, int]:
        """Return host bytes of the set and of the batches prefetched at most, and device bytes."""
        images, labels = self._data.images, self._data.labels
        batch = self.plan.local_batch_size * (4 * images[0].numel() + labels.itemsize)
        prefetched = _PREFETCH_FACTOR * self._loader.num_workers * batch
        return images.nbytes + labels.nbytes + prefetched, 0

    def close(self) -> None:
        """End the worker processes; the loader delivers nothing afterwards."""
        # Dropping the iterator is not enough: the traceback of a worker's exception keeps it alive.
        shut_down = getattr(self._batches, "_shutdown_workers", None)
        self._batches = iter(())
        if shut_down is not None:
            shut_down()
