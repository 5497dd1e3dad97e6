"""How the kernels of deep_supervision_loss are configured and launched.

Shape letters as in `kernels.py`.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..launch import Launch
from .kernels import (
    _deep_supervision_loss_bwd_kernel,
    _deep_supervision_loss_classify_kernel,
    _deep_supervision_loss_pool_kernel,
)

# Launch configuration. NOT MEASURED: no GPU has run bench/bench_heads.py yet. Reasoned from an H200
# (132 SMs, 4.8 TB/s), DenseNet-DS taps, batch 128, bf16.
#
# Bytes: the taps are 25.9 MB, 6.7 us at 80 % of 4.8 TB/s. All else that the three launches touch is
# below 2 MB, so `pool` has to reach bandwidth and the others have to be short.
#
# pool: 4.8 TB/s times about 0.8 us of latency is 29 KB in flight on every SM. 4096 elements are
# 8 KB and, with 4 warps, 32 values or four 16-byte loads a thread: four resident programs suffice,
# and registers allow eight or more. Maps contiguous in space are read in rows of up to 1024
# positions: 3,156 programs. channels_last maps are read in 64 positions of 64 neighbouring rows
# (128 bytes; rows run on into the next image, so no lane idles at 72 channels), two tiles to a
# program and a map split over programs: 1,668, where whole maps would make 246. The splits' partial
# sums are 2 % of the taps' bytes.
#
# classify and backward: a 3-D tile of 4096 products is 32 or 16 registers a thread. A program of
# classify takes one image for every 64 in the batch: 192 programs first, then fewer reads of the
# weights. No more than 8, because a tile of 16 x 16 x 16 products is what Triton 3.6 turns into a
# dot, in TF32. The backward sums over the whole batch inside a program, so that no second pass and
# no atomic is needed; two channels a program make 123 such programs, about one per SM.
_POOL_TILE = 4096
_POOL_WARPS = 4
_POOL_ROW = 1024
_POOL_ROW_CHANNELS_LAST = 64
_POOL_STEPS = 2
_POOL_MAX_SPLITS = 16
_CLASSIFY_TILE = 4096
_CLASSIFY_WARPS = 4
_CLASSIFY_MAX_IMAGES = 8
_CLASSIFY_REDUCE = 256
_BACKWARD_TILE = 4096
_BACKWARD_WARPS = 8
_BACKWARD_TAP_TILE = 1024

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
    longest = _POOL_ROW_CHANNELS_LAST if channels_inner else _POOL_ROW
    block_p = min(triton.next_power_of_2(num_positions), longest)
    blocks = triton.cdiv(num_positions, block_p)
    steps = min(blocks, max(_POOL_STEPS, triton.cdiv(blocks, _POOL_MAX_SPLITS)))
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


def empty_forward(weights: Sequence[Tensor], target: Tensor) -> HeadsForward:
    """Allocate what the forward writes."""
    num_heads, num_images, num_classes = len(weights), target.shape[0], weights[0].shape[0]
    total = sum(weight.shape[1] for weight in weights)
    new = functools.partial(torch.empty, dtype=torch.float32, device=target.device)
    return HeadsForward(
        loss=new(()),
        per_head=new(num_heads),
        correct=new(num_heads, dtype=torch.int32),
        d_logits=new((num_heads, num_images, num_classes)),
        pooled=new((num_images, total)),
        d_pooled=new((num_images, total)),
    )


class _Sources(NamedTuple):
    """Where `classify` finds each head's pooled features, times `positions`, in `splits` parts."""

    tensors: tuple[Tensor, ...]
    columns: tuple[int, ...]
    strides: tuple[int, ...]
    positions: tuple[int, ...]
    splits: tuple[int, ...]


def forward_launches(
    out: HeadsForward,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
    label_smoothing: float,
) -> list[Launch]:
    """Return the launches that fill `out`: pool and classify for maps, classify for pooled ones."""
    arguments = weights, biases, target, loss_weights, label_smoothing
    if features[0].ndim == 2:
        rows = [f if f.stride(1) == 1 else f.contiguous() for f in features]
        ones = (1,) * len(rows)
        sources = _Sources(
            tuple(rows), (0,) * len(rows), tuple(row.stride(0) for row in rows), ones, ones
        )
        arrivals = torch.zeros(1, dtype=torch.int32, device=target.device)
        return [_classify_launch(out, sources, arrivals, *arguments)]
    sums, arrivals, pool = _pool_launch(out, features)
    num_heads, columns = len(features), pool.args["FIRST"]
    strides = (out.pooled.shape[1],) * num_heads
    sources = _Sources((sums,) * num_heads, columns, strides, pool.args["P"], pool.args["SPLITS"])
    return [pool, _classify_launch(out, sources, arrivals, *arguments)]


def _pool_launch(out: HeadsForward, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Launch]:
    """Return partial sums (S, B, N), the counter that is cleared with them, and their launch."""
    num_images = out.pooled.shape[0]
    channels = tuple(tap.shape[1] for tap in features)
    positions = tuple(tap.shape[2] * tap.shape[3] for tap in features)
    taps, strides = zip(*map(_rows_and_positions, features), strict=True)
    configs = [_pool_config(p, s[1] < s[2]) for p, s in zip(positions, strides, strict=True)]
    splits = tuple(config.splits for config in configs)
    tiles = [
        triton.cdiv(num_images * c, config.block_r) * config.splits
        for c, config in zip(channels, configs, strict=True)
    ]
    sums = out.pooled.new_empty((max(splits), *out.pooled.shape))
    arrivals = out.correct.new_empty(1)
    args = {
        "taps": taps, "sums": sums, "arrivals": arrivals,
        "num_images": num_images, "H": len(taps), "C": channels, "P": positions,
        "FIRST": _first_columns(channels), "N": sum(channels),
        "STRIDE_B": tuple(s[0] for s in strides), "STRIDE_C": tuple(s[1] for s in strides),
        "STRIDE_P": tuple(s[2] for s in strides),
        "BLOCK_R": tuple(config.block_r for config in configs),
        "BLOCK_P": tuple(config.block_p for config in configs),
        "STEPS": tuple(config.steps for config in configs), "SPLITS": splits,
    }  # fmt: skip
    launch = Launch(_deep_supervision_loss_pool_kernel, (sum(tiles),), args, _POOL_WARPS)
    return sums, arrivals, launch


def _classify_launch(
    out: HeadsForward,
    sources: _Sources,
    arrivals: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
    label_smoothing: float,
) -> Launch:
    num_heads, num_images, num_classes = out.d_logits.shape
    channels = tuple(weight.shape[1] for weight in weights)
    block_k = triton.next_power_of_2(num_classes)
    block_b = min(triton.next_power_of_2(num_images) // 64, _CLASSIFY_MAX_IMAGES)
    block_b = max(1, min(block_b, 1024 // block_k))
    block_c = max(1, _CLASSIFY_TILE // (block_b * block_k))
    block_c = min(block_c, triton.next_power_of_2(max(channels)))
    num_blocks = triton.cdiv(num_images, block_b)
    args = {
        "sources": sources.tensors, "weights": tuple(weight.contiguous() for weight in weights),
        "biases": tuple(bias.contiguous() for bias in biases), "target": target.contiguous(),
        "loss_weights": loss_weights.contiguous(), "label_smoothing": label_smoothing,
        **out._asdict(), "loss_sums": out.loss.new_empty((num_heads, num_blocks)),
        "hits": out.correct.new_empty((num_heads, num_blocks)), "arrivals": arrivals,
        "num_images": num_images, "num_blocks": num_blocks,
        "H": num_heads, "K": num_classes, "C": channels, "P": sources.positions,
        "FIRST": _first_columns(channels), "N": sum(channels), "SPLITS": sources.splits,
        "COLUMN": sources.columns, "STRIDE": sources.strides,
        "BLOCK_S": triton.next_power_of_2(max(sources.splits)),
        "BLOCK_B": block_b, "BLOCK_K": block_k, "BLOCK_C": block_c,
        "BLOCK_REDUCE": _CLASSIFY_REDUCE,
    }  # fmt: skip
    grid = (num_blocks, num_heads)
    return Launch(_deep_supervision_loss_classify_kernel, grid, args, _CLASSIFY_WARPS)


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
        [
            d_logits.new_empty((num_classes, c) if n else (0, c), dtype=linear_dtype)
            for c, n in heads
        ],
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
    block_c = 2 if num_classes <= 128 else 8
    block_b = min(triton.next_power_of_2(num_images), _BACKWARD_TILE // (block_k * block_c))
    linear_tiles = sum(
        triton.cdiv(num_classes, block_k) * triton.cdiv(c, block_c)
        for c, needed in zip(channels, needs_linear, strict=True)
        if needed
    )
    tap_tiles = triton.cdiv(grads.d_taps.numel(), _BACKWARD_TAP_TILE)
    args = {
        "grad_loss": grad_loss, "d_logits": d_logits, "pooled": pooled, "d_pooled": d_pooled,
        "d_weights": tuple(grads.d_weights), "d_biases": tuple(grads.d_biases),
        "d_taps": grads.d_taps, "num_images": num_images,
        "H": num_heads, "K": num_classes, "C": channels,
        "FIRST": _first_columns(channels), "N": sum(channels),
        "NEEDS_LINEAR": needs_linear, "NEEDS_TAPS": tap_tiles > 0,
        "BLOCK_B": block_b, "BLOCK_K": block_k, "BLOCK_C": block_c,
        "BLOCK": _BACKWARD_TAP_TILE,
    }  # fmt: skip
    return Launch(
        _deep_supervision_loss_bwd_kernel, (linear_tiles + tap_tiles,), args, _BACKWARD_WARPS
    )
