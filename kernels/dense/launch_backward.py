"""The backward launches of dense_backbone, and where partial and whole gradients lie.

The flat gradient holds the convolutions in forward order, each in its weight's memory order, then
the norms in forward order, gamma before beta. A block's kernels make partials of a contiguous
stretch of it, so that the reduction adds up columns. Words and letters as in `statistics.py`.
"""

import functools
from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..launch import Launch
from .backward import _dense_group_bwd_kernel
from .gradients import _dense_reduce_kernel, _dense_weights_bwd_kernel
from .launch import BlockBuffers, DenseForward, block_buffers, chunk_arguments
from .plan import NUM_BLOCKS, SHIPPED, WEIGHT_CHANNELS, BlockPlan, Options, Plan

_GROUP = 8
"""channels that a program of the backward chain pulls"""
_REDUCE_COLUMNS = 128
_REDUCE_ROWS = 16
_ROW_ALIGNMENT = 32
"""rows of partials start at multiples of this many elements"""


def gradient_size(plan: Plan) -> int:
    """Return the number of elements of the flat gradient."""
    return sum(map(prod, plan.conv_shapes)) + 2 * sum(plan.norm_channels)


def gradient_views(
    plan: Plan, flat: Tensor, channels_last: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the flat gradient's parts in the parameters' shapes: convolutions, gammas, betas."""
    convs, gammas, betas, at = [], [], [], 0
    for n, c, height, width in plan.conv_shapes:
        part = flat[at : at + n * c * height * width]
        at += part.shape[0]
        if channels_last:
            convs.append(part.view(n, height, width, c).permute(0, 3, 1, 2))
        else:
            convs.append(part.view(n, c, height, width))
    for channels in plan.norm_channels:
        gammas.append(flat[at : at + channels])
        betas.append(flat[at + channels : at + 2 * channels])
        at += 2 * channels
    return convs, gammas, betas


class _Matrix(NamedTuple):
    """Partials (rows, width) of the flat gradient from `out` on."""

    tensor: Tensor
    rows: int
    width: int
    out: int
    start: int
    """element of the buffer that holds every matrix"""

    @property
    def stride(self) -> int:
        return self.tensor.stride(0)


def _matrices(
    plan: Plan, blocks: Sequence[BlockPlan], like: Tensor
) -> tuple[Tensor, list[_Matrix], list[_Matrix]]:
    """Return one buffer, and in it the partials of each block's convolutions and norms.

    The stem belongs to block 1's convolutions and each transition to the block before it.
    """
    convs = [prod(shape) for shape in plan.conv_shapes]
    per_block = plan.block_layers + 1  # a transition or the stem beside the layers
    bounds = [0, 1 + per_block, 1 + 2 * per_block, len(convs)]
    widths = [sum(convs[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
    rows = [block.weight_programs for block in blocks]
    for i in range(NUM_BLOCKS):
        channels = plan.norm_channels[i * per_block : (i + 1) * per_block]
        widths.append(2 * sum(channels))
        rows.append(blocks[i].programs)
    strides = [-(-width // _ROW_ALIGNMENT) * _ROW_ALIGNMENT for width in widths]
    starts = list(accumulate((r * s for r, s in zip(rows, strides, strict=True)), initial=0))
    buffer = torch.empty(starts[-1], dtype=torch.float32, device=like.device)
    outs = accumulate(widths, initial=0)
    matrices = [
        _Matrix(buffer[start : start + r * s].view(r, s), r, width, out, start)
        for start, r, s, width, out in zip(starts, rows, strides, widths, outs, strict=False)
    ]
    return buffer, matrices[:NUM_BLOCKS], matrices[NUM_BLOCKS:]


class _Gradients(NamedTuple):
    """Gradient maps of one block, in the maps' dtype, and partials of their corrections."""

    dout: Tensor
    """(layers, growth / 8, N, 8)"""
    raw: tuple[Tensor, Tensor]
    """a group's, in turn"""
    partials: tuple[Tensor, Tensor]
    scratch: Tensor
    raw_input: Tensor
    """the block's input"""
    dout_input: Tensor
    """the same, corrected: written by the block before"""
    partials_input: Tensor


def _gradients(block: BlockPlan, images: Tensor) -> _Gradients:
    half = functools.partial(torch.empty, dtype=images.dtype, device=images.device)
    single = functools.partial(torch.empty, dtype=torch.float32, device=images.device)
    n, growth = block.positions, block.growth_rate
    slices = max(growth, block.padded_in) // _GROUP
    return _Gradients(
        dout=half(block.num_layers * growth * n),
        raw=(half(growth * n), half(growth * n)),
        partials=(single(2 * block.programs * growth), single(2 * block.programs * growth)),
        scratch=half(block.programs * slices * 2 * (block.tile + 2 * block.width) * growth),
        raw_input=half(block.padded_in * n),
        dout_input=half(block.padded_in * n),
        partials_input=single(2 * block.programs * block.padded_in),
    )


def backward_launches(
    plan: Plan,
    grads: Tensor,
    d_pooled: Sequence[Tensor],
    images: Tensor,
    saved: DenseForward,
    eps: float,
    channels_last: bool,
    options: Options = SHIPPED,
) -> list[Launch]:
    """Return the launches that fill the flat gradient `grads`.

    d_pooled: (B, C) fp32 for each tap, neighbouring channels neighbours in memory. saved: what the
    forward wrote, from the same images.
    """
    blocks = block_buffers(plan, saved, options)
    plans = [block.plan for block in blocks]
    partials, conv_matrices, norm_matrices = _matrices(plan, plans, images)
    gradients = [_gradients(block, images) for block in plans]
    launches = []
    for i in reversed(range(NUM_BLOCKS)):
        end = (blocks[i + 1], gradients[i + 1]) if i + 1 < NUM_BLOCKS else None
        launches += [
            _group_launch(
                blocks[i], gradients[i], end, maker, d_pooled[i], norm_matrices[i], eps
            )
            for maker in reversed(range(-1, plan.block_layers))
        ]  # fmt: skip
        launches.append(
            _weights_launch(blocks[i], gradients[i], end, images, conv_matrices[i], eps,
                            channels_last)
        )  # fmt: skip
    launches.append(_reduce_launch(partials, [*conv_matrices, *norm_matrices], grads))
    return launches


def run_beside(launches: Sequence[Launch], device_of: Tensor, side: torch.cuda.Stream) -> None:
    """Run `backward_launches`, those of weight gradients on `side`, a stream of the same device.

    They need the groups of their block, and only the reduction, which comes last, needs them. Both
    streams are one again when this returns, so that a capture may hold it, and memory of either may
    be given back.
    """
    main = torch.cuda.current_stream(device_of.device)
    for launch in launches:
        if launch.kernel is _dense_weights_bwd_kernel:
            side.wait_stream(main)
            with torch.cuda.stream(side):
                launch.run(device_of)
        else:
            if launch.kernel is _dense_reduce_kernel:
                main.wait_stream(side)
            launch.run(device_of)


_End = tuple[BlockBuffers, _Gradients] | None


def _group_launch(
    block: BlockBuffers,
    own: _Gradients,
    end: _End,
    maker: int,
    d_tap: Tensor,
    columns: _Matrix,
    eps: float,
) -> Launch:
    b = block.plan
    is_input = maker < 0
    width = b.padded_in if is_input else b.growth_rate
    after, theirs = end or (block, own)  # no transition: any tensors do
    e = after.plan
    cut = {"NUM_CHUNKS": 0, "CHUNKS": (), "FIRST": ()}
    if end:
        cut = chunk_arguments(e.padded_in)
    args = {
        "map": block.map, "statistics": block.statistics, "weights": block.layer_weights,
        "affine": block.affine, "raw_in": own.raw[(maker + 1) % 2],
        "partials_in": own.partials[(maker + 1) % 2], "dout": own.dout,
        "raw_out": own.raw_input if is_input else own.raw[maker % 2],
        "partials_out": own.partials_input if is_input else own.partials[maker % 2],
        "columns": columns.tensor, "scratch": own.scratch, "d_tap": d_tap,
        "end_map": after.map, "end_statistics": after.statistics, "end_raw": theirs.raw_input,
        "end_partials": theirs.partials_input, "end_dout": theirs.dout_input,
        "end_weights": block.end_weights if end else block.layer_weights,
        "H": b.height, "W": b.width, "N": b.positions, "C": b.padded_channels,
        "IN": b.in_channels, "PADDED_IN": b.padded_in, "K": b.growth_rate,
        "LAYERS": b.num_layers, "MAKER": maker, "WIDTH": width, "CW": _GROUP, "EPS": eps,
        "PROGRAMS": b.programs, "TILES": b.num_tiles // b.programs, "P": b.tile,
        "WARPS": b.backward_warps, "COLUMNS": columns.stride, "D_TAP_STRIDE": d_tap.stride(0),
        "IS_LAST": end is None, "END_C": e.padded_in, "END_STATISTICS": e.padded_channels,
        "END_PARTS": e.programs, "END_CORRECTS": maker == b.num_layers - 1,
        "END_CHUNKS": cut["NUM_CHUNKS"], "CHUNKS": cut["CHUNKS"], "FIRST": cut["FIRST"],
        "TAP_K": max(16, b.growth_rate),
    }  # fmt: skip
    grid = (b.programs, triton.cdiv(width, _GROUP))
    return Launch(
        _dense_group_bwd_kernel, grid, args, b.backward_warps, num_stages=1,
        max_registers=b.max_registers(is_input),
    )  # fmt: skip


def _weights_launch(
    block: BlockBuffers,
    own: _Gradients,
    end: _End,
    images: Tensor,
    columns: _Matrix,
    eps: float,
    channels_last: bool,
) -> Launch:
    b = block.plan
    has_stem = b.stage == 0
    after, theirs = end or (block, own)
    e = after.plan
    layers_at = 27 * b.in_channels if has_stem else 0
    growth = b.growth_rate
    layer_channels = sum(b.in_channels + u * growth for u in range(b.num_layers))
    end_tile = e.weight_tile
    args = {
        "map": block.map, "statistics": block.statistics, "affine": block.affine,
        "dout": own.dout, "end_dout": theirs.dout_input, "images": images,
        "raw_input": own.raw_input, "partials_input": own.partials_input,
        "columns": columns.tensor,
        "H": b.height, "W": b.width, "N": b.positions, "C": b.padded_channels,
        "IN": b.in_channels, "PADDED_IN": b.padded_in, "K": growth, "TAP_K": max(16, growth),
        "LAYERS": b.num_layers, "EPS": eps, "PROGRAMS": b.weight_programs,
        "TILES": b.positions // b.weight_tile, "P": b.weight_tile, "CW": WEIGHT_CHANNELS,
        "COLUMNS": columns.stride, "FIRST": layers_at, "CHANNELS_LAST": channels_last,
        "END_C": e.in_channels if end else 0, "END_PADDED": e.padded_in,
        "END_BLOCK": triton.next_power_of_2(max(16, e.padded_in)),
        "END_FIRST": layers_at + 9 * growth * layer_channels,
        "END_TILES": e.positions // end_tile, "END_P": end_tile,
        "HAS_STEM": has_stem, "INPUT_PARTS": b.programs,
    }  # fmt: skip
    slices = triton.cdiv(b.padded_channels, WEIGHT_CHANNELS)
    grid = (b.weight_programs, b.num_layers + (end is not None) + has_stem, slices)
    return Launch(_dense_weights_bwd_kernel, grid, args, 4, num_stages=1)


def _reduce_launch(partials: Tensor, matrices: Sequence[_Matrix], grads: Tensor) -> Launch:
    programs = [triton.cdiv(m.width, _REDUCE_COLUMNS) for m in matrices]
    args = {
        "partials": partials, "grads": grads, "NUM": len(matrices),
        "FIRST_PROGRAM": tuple(accumulate(programs, initial=0))[:-1],
        "START": tuple(m.start for m in matrices), "ROWS": tuple(m.rows for m in matrices),
        "STRIDE": tuple(m.stride for m in matrices), "WIDTH": tuple(m.width for m in matrices),
        "OUT": tuple(m.out for m in matrices),
        "BLOCK": _REDUCE_COLUMNS, "BLOCK_ROWS": _REDUCE_ROWS,
    }  # fmt: skip
    return Launch(_dense_reduce_kernel, (sum(programs),), args, 4, num_stages=1)
