"""ResidentLoader: the uint8 set and the whole plan live on the device, a batch is one launch."""

import torch
from torch import Tensor

from lion_fast.config import Impl
from lion_fast.data.batches import Batch, BatchSpec, Loader
from lion_fast.data.plan import BatchPlan
from lion_fast.errors import UserError
from lion_fast.kernels import augment_batch, augment_masks

MAX_PLANNED_IMAGES = 10**8  # 0.5 GB of indices and flips, 1.3 GB with crops


class ResidentLoader(Loader):
    """Executes a plan with `augment_batch`, steered by a step counter on the device.

    images: (N, H, W, 3) uint8. labels: (N,) int64, or masks (N, H, W) uint8, which are cropped and
    mirrored with their images by `augment_masks`.
    Nothing but device work happens in `next`, and every tensor it reads keeps its address, `seek`
    included: a CUDA graph that captured `next` walks the plan by itself. On a GPU, steps of
    num_steps and beyond are black images with label -1 if a graph replays that far (see
    `augment_batch`), or masks of ignored pixels; on the CPU they raise ValueError.

    Raises UserError if the plan holds more than MAX_PLANNED_IMAGES images.
    """

    name = "resident"
    walks_on_device = True

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        plan: BatchPlan,
        spec: BatchSpec,
        *,
        impl: Impl = "auto",
    ) -> None:
        assert plan.num_images == len(images) == len(labels)
        if spec.num_steps * plan.local_batch_size > MAX_PLANNED_IMAGES:
            raise UserError(
                f"max_steps {spec.num_steps} x batch_size {plan.local_batch_size} is more than the "
                f"{MAX_PLANNED_IMAGES:,} images that loader resident plans ahead: lower either, or "
                "take loader dali or workers"
            )
        self.plan, self.spec = plan, spec
        self._impl = impl
        self._images = images.to(spec.device).contiguous()
        labels = labels.to(spec.device).contiguous()
        self._masks = labels if labels.ndim == 3 else None
        # The op gathers a label an image; masks have rows of their own.
        self._labels = labels if labels.ndim == 1 else labels.new_zeros(len(labels)).long()
        self._indices, self._flips, self._crops = _upload(plan, spec.num_steps, spec.device)
        self._step = torch.zeros((), dtype=torch.int64, device=spec.device)

    def seek(self, step: int) -> None:
        """Make the next batch that of step 0 <= `step` <= num_steps, else raise ValueError."""
        self._check_sought(step)
        self._step.fill_(step)

    def next(self, side: int | None = None) -> Batch:
        """Return the current step's batch and advance by one step; see `Loader.next`."""
        images, labels = augment_batch(
            self._images,
            self._labels,
            self._indices,
            self._flips,
            self.spec.mean,
            self.spec.std,
            crops=self._crops,
            padding=self.plan.crop_padding,
            step=self._step,
            out_dtype=self.spec.dtype,
            channels_last=self.spec.channels_last,
            side=side,
            impl=self._impl,
        )
        if self._masks is not None:
            labels = augment_masks(
                self._masks,
                self._indices,
                self._flips,
                crops=self._crops,
                padding=self.plan.crop_padding,
                step=self._step,
            )
        self._step.add_(1)
        return Batch(images, labels)

    def replan(self, plan: BatchPlan) -> None:
        """Execute another plan of the same shape from its first step, in the same tensors."""
        shape = (plan.num_images, plan.local_batch_size, plan.crop_padding)
        assert shape == (self.plan.num_images, self.plan.local_batch_size, self.plan.crop_padding)
        self.plan = plan
        planned = _upload(plan, self.spec.num_steps, self.spec.device)
        held = (self._indices, self._flips, self._crops)
        for old, new in zip(held, planned, strict=True):
            if old is not None and new is not None:
                old.copy_(new)
        self.seek(0)

    def memory_bytes(self) -> tuple[int, int]:
        """Return host and device bytes of the images, labels and plan."""
        held = [self._images, self._labels, self._indices, self._flips, self._step]
        held += [tensor for tensor in (self._masks, self._crops) if tensor is not None]
        num_bytes = sum(tensor.nbytes for tensor in held)
        return (0, num_bytes) if self._step.is_cuda else (num_bytes, 0)

    def close(self) -> None:
        """Release the images, labels and plan."""
        empty = torch.empty(0)
        self._images = self._labels = self._indices = self._flips = empty
        self._masks = self._crops = None


def _upload(
    plan: BatchPlan, num_steps: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return indices (S, B) int32, flips (S, B) bool, and crops (S, B, 2) int32 or None."""
    shape = (num_steps, plan.local_batch_size)
    indices = torch.empty(shape, dtype=torch.int32, device=device)
    flips = torch.empty(shape, dtype=torch.bool, device=device)
    crops = torch.empty(*shape, 2, dtype=torch.int32, device=device) if plan.crop_padding else None
    # Epoch by epoch, so that the host never holds the whole plan in numpy's 64-bit integers.
    for start in range(0, num_steps, plan.steps_per_epoch):
        window = slice(start, min(start + plan.steps_per_epoch, num_steps))
        planned = plan.steps(window.start, window.stop)
        indices[window].copy_(torch.from_numpy(planned.indices))
        flips[window].copy_(torch.from_numpy(planned.flips))
        if crops is not None:
            crops[window].copy_(torch.from_numpy(planned.crops))
    return indices, flips, crops
