"""The kernel of augment_batch, and its launch.

Shapes: N images in the set, B in a batch, S planned steps, H x W pixels that come in, h x w that go
out.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch
from ..reduction import kept_of_band

# Not tuned: no GPU has run bench/bench_augment.py yet.
_MAX_BLOCK = 1024
_NUM_WARPS = 4

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""Of a batch, with the names that ahead-of-time cases give them."""


@triton.jit
def _normalised(
    image,  # first byte of (H, W, 3)
    y,
    x,
    channel,
    top,
    left,
    flip,
    readable,
    mean,
    std,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    IS_CROPPED: tl.constexpr,
):
    """Return pixels (BLOCK,) of the cropped and mirrored image, normalised, in fp32."""
    y += top
    x = tl.where(flip, WIDTH - 1 - x, x) + left
    if IS_CROPPED:
        readable &= (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
    byte = tl.load(
        image + (y * WIDTH + x) * 3 + channel, mask=readable, other=0
    )  # image[y, x, channel] -> (BLOCK,)
    return tl.div_rn(byte.to(tl.float32) * (1 / 255) - mean, std)


@triton.jit(do_not_specialize=["num_images", "num_steps"])
def _augment_batch_kernel(
    images,  # (N, H, W, 3) uint8
    labels,  # (N,) int64
    indices,  # (B,), or (S, B) with step
    flips,  # (B,) or (S, B) uint8
    crops,  # (B, 2) or (S, B, 2), or None
    step,  # () int64, or None
    images_out,  # (B, 3, h, w)
    labels_out,  # (B,) int64
    num_images,
    num_steps,
    mean_r,
    mean_g,
    mean_b,
    std_r,
    std_g,
    std_b,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HEIGHT_OUT: tl.constexpr,
    WIDTH_OUT: tl.constexpr,
    KEPT: tl.constexpr,  # n of every n + 1 pixels (see ..reduction); 0: all
    PADDING: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    SIZE: tl.constexpr = HEIGHT_OUT * WIDTH_OUT * 3
    TILES: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    image = (tl.program_id(0) // TILES).to(tl.int64)
    tile = tl.program_id(0) % TILES

    row = image
    planned = image >= 0
    if step is not None:
        now = tl.load(step)
        planned = (now >= 0) & (now < num_steps)
        row += now * (tl.num_programs(0) // TILES)
    index = tl.load(indices + row, mask=planned, other=-1).to(tl.int64)
    flip = tl.load(flips + row, mask=planned, other=0) != 0
    known = (index >= 0) & (index < num_images)

    # Tiles run over the output's memory, so that stores are contiguous in either layout.
    element = tile * BLOCK + tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        pixel = element // 3
        channel = element % 3
    else:
        pixel = element % (HEIGHT_OUT * WIDTH_OUT)
        channel = element // (HEIGHT_OUT * WIDTH_OUT)
    y = pixel // WIDTH_OUT
    x = pixel % WIDTH_OUT
    readable = known & (element < SIZE)
    top = 0
    left = 0
    if crops is not None:
        top = tl.load(crops + 2 * row, mask=planned, other=0).to(tl.int32) - PADDING
        left = tl.load(crops + 2 * row + 1, mask=planned, other=0).to(tl.int32) - PADDING
    source = images + index * (HEIGHT * WIDTH * 3)
    mean = tl.where(channel == 0, mean_r, tl.where(channel == 1, mean_g, mean_b))
    std = tl.where(channel == 0, std_r, tl.where(channel == 1, std_g, std_b))
    CROPPED: tl.constexpr = crops is not None
    if KEPT == 0:
        value = _normalised(
            source, y, x, channel, top, left, flip, readable, mean, std, HEIGHT, WIDTH, CROPPED
        )
    else:
        # out[y, x] = first_y * row(y + k_y) + second_y * row(y + k_y + 1)
        # row(j) = first_x * in[j, x + k_x] + second_x * in[j, x + k_x + 1]
        whole = tl.full((BLOCK,), KEPT + 1, tl.float32)
        first_x = tl.div_rn((KEPT - x % KEPT).to(tl.float32), whole)
        second_x = tl.div_rn((x % KEPT + 1).to(tl.float32), whole)
        first_y = tl.div_rn((KEPT - y % KEPT).to(tl.float32), whole)
        second_y = tl.div_rn((y % KEPT + 1).to(tl.float32), whole)
        x += x // KEPT
        y += y // KEPT
        value = tl.zeros((BLOCK,), tl.float32)
        for j in tl.static_range(2):
            left_pixel = _normalised(
                source, y + j, x, channel, top, left, flip, readable, mean, std,
                HEIGHT, WIDTH, CROPPED,
            )  # fmt: skip
            right_pixel = _normalised(
                source, y + j, x + 1, channel, top, left, flip, readable, mean, std,
                HEIGHT, WIDTH, CROPPED,
            )  # fmt: skip
            line = first_x * left_pixel + second_x * right_pixel
            if j == 0:
                value = first_y * line
            else:
                value += second_y * line
    tl.store(
        images_out + image * SIZE + element,
        value.to(images_out.dtype.element_ty),
        mask=element < SIZE,
    )
    if tile == 0:
        tl.store(labels_out + image, tl.load(labels + index, mask=known, other=-1))


def empty_batch(
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    out_dtype: torch.dtype,
    channels_last: bool,
    side: int | None,
) -> tuple[Tensor, Tensor]:
    """Return a batch (B, 3, h, w) and its labels (B,) to be filled."""
    _, height, width, channels = images.shape
    if side is not None:
        height = width = side
    batch_size = indices.shape[-1]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    batch = torch.empty(
        (batch_size, channels, height, width),
        dtype=out_dtype,
        device=images.device,
        memory_format=layout,
    )
    return batch, torch.empty(batch_size, dtype=labels.dtype, device=labels.device)


def augment_launch(
    batch: Tensor,
    batch_labels: Tensor,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    flips: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    crops: Tensor | None,
    padding: int,
    step: Tensor | None,
) -> Launch:
    """Return the launch that fills `batch` and `batch_labels`."""
    num_images, height, width, _ = images.shape
    height_out, width_out = batch.shape[2:]
    size = batch[0].numel()
    block = min(_MAX_BLOCK, triton.next_power_of_2(size))
    args = {
        "images": images, "labels": labels, "indices": indices, "flips": flips.view(torch.uint8),
        "crops": crops, "step": step, "images_out": batch, "labels_out": batch_labels,
        "num_images": num_images, "num_steps": len(indices),
        **dict(zip(("mean_r", "mean_g", "mean_b"), map(float, mean), strict=True)),
        **dict(zip(("std_r", "std_g", "std_b"), map(float, std), strict=True)),
        "HEIGHT": height, "WIDTH": width, "HEIGHT_OUT": height_out, "WIDTH_OUT": width_out,
        "KEPT": kept_of_band(height, height_out), "PADDING": padding,
        "CHANNELS_LAST": batch.stride(1) == 1, "BLOCK": block,
    }  # fmt: skip
    grid = (len(batch) * triton.cdiv(size, block),)
    # A fused multiply-add would round once where torchvision and the reference round twice.
    return Launch(_augment_batch_kernel, grid, args, _NUM_WARPS, fp_fusion=False)
