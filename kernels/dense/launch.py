"""The forward launches of dense_backbone, and the buffers they fill.

Everything is described from a `Plan` and from tensors, which may be on the meta device: running and
compiling ahead of time read the same list. Words and letters as in `statistics.py`.
"""

import functools
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..launch import Launch
from .forward import (
    _dense_layer_kernel,
    _dense_layer_walk_kernel,
    _dense_stem_kernel,
    _dense_taps_kernel,
    _dense_transition_kernel,
)
from .gradients import _dense_pack_kernel
from .plan import NUM_BLOCKS, SHIPPED, BlockPlan, Options, Plan, chunks
from .statistics import _dense_running_statistics_kernel

_PACK_ELEMENTS = 1024


class DenseForward(NamedTuple):
    """What the forward launches write."""

    pooled_1: Tensor
    """(B, C_1) fp32, and so on"""
    pooled_2: Tensor
    pooled_3: Tensor
    maps: Tensor
    """every block's maps, one after another, in the images' dtype"""
    statistics: Tensor
    """fp32, every block's (2, padded channels): mean and biased variance"""
    weights: Tensor
    """every convolution's weights as the kernels read them, in the images' dtype"""
    affine: Tensor
    """fp32, every norm's (2, padded channels): gamma and beta"""


class _Places(NamedTuple):
    """Where each block's part of a flat buffer begins; the last entry is the buffer's length."""

    maps: tuple[int, ...]
    statistics: tuple[int, ...]
    affine: tuple[int, ...]
    layer_weights: tuple[int, ...]
    end_weights: tuple[int, ...]
    num_weights: int


@functools.cache
def _places(plan: Plan) -> _Places:
    blocks = plan.blocks

    def starts(sizes: Sequence[int]) -> tuple[int, ...]:
        return tuple(accumulate(sizes, initial=0))

    layer_weights, end_weights = [], []
    at = 27 * blocks[0].padded_in
    for i, block in enumerate(blocks):
        layer_weights.append(at)
        at += block.num_layers * 9 * block.padded_channels * block.growth_rate
        end_weights.append(at)
        if i + 1 < NUM_BLOCKS:
            at += block.padded_channels * blocks[i + 1].padded_in
    return _Places(
        maps=starts([b.positions * b.padded_channels for b in blocks]),
        statistics=starts([2 * b.padded_channels for b in blocks]),
        affine=starts([2 * b.padded_channels * (b.num_layers + 1) for b in blocks]),
        layer_weights=tuple(layer_weights),
        end_weights=tuple(end_weights),
        num_weights=at,
    )


def empty_forward(plan: Plan, images: Tensor) -> DenseForward:
    """Allocate what the forward writes."""
    places = _places(plan)
    half = functools.partial(torch.empty, dtype=images.dtype, device=images.device)
    single = functools.partial(torch.empty, dtype=torch.float32, device=images.device)
    first, second, third = (single((plan.batch, block.channels)) for block in plan.blocks)
    return DenseForward(
        first,
        second,
        third,
        maps=half(places.maps[-1]),
        statistics=single(places.statistics[-1]),
        weights=half(places.num_weights),
        affine=single(places.affine[-1]),
    )


class BlockBuffers(NamedTuple):
    """A block's plan and its parts of the flat buffers."""

    plan: BlockPlan
    map: Tensor
    statistics: Tensor
    affine: Tensor
    layer_weights: Tensor
    end_weights: Tensor


def block_buffers(plan: Plan, out: DenseForward, options: Options = SHIPPED) -> list[BlockBuffers]:
    """Return each block's parts of the flat buffers."""
    places = _places(plan)
    return [
        BlockBuffers(
            block._replace(options=options),
            out.maps[places.maps[i] : places.maps[i + 1]],
            out.statistics[places.statistics[i] : places.statistics[i + 1]],
            out.affine[places.affine[i] : places.affine[i + 1]],
            out.weights[places.layer_weights[i] :],
            out.weights[places.end_weights[i] :],
        )
        for i, block in enumerate(plan.blocks)
    ]


def pack_launch(
    plan: Plan,
    out: DenseForward,
    convs: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    channels_last: bool,
) -> Launch:
    """Return the launch that fills `out.weights` and `out.affine` from fp32 parameters."""
    rows: list[tuple[int, ...]] = []  # taps, out, in, block's in, gap, padded in, padded out, first
    norms: list[tuple[int, ...]] = []  # channels, block's in, gap, padded, first
    places = _places(plan)
    first_block = plan.blocks[0]
    rows.append((9, plan.stem_channels, 3, 3, 0, 3, first_block.padded_in, 0))
    for i, block in enumerate(plan.blocks):
        came_in, gap = block.in_channels, block.padded_in - block.in_channels
        growth, wide = block.growth_rate, block.padded_channels
        for u in range(block.num_layers):
            first = places.layer_weights[i] + u * 9 * wide * growth
            rows.append((9, growth, came_in + u * growth, came_in, gap, wide, growth, first))
        for u in range(block.num_layers + 1):
            first = places.affine[i] + u * 2 * wide
            norms.append((came_in + u * growth, came_in, gap, wide, first))
        if i + 1 < NUM_BLOCKS:
            after = plan.blocks[i + 1]
            rows.append(
                (1, after.in_channels, block.channels, came_in, gap, wide, after.padded_in,
                 places.end_weights[i])
            )  # fmt: skip
    taps, outs, ins, came_ins, gaps, padded_ins, padded_outs, firsts = zip(*rows, strict=True)
    channels, norm_ins, norm_gaps, norm_padded, norm_firsts = zip(*norms, strict=True)
    args = {
        "convs": tuple(convs), "gammas": tuple(gammas), "betas": tuple(betas),
        "weights": out.weights, "affine": out.affine, "NUM": len(rows),
        "TAPS": taps, "OUT": outs, "IN": ins, "BLOCK_IN": came_ins, "GAP": gaps,
        "PADDED_IN": padded_ins, "PADDED_OUT": padded_outs, "FIRST": firsts,
        "NORM_CHANNELS": channels, "NORM_BLOCK_IN": norm_ins, "NORM_GAP": norm_gaps,
        "NORM_PADDED": norm_padded, "NORM_FIRST": norm_firsts,
        "CHANNELS_LAST": channels_last, "BLOCK": _PACK_ELEMENTS,
    }  # fmt: skip
    largest = max(row[0] * row[5] * row[6] for row in rows)
    grid = (2 * len(rows), triton.cdiv(largest, _PACK_ELEMENTS))
    return Launch(_dense_pack_kernel, grid, args, 4, num_stages=1)


class _New(NamedTuple):
    """Channels whose statistics the next reader combines: where, how many, from which partials."""

    partials: Tensor
    first: int
    width: int
    parts: int
    each: int

    @property
    def arguments(self) -> dict[str, int]:
        return {
            "NEW": self.first, "WIDTH": self.width, "NUM_PARTS": self.parts, "EACH": self.each
        }  # fmt: skip


def chunk_arguments(channels: int) -> dict[str, Any]:
    """Return how kernels cut a sum over `channels`."""
    sizes = chunks(channels)
    firsts = tuple(accumulate(sizes, initial=0))[:-1]
    return {"NUM_CHUNKS": len(sizes), "CHUNKS": sizes, "FIRST": firsts}


def forward_launches(
    plan: Plan, out: DenseForward, images: Tensor, eps: float, options: Options = SHIPPED
) -> list[Launch]:
    """Return the launches that fill `out` from its packed parameters.

    images: (B, 3, H, W), channels_last in memory.
    """
    new = functools.partial(torch.empty, dtype=torch.float32, device=images.device)
    blocks = block_buffers(plan, out, options)
    launches: list[Launch] = []
    means: list[tuple[Tensor, Tensor]] = []
    latest: _New | None = None
    for i, block in enumerate(blocks):
        b = block.plan
        input_means = new((b.num_tiles, b.padded_in))
        layer_means = new((b.batch * b.layer_means, b.num_layers * b.growth_rate))
        means.append((input_means, layer_means))
        partials = new((2, b.programs, b.padded_in))
        if latest is None:
            launches.append(_stem_launch(block, out, images, partials, input_means))
        else:
            launches.append(
                _transition_launch(blocks[i - 1], block, latest, partials, input_means, eps)
            )
        latest = _New(partials, 0, b.padded_in, b.programs, b.positions // b.programs)
        for u in range(b.num_layers):
            partials = new((2, b.layer_programs, b.growth_rate))
            launches.append(_layer_launch(block, u, latest, partials, layer_means, eps))
            each = b.positions // b.layer_programs
            latest = _New(partials, b.padded_before(u), b.growth_rate, b.layer_programs, each)
    assert latest is not None
    launches.append(_taps_launch(blocks, out, latest, means[:-1], eps))
    return launches


def _stem_launch(
    block: BlockBuffers, out: DenseForward, images: Tensor, partials: Tensor, tile_means: Tensor
) -> Launch:
    b = block.plan
    args = {
        "images": images, "weights": out.weights, "map": block.map,
        "partials": partials, "tile_means": tile_means,
        "H": b.height, "W": b.width, "N": b.positions,
        "OUT": b.padded_in, "BLOCK_OUT": triton.next_power_of_2(b.padded_in),
        "PROGRAMS": b.programs, "TILES": b.num_tiles // b.programs, "P": b.tile,
    }  # fmt: skip
    return Launch(_dense_stem_kernel, (b.programs,), args, b.forward_warps, num_stages=1)


def _layer_launch(
    block: BlockBuffers, u: int, new: _New, partials: Tensor, layer_means: Tensor, eps: float
) -> Launch:
    b = block.plan
    first = u * 9 * b.padded_channels * b.growth_rate
    programs = b.layer_programs
    args = {
        "map": block.map, "weights": block.layer_weights[first:],
        "affine": block.affine[u * 2 * b.padded_channels :], "statistics": block.statistics,
        "partials_in": new.partials, "partials_out": partials,
        "tile_means": layer_means[:, u * b.growth_rate :],
        "READ": b.padded_before(u), "C": b.padded_channels, "GROWTH": b.growth_rate,
        "H": b.height, "W": b.width, "N": b.positions, **new.arguments, "EPS": eps,
        "PROGRAMS": programs, **chunk_arguments(b.padded_before(u)),
        "MEANS_STRIDE": layer_means.stride(0),
    }  # fmt: skip
    if b.walks:
        args |= {"IMAGES": b.walk_images, "ROWS": b.walk_rows}
        warps = max(1, min(4, b.walk_images * b.width // 16))
        return Launch(_dense_layer_walk_kernel, (programs,), args, warps, num_stages=1)
    args |= {
        "TILES": b.num_tiles // programs, "P": b.tile, "MEANS": b.stage + 1 < NUM_BLOCKS
    }  # fmt: skip
    return Launch(_dense_layer_kernel, (programs,), args, b.forward_warps, num_stages=1)


def _transition_launch(
    before: BlockBuffers,
    block: BlockBuffers,
    new: _New,
    partials: Tensor,
    tile_means: Tensor,
    eps: float,
) -> Launch:
    a, b = before.plan, block.plan
    args = {
        "map": before.map, "weights": before.end_weights,
        "affine": before.affine[a.num_layers * 2 * a.padded_channels :],
        "statistics": before.statistics, "partials_in": new.partials, "out": block.map,
        "partials_out": partials, "tile_means": tile_means,
        "C": a.padded_channels, "H": a.height, "W": a.width, "N": a.positions,
        "OUT": b.padded_in, "BLOCK_OUT": triton.next_power_of_2(b.padded_in),
        **new.arguments, "EPS": eps,
        "PROGRAMS": b.programs, "TILES": b.num_tiles // b.programs, "P": b.tile,
        **chunk_arguments(a.padded_channels), "MEANS": b.stage + 1 < NUM_BLOCKS,
    }  # fmt: skip
    return Launch(_dense_transition_kernel, (b.programs,), args, b.transition_warps, num_stages=1)


def _taps_launch(
    blocks: Sequence[BlockBuffers],
    out: DenseForward,
    new: _New,
    means: Sequence[tuple[Tensor, Tensor]],
    eps: float,
) -> Launch:
    block, b = blocks[-1], blocks[-1].plan
    groups = triton.cdiv(b.padded_channels, b.growth_rate)
    taps = [each.plan for each in blocks[:-1]]
    args = {
        "map": block.map, "affine": block.affine[b.num_layers * 2 * b.padded_channels :],
        "statistics": block.statistics, "partials": new.partials, "pooled": tuple(out[:3]),
        "input_means": tuple(m for m, _ in means), "layer_means": tuple(m for _, m in means),
        "C": b.padded_channels, "IN": b.in_channels, "PADDED_IN": b.padded_in,
        "PLACES": b.height * b.width, "N": b.positions, **new.arguments, "EPS": eps,
        "GROUPS": groups,
        "TAP_INPUT_MEANS": tuple(t.input_means for t in taps),
        "TAP_LAYER_MEANS": tuple(t.layer_means for t in taps),
        "TAP_IN": tuple(t.in_channels for t in taps),
        "TAP_PADDED_IN": tuple(t.padded_in for t in taps),
        "TAP_NEW": tuple(t.num_layers * t.growth_rate for t in taps),
        "TAP_BLOCK_IN": tuple(triton.next_power_of_2(t.padded_in) for t in taps),
        "TAP_BLOCK_NEW": tuple(
            triton.next_power_of_2(t.num_layers * t.growth_rate) for t in taps
        ),
    }  # fmt: skip
    return Launch(_dense_taps_kernel, (b.batch, groups + NUM_BLOCKS - 1), args, 4, num_stages=1)


def running_statistics_launch(
    plan: Plan,
    statistics: Tensor,
    running_means: Sequence[Tensor],
    running_variances: Sequence[Tensor],
    momentum: float,
) -> Launch:
    """Return the launch that moves every norm's running statistics towards the batch's."""
    places = _places(plan)
    norms = [(i, block) for i, block in enumerate(plan.blocks) for _ in range(block.num_layers + 1)]
    args = {
        "means": tuple(running_means), "variances": tuple(running_variances),
        "statistics": statistics, "momentum": float(momentum), "NUM": len(norms),
        "C": tuple(plan.norm_channels), "IN": tuple(b.in_channels for _, b in norms),
        "PADDED_IN": tuple(b.padded_in for _, b in norms),
        "FIRST": tuple(places.statistics[i] for i, _ in norms),
        "WIDTH": tuple(b.padded_channels for _, b in norms),
        "N": tuple(b.positions for _, b in norms),
        "BLOCK": triton.next_power_of_2(max(plan.norm_channels)),
    }  # fmt: skip
    return Launch(_dense_running_statistics_kernel, (len(norms),), args, 4, num_stages=1)
