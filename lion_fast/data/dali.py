"""NVIDIA DALI as a loader: one pipeline run delivers the batches of many steps.

A pipeline pays a fixed price per run, which 32x32 images do not amortise; a *super-batch* of S
steps does. An external source feeds the pipeline the planned images, mirrors and crops; the
pipeline moves them to the device and crops, mirrors and normalises them there, on streams of its
own and ahead of time. Without a GPU the same pipeline runs on the CPU.

Shapes: N images in the set, B in a step, S steps per run, R = S * B per run, H x W pixels.
DALI is imported when a pipeline is built, not before.
"""

import time
from collections import deque
from collections.abc import Callable
from importlib import metadata
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lion_fast.data.batches import Batch, BatchSpec, Loader
from lion_fast.data.plan import BatchPlan, PlannedSteps
from lion_fast.errors import UserError
from lion_fast.kernels import reduce_images

# By CUDA major version; capabilities from DALI's support matrix for x86-64.
_WHEELS = {13: "nvidia-dali-cuda130", 12: "nvidia-dali-cuda120"}
_EXTRAS = {13: "lion-fast[dali]", 12: "lion-fast[dali-cu12]"}
_OLDEST_CAPABILITY = {13: (7, 5), 12: (5, 0)}

# DALI has no bf16, so the batch is cast from fp32: rounded once, as by every other loader. So is
# one that may be reduced first.
_DALI_DTYPES = {torch.float32: "FLOAT", torch.float16: "FLOAT16", torch.bfloat16: "FLOAT"}

Gather = Callable[[np.ndarray], tuple[Any, np.ndarray]]
"""Maps rows (R,) of the set to what a pipeline decodes and to int64 labels (R,)."""


class DaliStatus(NamedTuple):
    """What DALI can do on this machine."""

    version: str | None
    """Version of the installed wheel; None without one."""
    cuda: str | None
    """CUDA major version that the wheel is built for."""
    usable_on: Literal["gpu", "cpu"] | None
    """Best device for a pipeline here; None without DALI."""
    reason: str
    """Why, in one line that names the package to install where one would help."""


def dali_status() -> DaliStatus:
    """Tell from package metadata, torch and the driver what DALI can do, without importing it."""
    torch_cuda = int(torch.version.cuda.split(".")[0]) if torch.version.cuda else None
    for cuda, wheel in _WHEELS.items():
        try:
            version = metadata.version(wheel)
        except metadata.PackageNotFoundError:
            continue
        obstacle = _gpu_obstacle(cuda, torch_cuda)
        device: Literal["gpu", "cpu"] = "cpu" if obstacle else "gpu"
        return DaliStatus(version, str(cuda), device, obstacle or f"{wheel} {version}")
    extra = _EXTRAS.get(torch_cuda or 13, _EXTRAS[13])
    return DaliStatus(None, None, None, f"NVIDIA DALI is not installed: pip install '{extra}'")


def _gpu_obstacle(cuda: int, torch_cuda: int | None) -> str | None:
    """Return what keeps a wheel for CUDA major version `cuda` from running on the GPU, if any."""
    wheel = _WHEELS[cuda]
    # The function is absent from CPU builds of torch and returns 0 without a driver.
    driver_cuda = getattr(torch._C, "_cuda_getDriverVersion", int)() // 1000
    if 0 < driver_cuda < cuda:
        return (
            f"the NVIDIA driver is too old: it supports CUDA {driver_cuda} and {wheel} needs "
            f"{cuda}: update it, or pip uninstall {wheel} and pip install '{_EXTRAS[12]}'"
        )
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU, so pipelines run on the CPU"
    if torch_cuda in _WHEELS and torch_cuda != cuda:
        return (
            f"{wheel} is built for CUDA {cuda} but torch for CUDA {torch_cuda}: "
            f"pip uninstall {wheel} and pip install '{_EXTRAS[torch_cuda]}'"
        )
    capability = torch.cuda.get_device_capability()
    if capability < _OLDEST_CAPABILITY[cuda]:
        return (
            f"{wheel} has no code for compute capability {capability[0]}.{capability[1]}: "
            f"pip uninstall {wheel} and pip install '{_EXTRAS[12]}'"
        )
    return None


def require_dali(device: torch.device) -> None:
    """Raise UserError, naming the package to install, where DALI cannot serve `device`."""
    status = dali_status()
    if status.usable_on is None or (device.type == "cuda" and status.usable_on == "cpu"):
        raise UserError(f"loader dali cannot run on {device.type}: {status.reason}")
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        wheel = _WHEELS[int(status.cuda or 13)]
        raise UserError(
            f"{wheel} {status.version} cannot be imported ({error}): "
            f"pip install --force-reinstall {wheel}"
        ) from error


class _PlannedRuns:
    """A pipeline's external source: each call feeds the next run's S steps of the plan."""

    def __init__(self, plan: BatchPlan, steps_per_run: int, gather: Gather) -> None:
        self.plan = plan
        self.steps_per_run = steps_per_run
        self.gather = gather
        self.start = 0
        """First step of the next run to feed."""
        self.fed: deque[int] = deque()
        """First steps of the runs that were fed and not yet fetched, oldest first."""

    def planned(self) -> PlannedSteps:
        """Return the plan of the next run to feed, as (R,) indices, (R,) flips and (R, 2) crops."""
        steps = self.plan.steps(self.start, self.start + self.steps_per_run)
        return PlannedSteps(*(np.concatenate(array) for array in steps))

    def __call__(self) -> tuple[Any, ...]:
        """Return images, labels (R,), flips (R,) and, if crops are planned, corners (R, 2)."""
        indices, flips, crops = self.planned()
        images, labels = self.gather(indices)
        self.fed.append(self.start)
        self.start += self.steps_per_run
        if not self.plan.crop_padding:
            return images, labels, flips
        return images, labels, flips, (crops - self.plan.crop_padding).astype(np.int32)


class PipelineLoader(Loader):
    """Executes a plan through a DALI pipeline; a subclass says where its images come from.

    A run starts at the step that was sought, wherever that lies, and may pass the end of an epoch
    or of the training: the plan has no end. Batches are views of the pipeline's output buffers.
    Runs come at full size, since one may hold steps of several and DALI's resize has no area
    filter: smaller sides are made of them by `reduce_images`.

    image_size: (H, W) of every image. steps_per_run: S, cut down to the length of the training.
    num_threads: CPU threads of the pipeline. prefetch: runs that exist at a time, the one being
    read and those in preparation. Raises UserError where DALI cannot serve the device.
    """

    name = "dali"
    _fed_layout = "HWC"

    def __init__(
        self,
        plan: BatchPlan,
        gather: Gather,
        spec: BatchSpec,
        *,
        image_size: tuple[int, int],
        steps_per_run: int = 16,
        num_threads: int = 2,
        prefetch: int = 2,
    ) -> None:
        if spec.dtype not in _DALI_DTYPES:
            raise ValueError(f"dtype is {spec.dtype}: DALI delivers float32, float16 or bfloat16")
        require_dali(spec.device)
        self.plan, self.spec = plan, spec
        self._run_dtype = torch.float32 if spec.reduces else spec.dtype
        self._image_size = image_size
        self._num_threads, self._prefetch = max(1, num_threads), prefetch
        self._source = _PlannedRuns(plan, min(steps_per_run, spec.num_steps), gather)
        self._step = 0
        self._images = self._labels = torch.empty(0)
        self._offset = self._num_held = 0
        self._handed_over: tuple[torch.cuda.Stream, torch.cuda.Event] | None = None
        self._pipeline: Any = self._build()

    def _decode(self, fed: Any) -> Any:
        """Turn the node that the gather feeds into uint8 HWC images of `image_size`."""
        return fed.gpu() if self.spec.device.type == "cuda" else fed

    def _build(self) -> Any:
        from nvidia.dali import fn, pipeline_def
        from nvidia.dali.types import DALIDataType

        on_gpu = self.spec.device.type == "cuda"
        # DALI copies what it is fed (into pinned memory, for a GPU). On the CPU no_copy=True was
        # no faster, and on a GPU nothing tells the host when a borrowed buffer is free again.
        types = [DALIDataType.UINT8, DALIDataType.INT64, DALIDataType.BOOL, DALIDataType.INT32]
        ndims = [len(self._fed_layout) or 1, 0, 0, 1]
        num_fed = 4 if self.plan.crop_padding else 3

        @pipeline_def(enable_conditionals=True)
        def super_batch() -> Any:
            fed, labels, mirror, *corners = fn.external_source(
                self._source,
                num_outputs=num_fed,
                dtype=types[:num_fed],
                ndim=ndims[:num_fed],
                layout=[self._fed_layout],
            )
            images = self._decode(fed)
            if corners:
                images = fn.slice(
                    images,
                    start=corners[0],
                    shape=self._image_size,
                    axes=(0, 1),
                    out_of_bounds_policy="pad",
                    fill_values=0,
                )
            # crop_mirror_normalize can mirror too, but it looks through all R values of the
            # argument again for every image (DALI 2.4): quadratic time, which a super-batch cannot
            # afford. Splitting the batch on the planned mirror is linear.
            if mirror:
                images = fn.flip(images, horizontal=1)
            images = fn.crop_mirror_normalize(
                images,
                mean=[255 * value for value in self.spec.mean],
                std=[255 * value for value in self.spec.std],
                dtype=DALIDataType.__members__[_DALI_DTYPES[self._run_dtype]],
                output_layout="HWC" if self.spec.channels_last else "CHW",
            )
            return images, labels.gpu() if on_gpu else labels

        device_id = self.spec.device.index if on_gpu else None
        pipeline = super_batch(
            batch_size=self._source.steps_per_run * self.plan.local_batch_size,
            num_threads=self._num_threads,
            device_id=torch.cuda.current_device() if on_gpu and device_id is None else device_id,
            prefetch_queue_depth=self._prefetch,
            exec_dynamic=True,
        )
        pipeline.build()
        return pipeline

    def seek(self, step: int) -> None:
        """Make the next batch that of global step `step` (0-based).

        Prefetched runs are discarded unless the step lies in the run being read or follows it.
        """
        offset = self._offset + step - self._step
        if 0 <= offset <= self._num_held:
            self._offset = offset
        else:
            self._offset = self._num_held = 0
            self._source.start = step
        self._step = step

    def next(self, side: int | None = None) -> Batch:
        """Return the current step's batch and advance by one step; see `Loader.next`."""
        images, labels = self._take(1, side)
        return Batch(images[0].to(self.spec.dtype), labels[0])

    def next_into(self, images: Tensor, labels: Tensor, side: int | None = None) -> None:
        """Copy the next R batches into (R, B, 3, h, w) images and (R, B) labels, run by run."""
        done = 0
        while done < len(images):
            some_images, some_labels = self._take(len(images) - done, side)
            rows = slice(done, done + len(some_images))
            images[rows].copy_(some_images, non_blocking=True)
            labels[rows].copy_(some_labels, non_blocking=True)
            done = rows.stop

    def _take(self, most: int, side: int | None) -> tuple[Tensor, Tensor]:
        """Return the next steps that the current run still holds, one at least, `most` at most.

        side: that of their images.
        """
        assert side is None or self.spec.reduces
        if self._offset == self._num_held:
            started = time.perf_counter()
            self._fetch()
            self.data_wait_seconds += time.perf_counter() - started
        elif self._handed_over is not None:
            torch.cuda.current_stream(self.spec.device).wait_event(self._handed_over[1])
        rows = slice(self._offset, min(self._offset + most, self._num_held))
        self._step += rows.stop - rows.start
        self._offset = rows.stop
        images, labels = self._images[rows], self._labels[rows]
        if side is not None:
            images = reduce_images(images.flatten(0, 1), side).unflatten(0, images.shape[:2])
        return images, labels

    def _fetch(self) -> None:
        """Take the run that starts at the current step out of the pipeline."""
        self._release()
        stream = (
            torch.cuda.current_stream(self.spec.device) if self.spec.device.type == "cuda" else None
        )
        while True:
            # Given a stream, DALI orders its outputs on it by events and the host does not wait.
            outputs = self._pipeline.run(stream)
            if self._source.fed.popleft() == self._step:
                break
        images, labels = (torch.from_dlpack(output.as_tensor()) for output in outputs)
        images = images.unflatten(0, (-1, self.plan.local_batch_size))
        self._images = images.movedim(-1, 2) if self.spec.channels_last else images
        self._labels = labels.unflatten(0, (-1, self.plan.local_batch_size))
        self._num_held = len(images)
        if stream is not None:
            self._handed_over = stream, stream.record_event()

    def _release(self) -> None:
        """Give the current run's buffers back."""
        if self._handed_over is not None:
            # DALI reuses them in the order of the stream they were handed over on, which therefore
            # has to wait for a last reader on another.
            self._handed_over[0].wait_stream(torch.cuda.current_stream(self.spec.device))
            self._handed_over = None
        self._images = self._labels = torch.empty(0)
        self._offset = self._num_held = 0

    def memory_bytes(self) -> tuple[int, int]:
        """Return host and device bytes of the `prefetch` runs that exist at a time.

        Computed from shapes: what else DALI allocates is not counted.
        """
        num_images = self._prefetch * self._source.steps_per_run * self.plan.local_batch_size
        raw = num_images * 3 * self._image_size[0] * self._image_size[1]
        ready = raw * (2 if self._run_dtype == torch.float16 else 4) + num_images * 8
        if self.spec.device.type == "cuda":
            return raw, raw + ready
        return raw + ready, 0

    def close(self) -> None:
        """Stop the pipeline's threads and free its memory; the last batch becomes invalid."""
        self._release()
        self._pipeline = None


class DaliLoader(PipelineLoader):
    """Feeds a pipeline from a set in host memory.

    images: (N, H, W, 3) uint8, labels: (N,) int64, both on the CPU. The rest as PipelineLoader.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        plan: BatchPlan,
        spec: BatchSpec,
        *,
        steps_per_run: int = 16,
        num_threads: int = 2,
        prefetch: int = 2,
    ) -> None:
        self._set_bytes = images.nbytes + labels.nbytes
        self._gather = _MemoryGather(images, labels)
        super().__init__(
            plan,
            self._gather,
            spec,
            image_size=(images.shape[1], images.shape[2]),
            steps_per_run=steps_per_run,
            num_threads=num_threads,
            prefetch=prefetch,
        )

    def memory_bytes(self) -> tuple[int, int]:
        """Return host and device bytes of the set, the gathering buffer and the runs."""
        host, device = super().memory_bytes()
        return host + self._set_bytes + self._gather.gathered.nbytes, device


class _MemoryGather:
    """Collects rows of a set into one buffer, reused by every call because DALI copies it."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.image_shape = images.shape[1:]
        self.rows = images.contiguous().flatten(1)
        self.labels = labels.numpy()
        self.gathered = torch.empty(0, dtype=torch.uint8)

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.gathered.resize_(len(indices), self.rows.shape[1])
        torch.index_select(self.rows, 0, torch.from_numpy(indices), out=self.gathered)
        return self.gathered.unflatten(1, self.image_shape).numpy(), self.labels[indices]
