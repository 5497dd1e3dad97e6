"""Which parameter's which element lies where: tables for the packing launch and the gradients.

Each table is made by laying out tensors of indices as the kernels want the values laid out; -1
stands where there is no value. Indices count elements in a tensor's memory order, contiguous or
channels_last.
"""

import functools
from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dense.plan import NUM_BLOCKS, Plan
from .plan import PersistentPlan

_PARAMETER = 1 << 20
"""step from one parameter's indices to the next's"""


class Tables(NamedTuple):
    """int32 tables on the CPU."""

    halves: Tensor
    """of the weights' fragments: the forward's, then the backward's"""
    num_forward: int
    """elements of the forward's fragments"""
    affine: Tensor
    gradient: Tensor
    """of a program's columns: element of the flat gradient (`gradient_views` says its order)"""


class _Indices(NamedTuple):
    """Indices in the parameters' shapes, in forward order."""

    convs: list[Tensor]
    gammas: list[Tensor]
    betas: list[Tensor]

    @classmethod
    def of(cls, plan: Plan, channels_last: bool, starts: Sequence[int]) -> "_Indices":
        """Return indices that count each parameter's elements from its entry of `starts`."""
        shapes = [*plan.conv_shapes, *((c,) for c in plan.norm_channels * 2)]
        found = []
        for shape, start in zip(shapes, starts, strict=True):
            count = torch.arange(start, start + prod(shape), dtype=torch.int32)
            if len(shape) == 4 and channels_last:
                n, c, height, width = shape
                found.append(count.view(n, height, width, c).permute(0, 3, 1, 2))
            else:
                found.append(count.view(shape))
        convs, norms = len(plan.conv_shapes), len(plan.norm_channels)
        return cls(found[:convs], found[convs : convs + norms], found[convs + norms :])


@functools.cache
def tables(plan: Plan, channels_last: bool) -> Tables:
    """Return the tables of a network whose 3x3 weights lie in that memory format."""
    sizes = PersistentPlan(plan)
    convs = [prod(shape) for shape in plan.conv_shapes]
    norms = plan.norm_channels
    numbers = [_PARAMETER * i for i in range(len(convs) + 2 * len(norms))]
    parameters = _Indices.of(plan, channels_last, numbers)
    forward = _forward_fragments(sizes, parameters)
    # The flat gradient: convolutions, then each norm's gamma and beta.
    ends = list(accumulate([*convs, *(c for c in norms for _ in range(2))], initial=0))
    flat = ends[: len(convs)] + ends[len(convs) : -1 : 2] + ends[len(convs) + 1 :: 2]
    gradient = _columns(sizes, _Indices.of(plan, channels_last, flat[: len(numbers)]))
    return Tables(
        torch.cat([forward, _backward_fragments(sizes, parameters)]),
        forward.numel(),
        _affine(sizes, parameters),
        gradient,
    )


def num_halves(plan: Plan) -> int:
    """Return the number of elements of all fragments."""
    return tables(plan, False).halves.numel()


def _fragments(matrix: Tensor) -> Tensor:
    """(K, N) -> (K / 16, N / 8, 32 lanes, 4): what a lane multiplies by, whole tiles with -1."""
    k, n = matrix.shape
    matrix = F.pad(matrix, (0, -n % 8, 0, -k % 16), value=-1)
    lane = torch.arange(32)
    rows = (lane % 4 * 2)[:, None] + torch.tensor([0, 1, 8, 9])
    cut = matrix.unflatten(0, (-1, 16)).unflatten(2, (-1, 8))
    return cut[:, rows, :, (lane // 4)[:, None]].permute(2, 3, 0, 1)


class _Gapped(NamedTuple):
    """One block's indices, channels that come in padded to whole groups."""

    layers: list[Tensor]
    """(growth rate, C, 3, 3) each"""
    transition: Tensor | None
    """(C of the next block, C)"""
    norms: list[tuple[Tensor, Tensor]]
    """gamma and beta, (C,) each"""


def _blocks(sizes: PersistentPlan, indices: _Indices) -> list[_Gapped]:
    found, conv, norm = [], 1, 0
    for b, block in enumerate(sizes.plan.blocks):
        came, gap = block.in_channels, block.padded_in - block.in_channels

        def gapped(x: Tensor, dim: int, came: int = came, gap: int = gap) -> Tensor:
            before, behind = x.split([came, x.shape[dim] - came], dim)
            shape = [*x.shape]
            shape[dim] = gap
            return torch.cat([before, x.new_full(shape, -1), behind], dim)

        layers = [gapped(w, 1) for w in indices.convs[conv : conv + sizes.layers]]
        conv += sizes.layers
        transition = None
        if b + 1 < NUM_BLOCKS:
            transition = gapped(indices.convs[conv][:, :, 0, 0], 1)
            conv += 1
        norms = slice(norm, norm + sizes.layers + 1)
        pairs = zip(indices.gammas[norms], indices.betas[norms], strict=True)
        found.append(_Gapped(layers, transition, [(gapped(g, 0), gapped(b, 0)) for g, b in pairs]))
        norm += sizes.layers + 1
    return found


def _forward_fragments(sizes: PersistentPlan, indices: _Indices) -> Tensor:
    parts = [_fragments(_stem_rows(indices))]
    for block in _blocks(sizes, indices):
        for w in block.layers:
            for made in w.split(8):
                taps = [_fragments(made[:, :, i // 3, i % 3].T)[:, 0] for i in range(9)]
                parts.append(torch.stack(taps, 1))  # (chunk, tap, lane, 4)
        if block.transition is not None:
            parts.append(_fragments(block.transition.T))
    return _flat(parts)


def _backward_fragments(sizes: PersistentPlan, indices: _Indices) -> Tensor:
    """Weights turned round: a tap's distance is the other way, and outputs are summed over."""
    parts = []
    for block in _blocks(sizes, indices):
        for w in block.layers:
            for group in w.split(8, 1):
                for made in group.split(8):
                    for kh in (2, 1, 0):
                        first, second, third = (made[:, :, kh, kw] for kw in (2, 1, 0))
                        two = _fragments(torch.cat([first, second]))[0, 0]
                        one = _fragments(third)[0, 0, :, :2]
                        parts.append(torch.cat([two, one, torch.full_like(one, -1)], 1))
        if block.transition is not None:
            parts += [_fragments(group)[:, 0] for group in block.transition.split(8, 1)]
    return _flat(parts)


def _affine(sizes: PersistentPlan, indices: _Indices) -> Tensor:
    return _flat(_norms(sizes, _blocks(sizes, indices)))


def _columns(sizes: PersistentPlan, indices: _Indices) -> Tensor:
    blocks = _blocks(sizes, indices)
    rows = _stem_rows(indices)
    parts = [F.pad(rows, (0, 8 * sizes.groups_in[0] - rows.shape[1]), value=-1)]
    for b, block in enumerate(blocks):
        for w in block.layers:
            parts += [made.permute(2, 3, 1, 0) for made in w.split(8)]  # (3, 3, C, 8)
        if block.transition is not None:
            w = block.transition.T
            parts.append(F.pad(w, (0, 8 * sizes.groups_in[b + 1] - w.shape[1]), value=-1))
    return _flat([*parts, *_norms(sizes, blocks)])


def _stem_rows(indices: _Indices) -> Tensor:
    """(27, channels): a row a tap and colour."""
    return indices.convs[0].permute(2, 3, 1, 0).flatten(0, 2)


def _norms(sizes: PersistentPlan, blocks: Sequence[_Gapped]) -> list[Tensor]:
    """(2, C of the block) each, -1 where a norm reads no more."""
    return [
        F.pad(torch.stack(pair), (0, 8 * sizes.groups[b] - pair[0].shape[0]), value=-1)
        for b, block in enumerate(blocks)
        for pair in block.norms
    ]


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
