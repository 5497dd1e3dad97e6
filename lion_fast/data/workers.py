"""WorkersLoader: torchvision transforms in DataLoader workers, the customary baseline."""

import errno
import multiprocessing.connection
import os
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
from lion_fast.errors import UserError
from lion_fast.kernels import reduce_images
from lion_fast.output import complain

Planned = tuple[int, bool, list[int]]
"""Row of the set, mirror or not, [top, left] of the crop: what a worker needs for one image."""

_PREFETCH_FACTOR = 2
_SHARED_MEMORY = "/dev/shm"
# What torch says where workers cannot hand over a batch for want of it, or are killed for that.
_WANT_OF_IT = ("shared memory", "unable to write to file </torch", "Bus error")
_WANT_OF_FILES = ("Too many open files", "ancdata")
_ENLARGE = (
    "enlarge it (docker run --shm-size=2g), lower --num-workers or --batch-size, or let"
    " --num-workers auto do with less"
)
_DEATHS = ("exited unexpectedly", "killed by signal")
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


class WorkersFailed(UserError, RuntimeError):
    """Workers cannot go on here, whatever the images are; the message says what to change."""


class WorkersLoader(Loader):
    """Executes a plan with per-image torchvision transforms in `num_workers` DataLoader processes.

    images: (N, H, W, 3) uint8. labels: (N,) int64.
    With 0 workers the images are made inside `next`. For a GPU, batches come through pinned memory
    and asynchronous copies. The plan travels with each task, so which worker makes a batch decides
    nothing. Workers start with the loader and outlive `seek`. What a worker raises, `next` raises
    with the worker's traceback.

    Raises WorkersFailed where the batches on their way would not fit in shared memory; `next` does
    so where a worker dies, or the shared memory or the open files run out after all. With `fewer`,
    a warning is printed instead, and as many workers as there is room for make the batches; in
    `next`, the process itself from then on.
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
        fewer: bool = False,
    ) -> None:
        assert plan.num_images == len(images) == len(labels)
        self.plan, self.spec = plan, spec
        self._may_be_fewer = fewer
        self._data = _PlannedImages(images, labels, plan.crop_padding, spec)
        self._sampler = _PlannedBatches(plan, spec.num_steps)
        self._loader = self._make_loader(self._fitting(num_workers))
        self._batches: Any = iter(())
        self.seek(0)

    def _make_loader(self, num_workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(
            self._data,
            batch_sampler=self._sampler,
            num_workers=num_workers,
            pin_memory=self.spec.device.type == "cuda",
            persistent_workers=num_workers > 0,
            prefetch_factor=_PREFETCH_FACTOR if num_workers else None,
            # Without its own, the DataLoader draws from the global generator, as training does.
            generator=torch.Generator(),
            worker_init_fn=_leave_interrupts_to_the_parent,
        )

    def seek(self, step: int) -> None:
        """Make the next batch that of global step `step` (0-based) and begin to make it."""
        self._check_sought(step)
        self._sampler.start = self._step = step
        try:
            self._batches = iter(self._loader)
        except OSError as error:
            self._go_on_without(self._failure_to_start(error))

    def next(self, side: int | None = None) -> Batch:
        """Return the current step's batch and advance by one step; see `Loader.next`."""
        started = time.perf_counter()
        try:
            batch = next(self._batches, None)
        except (OSError, EOFError, RuntimeError) as error:
            failure = self._failure(error)
            if failure is None:
                raise
            self._reap()
            self._go_on_without(failure)
            batch = next(self._batches, None)
        self._step += 1
        self.data_wait_seconds += time.perf_counter() - started
        if batch is None:
            raise ValueError(f"no step is left of {self.spec.num_steps}: seek back first")
        # Copy first, convert there: in one call the host would convert, out of pinned memory.
        images, labels = (tensor.to(self.spec.device, non_blocking=True) for tensor in batch)
        if side is not None:
            images = reduce_images(images, side)
        return Batch(images.to(self.spec.dtype, memory_format=self.spec.memory_format), labels)

    def _fitting(self, num_workers: int) -> int:
        """Return how many workers shared memory has room for, with all batches on their way.

        Raises WorkersFailed where those are not enough.
        """
        free = _free_shared_memory()
        batch = self._batch_bytes(self._data.images)
        wanted = (_PREFETCH_FACTOR * num_workers + 1) * batch
        if num_workers == 0 or free is None or wanted <= free:
            return num_workers
        text = (
            f"the batches of {num_workers} workers take {wanted / 2**20:,.0f} MiB of"
            f" {_SHARED_MEMORY}, which has {free / 2**20:,.0f} free"
        )
        if not self._may_be_fewer:
            raise WorkersFailed(f"{text}: {_ENLARGE}")
        fitting = max(0, (free // batch - 1) // _PREFETCH_FACTOR)
        complain(f"{text}: going on with {fitting or 'none'} of them")
        return fitting

    def _go_on_without(self, failure: WorkersFailed) -> None:
        """Make the batches in this process, from the present step's on; raise where not allowed."""
        if not self._may_be_fewer or self._loader.num_workers == 0:
            raise failure
        reason, _, _ = str(failure).partition(": ")
        complain(f"{reason}: going on without workers")
        self.close()
        self._loader = self._make_loader(0)
        self.seek(self._step)

    def _batch_bytes(self, images: Tensor) -> int:
        return self.plan.local_batch_size * (4 * images[0].numel() + 8)

    def _failure_to_start(self, error: OSError) -> WorkersFailed:
        """Return in one line what keeps processes, or their semaphores, from being made."""
        if error.errno in (errno.EMFILE, errno.ENOSPC) and (known := self._failure(error)):
            return known
        return WorkersFailed(
            f"cannot start DataLoader workers ({error.strerror}): go on without, --num-workers 0"
        )

    def _failure(self, error: Exception) -> WorkersFailed | None:
        """Return in one line what torch says of workers that cannot go on; None of all else."""
        text = str(error)
        if getattr(error, "errno", None) == errno.EMFILE or _names(_WANT_OF_FILES, text):
            return WorkersFailed(
                "DataLoader workers have too many open files: raise the limit (ulimit -n 65536), or"
                " lower --num-workers"
            )
        if getattr(error, "errno", None) == errno.ENOSPC or _names(_WANT_OF_IT, text):
            free = _free_shared_memory()
            left = "" if free is None else f", which has {free / 2**20:,.0f} MiB free"
            return WorkersFailed(
                f"a DataLoader worker found no room in {_SHARED_MEMORY}{left}: {_ENLARGE}"
            )
        if isinstance(error, RuntimeError) and not _names(_DEATHS, text):
            return None
        # The process that held the batch is gone.
        return WorkersFailed(
            "a DataLoader worker died, perhaps killed for want of memory: lower --num-workers, or"
            f" {_SHARED_MEMORY} is too small: {_ENLARGE}"
        )

    def _reap(self) -> None:
        """Wait for the dying worker, whose signal would else make torch raise within close."""
        workers = {worker.sentinel: worker for worker in getattr(self._batches, "_workers", ())}
        for sentinel in multiprocessing.connection.wait(workers, timeout=5):
            workers[sentinel].join()

    def memory_bytes(self) -> tuple[int, int]:
        """Return host bytes of the set and of the batches prefetched at most, and device bytes."""
        images, labels = self._data.images, self._data.labels
        batch = self._batch_bytes(images)
        prefetched = _PREFETCH_FACTOR * self._loader.num_workers * batch
        return images.nbytes + labels.nbytes + prefetched, 0

    def close(self) -> None:
        """End the worker processes; the loader delivers nothing afterwards."""
        # Dropping the iterator is not enough: the traceback of a worker's exception keeps it alive.
        shut_down = getattr(self._batches, "_shutdown_workers", None)
        self._batches = iter(())
        if shut_down is not None:
            shut_down()


def _free_shared_memory() -> int | None:
    """Return the bytes that workers may still hand over batches in; None where nothing tells."""
    try:
        found = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _names(words: tuple[str, ...], text: str) -> bool:
    return any(word in text for word in words)
