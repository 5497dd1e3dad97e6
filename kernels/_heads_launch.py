"""How the kernels of deep_supervision_loss are configured and launched.

Shape letters as in `_heads_kernels.py`.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ._heads_kernels import (
    _deep_supervision_loss_bwd_kernel,
    _deep_supervision_loss_classify_kernel,
    _deep_supervision_loss_pool_kernel,
)
from ._launch import Launch

# Launch configuration. NOT MEASURED ON A GPU YET: reasoned from an H200 (132 SMs, 4.8 TB/s), bench/bench_heads.py is to
# settle it. Bytes: DenseNet-DS taps at batch 128 in bf16 are 25.9 MB, 6.7 us at 80 % of 4.8 TB/s; everything else
# the three launches touch is below 2 MB, so only `pool` has to reach bandwidth.
# pool: 4.8 TB/s times 0.8 us of latency is 29 KB in flight per SM. A tile of 4096 elements is 8 KB in bf16 and 32 values
# a thread with 4 warps, so four resident programs cover it; that batch makes 1,578 programs, 12 per SM. Maps that are
# contiguous in space are summed along a row of up to 1024 positions; channels_last maps along 64 positions of 64
# channels (128 bytes), two tiles per program, so that 1024 positions make 8 splits and images * channels / 64 * 8 programs.
_POOL_TILE = 4096
_POOL_WARPS = 4
_POOL_MAX_SPLITS = 16
# classify and the backward hold a 3-D tile of products: 4096 values are 32 registers a thread with 4 warps.
_CLASSIFY_TILE = 4096
_CLASSIFY_WARPS = 4
_REDUCE = 256
_BWD_TILE = 8192
_BWD_WARPS = 8
_BWD_BLOCK = 1024

MAX_CLASSES = 4096
"""A row of logits is held by one program whole."""


class HeadsForward(NamedTuple):
    """What the forward launches write. All float32 but `correct`."""

    loss: Tensor
    """()"""
    per_head: Tensor
    """(H,)"""
    correct: Tensor
    """(H,) int32"""
    d_logits: Tensor
    """(H, B, K) d loss / d logits"""
    pooled: Tensor
    """(B, N)"""
    d_pooled: Tensor
    """(B, N) d loss / d (any one position of the map), that is d loss / d pooled / P"""


class HeadsBackward(NamedTuple):
    """What the backward launch writes."""

    d_weights: list[Tensor]
    """H of (K, C), or of (0, C) where neither weight nor bias needs a gradient"""
    d_biases: list[Tensor]
    """H of (K,) or (0,)"""
    d_taps: Tensor
    """(B, N), the gradient of every position of a map, or (0, 0)"""


class _PoolConfig(NamedTuple):
    block_r: int
    block_p: int
    steps: int
    splits: int


def _pool_config(num_positions: int, channels_inner: bool) -> _PoolConfig:
    block_p = min(triton.next_power_of_2(num_positions), 64 if channels_inner else 1024)
    blocks = triton.cdiv(num_positions, block_p)
    steps = min(blocks, max(2, triton.cdiv(blocks, _POOL_MAX_SPLITS)))
    return _PoolConfig(_POOL_TILE // block_p, block_p, steps, triton.cdiv(blocks, steps))


def _rows_and_positions(tap: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return a tap that one stride per image, channel and position describes, and those strides.

    That is `tap` itself unless its map has holes (a crop of a larger map): then a contiguous copy.
    """
    stride_b, stride_c, stride_h, stride_w = tap.stride()
    height, width = tap.shape[2:]
    if height == 1:
        return tap, (stride_b, stride_c, stride_w)
    if width == 1 or stride_h == width * stride_w:
        return tap, (stride_b, stride_c, stride_h if width == 1 else stride_w)
    return _rows_and_positions(tap.contiguous())


def _first_columns(channels: Sequence[int]) -> tuple[int, ...]:
    return tuple(sum(channels[:h]) for h in range(len(channels)))


def empty_forward(
    features: Sequence[Tensor], biases: Sequence[Tensor], target: Tensor
) -> HeadsForward:
    """Allocate what the forward writes."""
    num_heads, num_images, num_classes = len(features), target.shape[0], biases[0].shape[0]
    total = sum(tap.shape[1] for tap in features)
    new = functools.partial(torch.empty, dtype=torch.float32, device=target.device)
    return HeadsForward(
        loss=new(()),
        per_head=new(num_heads),
        correct=new(num_heads, dtype=torch.int32),
        d_logits=new((num_heads, num_images, num_classes)),
        pooled=new((num_images, total)),
        d_pooled=new((num_images, total)),
    )


def forward_launches(
    out: HeadsForward,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
    label_smoothing: float,
) -> tuple[Launch, Launch]:
    """Return the two launches that fill `out`."""
    num_heads, num_images, num_classes = out.d_logits.shape
    channels = tuple(tap.shape[1] for tap in features)
    positions = tuple(tap.shape[2] * tap.shape[3] for tap in features)
    taps, strides = zip(*map(_rows_and_positions, features), strict=True)
    pool = [_pool_config(p, s[1] < s[2]) for p, s in zip(positions, strides, strict=True)]
    splits = tuple(config.splits for config in pool)
    tiles = [
        triton.cdiv(num_images * c, config.block_r) * config.splits
        for c, config in zip(channels, pool, strict=True)
    ]

    # Enough programs to fill the card come before programs of several images, which share their reads of the weight.
    block_k = triton.next_power_of_2(num_classes)
    block_b = max(1, min(triton.next_power_of_2(num_images) // 64, 1024 // block_k))
    block_c = max(1, _CLASSIFY_TILE // (block_b * block_k))
    block_c = min(block_c, triton.next_power_of_2(max(channels)))
    num_blocks = triton.cdiv(num_images, block_b)

    new = functools.partial(torch.empty, dtype=torch.float32, device=target.device)
    sums = new((max(splits), *out.pooled.shape))
    arrivals = new(1, dtype=torch.int32)
    shared = {
        "num_images": num_images, "H": num_heads, "C": channels, "P": positions,
        "FIRST": _first_columns(channels), "N": sum(channels), "SPLITS": splits,
    }  # fmt: skip
    pool_args = {
        "taps": taps, "sums": sums, "arrivals": arrivals, "STRIDES": strides,
        "BLOCK_R": tuple(config.block_r for config in pool),
        "BLOCK_P": tuple(config.block_p for config in pool),
        "STEPS": tuple(config.steps for config in pool),
    }  # fmt: skip
    classify_args = {
        "sums": sums, "weights": tuple(weight.contiguous() for weight in weights),
        "biases": tuple(bias.contiguous() for bias in biases), "target": target.contiguous(),
        "loss_weights": loss_weights.contiguous(), "label_smoothing": label_smoothing, **out._asdict(),
        "loss_sums": new((num_heads, num_blocks)), "hits": new((num_heads, num_blocks), dtype=torch.int32),
        "arrivals": arrivals, "num_blocks": num_blocks, "K": num_classes,
        "BLOCK_B": block_b, "BLOCK_K": block_k, "BLOCK_C": block_c, "BLOCK_REDUCE": _REDUCE,
    }  # fmt: skip
    return (
        Launch(_deep_supervision_loss_pool_kernel, (sum(tiles),), shared | pool_args, _POOL_WARPS),
        Launch(
            _deep_supervision_loss_classify_kernel,
            (num_blocks, num_heads),
            shared | classify_args,
            _CLASSIFY_WARPS,
        ),
    )


def empty_gradients(
    d_logits: Tensor,
    d_pooled: Tensor,
    channels: Sequence[int],
    needs_linear: Sequence[bool],
    needs_taps: bool,
    linear_dtype: torch.dtype,
    tap_dtype: torch.dtype,
) -> HeadsBackward:
    """Allocate what the backward writes; what is not needed has no element."""
    num_classes = d_logits.shape[2]
    heads = list(zip(channels, needs_linear, strict=True))
    return HeadsBackward(
        [d_logits.new_empty((num_classes, c) if n else (0, c), dtype=linear_dtype) for c, n in heads],
        [d_logits.new_empty(num_classes if n else 0, dtype=linear_dtype) for _, n in heads],
        d_pooled.new_empty(d_pooled.shape if needs_taps else (0, 0), dtype=tap_dtype),
    )


def backward_launch(
    grads: HeadsBackward, grad_loss: Tensor, d_logits: Tensor, pooled: Tensor, d_pooled: Tensor
) -> Launch:
    """Return the launch that fills `grads`, of which at least one has an element."""
    num_heads, num_images, num_classes = d_logits.shape
    channels = tuple(d_weight.shape[1] for d_weight in grads.d_weights)
    needs_linear = tuple(d_weight.shape[0] > 0 for d_weight in grads.d_weights)
    block_k = min(triton.next_power_of_2(num_classes), 16)
    block_b = min(triton.next_power_of_2(num_images), 128)
    block_c = 4
    linear_tiles = sum(
        triton.cdiv(num_classes, block_k) * triton.cdiv(c, block_c)
        for c, needed in zip(channels, needs_linear, strict=True)
        if needed
    )
    tap_tiles = triton.cdiv(grads.d_taps.numel(), _BWD_BLOCK)
    args = {
        "grad_loss": grad_loss, "d_logits": d_logits, "pooled": pooled, "d_pooled": d_pooled,
        "d_weights": tuple(grads.d_weights), "d_biases": tuple(grads.d_biases), "d_taps": grads.d_taps,
        "num_images": num_images, "H": num_heads, "K": num_classes, "C": channels,
        "FIRST": _first_columns(channels), "N": sum(channels),
        "NEEDS_LINEAR": needs_linear, "NEEDS_TAPS": tap_tiles > 0,
        "BLOCK_B": block_b, "BLOCK_K": block_k, "BLOCK_C": block_c, "BLOCK": _BWD_BLOCK,
    }  # fmt: skip
    return Launch(
        _deep_supervision_loss_bwd_kernel, (linear_tiles + tap_tiles,), args, _BWD_WARPS
    )
