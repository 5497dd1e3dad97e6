"""augment_batch: a batch of uint8 images gathered, cropped, mirrored, normalised, reduced and cast.

    full[b, c, y, x] = (padded[index_b, top_b + y, left_b + x', c] * (1 / 255) - mean_c) / std_c
    x' = W - 1 - x where flip_b, else x
    out = reduce_images(full, side)

Every operation is rounded to fp32 by itself, as in torchvision's `ToDtype(torch.float32,
scale=True)` and `Normalize`, so that kernel, reference and torchvision agree to the last bit. As in
torchvision's `RandomCrop(padding=...)` and `RandomHorizontalFlip`, padding is black (byte 0) before
normalisation and the crop comes before the mirror.

Shapes: N images in the set, B in a batch, S planned steps, H x W pixels that come in, h x w that go
out (H x W without `side`), 3 channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import Impl, resolve_impl
from ..reduction import check_reduced, reduce_images
from .kernels import DTYPES, augment_launch, empty_batch


def augment_batch_ref(
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    flips: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crops: Tensor | None = None,
    padding: int = 0,
    step: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    side: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `augment_batch` in plain PyTorch: the truth in tests and the CPU path.

    Arithmetic is fp32, or fp64 where `out_dtype` is. On the CPU a step, index or crop out of range
    raises ValueError; on a GPU, where to look is to wait for the device, PyTorch's own device
    assertion stops the process.
    """
    if step is not None:
        _check_range("step", step, len(indices))
        row = step.reshape(1)
        indices = indices.index_select(0, row).squeeze(0)
        flips = flips.index_select(0, row).squeeze(0)
        crops = None if crops is None else crops.index_select(0, row).squeeze(0)
    _check_range("indices", indices, len(images))
    batch = images.index_select(0, indices)  # (B, H, W, 3) uint8
    if crops is not None:
        _check_range("crops", crops, 2 * padding + 1)
        batch = _crop(batch, crops, padding)
    # To copy whole images out of both versions is faster on the CPU than torch.where on every byte.
    both = torch.cat([batch, batch.flip(2)])
    batch = both.index_select(0, torch.arange(len(batch), device=batch.device) + len(batch) * flips)
    dtype = torch.promote_types(out_dtype, torch.float32)
    batch = _normalise(batch, mean, std, dtype, channels_last)
    if side is not None:
        batch = reduce_images(batch, side)
    return batch.to(out_dtype), labels.index_select(0, indices)


def _check_range(name: str, values: Tensor, limit: int) -> None:
    if values.is_cuda or torch.compiler.is_compiling():
        return
    low, high = (int(bound) for bound in values.aminmax())
    if low < 0 or high >= limit:
        bad = low if low < 0 else high
        raise ValueError(f"{name} holds {bad}: it must lie in 0 <= value < {limit}")


def _crop(batch: Tensor, corners: Tensor, padding: int) -> Tensor:
    batch_size, height, width, channels = batch.shape
    padded = F.pad(batch, (0, 0, padding, padding, padding, padding))
    image = torch.arange(batch_size, device=batch.device)[:, None]
    y = corners[:, :1] + torch.arange(height, device=batch.device)  # (B, H)
    first_pixel = (image * padded.shape[1] + y) * padded.shape[2] + corners[:, 1:]
    # Every W consecutive pixels, so that a row of a crop is one contiguous copy.
    windows = padded.view(-1).unfold(0, width * channels, channels)
    return windows.index_select(0, first_pixel.flatten()).view_as(batch)


def _normalise(
    batch: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    # Built by fills: copying host values would wait for the device, and a graph cannot capture it.
    center, scale = (
        torch.stack([torch.full((), v, dtype=dtype, device=batch.device) for v in values])
        for values in (mean, std)
    )
    batch_size, height, width, channels = batch.shape
    if channels_last:
        # Whole rows of W * 3 values, because broadcasting over an inner axis of 3 is slow.
        rows = batch.view(batch_size, height, width * channels).to(dtype)
        rows.mul_(1 / 255).sub_(center.repeat(width)).div_(scale.repeat(width))
        return rows.view(batch.shape).permute(0, 3, 1, 2)
    planes = batch.permute(0, 3, 1, 2).contiguous().to(dtype)
    return planes.mul_(1 / 255).sub_(center[:, None, None]).div_(scale[:, None, None])


@torch.library.custom_op("lion_fast::augment_batch", mutates_args=())
def _augment_batch_op(
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    flips: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    crops: Tensor | None,
    padding: int,
    step: Tensor | None,
    out_dtype: torch.dtype,
    channels_last: bool,
    side: int | None,
) -> tuple[Tensor, Tensor]:
    batch, batch_labels = empty_batch(images, labels, indices, out_dtype, channels_last, side)
    augment_launch(
        batch, batch_labels, images, labels, indices, flips, mean, std, crops, padding, step
    ).run(device_of=images)
    return batch, batch_labels


@_augment_batch_op.register_fake
def _(
    images, labels, indices, flips, mean, std, crops, padding, step, out_dtype, channels_last, side
):
    return empty_batch(images, labels, indices, out_dtype, channels_last, side)


def augment_batch(
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    flips: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crops: Tensor | None = None,
    padding: int = 0,
    step: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    side: int | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Return a normalised batch (B, 3, h, w) in `out_dtype` and its labels (B,) int64.

    images: (N, H, W, 3) uint8. labels: (N,) int64. indices: (B,) int32 or int64, rows of the set.
    flips: (B,) bool, mirror left to right. mean, std: three floats in units of full scale. crops:
    (B, 2) integer top and left corners in the image padded by `padding` black pixels on each side,
    0 <= corner <= 2 * padding. With `step`, a 0-D int64 tensor, indices, flips and crops are a plan
    of shapes (S, B), (S, B) and (S, B, 2) whose row `step` is used: a captured graph walks the plan
    when it also advances the counter. side: pixels of (h, w) to which square images are reduced,
    one of `reduced_sides(H)` or H, in fp32 before the cast; see `reduce_images`. All tensors are
    contiguous and on one device.

    One launch, deterministic, no host sync; not differentiable. The kernel never reads out of
    bounds: an index outside the set, or any index of a step outside the plan, yields a black image
    with label -1, and what a crop shows beyond the padding is black. The reference raises
    ValueError instead (see `augment_batch_ref`).

    Raises ValueError on a wrong shape, dtype, device, layout or side.
    """
    _check(images, labels, indices, flips, mean, std, crops, padding, step, out_dtype)
    if side is not None:
        check_reduced((images.shape[1], images.shape[2]), side)
    if resolve_impl(impl, images.device) == "triton":
        return _augment_batch_op(
            images,
            labels,
            indices,
            flips,
            mean,
            std,
            crops,
            padding,
            step,
            out_dtype,
            channels_last,
            side,
        )
    return augment_batch_ref(
        images,
        labels,
        indices,
        flips,
        mean,
        std,
        crops=crops,
        padding=padding,
        step=step,
        out_dtype=out_dtype,
        channels_last=channels_last,
        side=side,
    )


def _check(
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    flips: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    crops: Tensor | None,
    padding: int,
    step: Tensor | None,
    out_dtype: torch.dtype,
) -> None:
    if images.dim() != 4 or images.numel() == 0 or indices.numel() == 0:
        raise ValueError(
            f"images are {tuple(images.shape)}, indices {tuple(indices.shape)}: "
            "give (N, H, W, 3) and at least one index"
        )
    integers = (torch.int32, torch.int64)
    shape = indices.shape
    expected = [
        ("images", images, (*images.shape[:-1], 3), (torch.uint8,)),
        ("labels", labels, images.shape[:1], (torch.int64,)),
        ("indices", indices, shape, integers),
        ("flips", flips, shape, (torch.bool,)),
    ]
    if crops is not None:
        expected.append(("crops", crops, (*shape, 2), integers))
    if step is not None:
        expected.append(("step", step, (), (torch.int64,)))
    for name, tensor, wanted, dtypes in expected:
        if tensor.shape != wanted or tensor.dtype not in dtypes:
            kinds = " or ".join(str(dtype) for dtype in dtypes)
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype}: give {tuple(wanted)} {kinds}"
            )
        if tensor.device != images.device or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous and on {images.device}, as images are")
    if indices.dim() != (1 if step is None else 2):
        raise ValueError(f"indices are {tuple(shape)}: give (B,) without step and (S, B) with it")
    if len(mean) != 3 or len(std) != 3 or 0 in std:
        raise ValueError(f"mean {mean} and std {std} must be three floats each, std not zero")
    if padding < 0 or (padding and crops is None):
        raise ValueError(f"padding is {padding}: give crops with it, and at least 0")
    if out_dtype not in DTYPES:
        raise ValueError(f"out_dtype is {out_dtype}: take one of {', '.join(map(str, DTYPES))}")
