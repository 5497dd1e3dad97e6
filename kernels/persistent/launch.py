"""The launches of persistent_backbone, and the buffers they fill.

Letters as in `plan.py`: B images, C channels of a block with gaps, N positions of an image.
"""

import ctypes
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..dense.launch_backward import gradient_size
from ..dense.plan import Plan
from .arguments import BackwardArguments, ForwardArguments, pack_structure
from .compile import definitions_of
from .driver import launch as _launch, loaded
from .pack import Tables, tables
from .plan import THREADS, PersistentPlan

_PACK_THREADS = 256
_PACK_PROGRAMS = 256


class PersistentForward(NamedTuple):
    """What the forward writes."""

    pooled_1: Tensor
    """(B, C_1) fp32, channels as parameters count them, and so on"""
    pooled_2: Tensor
    pooled_3: Tensor
    maps: Tensor
    """every block's (C / 8, B, N, 8), one after another, in the images' dtype"""
    statistics: Tensor
    """fp32, every block's (2, C): mean and biased variance"""
    weights: Tensor
    """every convolution's weights as fragments, the forward's and the backward's"""
    affine: Tensor
    """fp32, every block's (layers + 1, 2, C): gamma and beta"""


class PersistentLaunch(NamedTuple):
    """One launch, not yet made."""

    file: str
    kernel: str
    sizes: PersistentPlan
    dtype: torch.dtype
    arguments: ctypes.Structure
    inputs: Mapping[str, Tensor]
    """what the kernel reads only"""
    outputs: Mapping[str, Tensor]
    programs: int
    threads: int
    shared_bytes: int
    cooperative: bool

    def run(self) -> None:
        """Enqueue the kernel on the current stream of the device that holds its tensors."""
        device = next(iter(self.inputs.values())).device
        definitions = definitions_of(self.sizes.definitions, self.dtype)
        function = loaded(
            self.file, self.kernel, tuple(definitions.items()), self.shared_bytes,
            device.index or 0,
        )  # fmt: skip
        _launch(
            function, self.arguments, self.programs, self.threads, self.shared_bytes,
            cooperative=self.cooperative, device=device,
        )  # fmt: skip


def empty_forward(plan: Plan, images: Tensor, num_halves: int) -> PersistentForward:
    """Allocate what the forward writes. num_halves: elements of all fragments."""
    sizes = PersistentPlan(plan)
    half = functools.partial(torch.empty, dtype=images.dtype, device=images.device)
    single = functools.partial(torch.empty, dtype=torch.float32, device=images.device)
    first, second, third = (single((plan.batch, block.channels)) for block in plan.blocks)
    return PersistentForward(
        first,
        second,
        third,
        maps=half(sizes.num_maps),
        statistics=single(sizes.num_statistics),
        weights=half(num_halves),
        affine=single(sizes.num_affine),
    )


@functools.cache
def tables_on(plan: Plan, channels_last: bool, device: torch.device) -> Tables:
    """Return the network's tables on `device`. A first call copies, which no capture may."""
    halves, num_forward, affine, gradient = tables(plan, channels_last)
    return Tables(halves.to(device), num_forward, affine.to(device), gradient.to(device))


def empty_exchange(plan: Plan, images: Tensor) -> Tensor:
    """Return words that programs tell each other by, cleared by whoever uses them."""
    return torch.empty(
        PersistentPlan(plan).num_words + plan.batch, dtype=torch.int64, device=images.device
    )


def pack_launch(
    sizes: PersistentPlan,
    table: Tables,
    out: PersistentForward,
    exchange: Tensor,
    convs: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
) -> PersistentLaunch:
    """Return the launch that fills `out.weights` and `out.affine`, and clears the exchange."""
    parameters = [*convs, *gammas, *betas]
    structure = pack_structure(len(parameters))
    arguments = structure(
        _pointers(parameters),
        table.halves.data_ptr(),
        out.weights.data_ptr(),
        table.affine.data_ptr(),
        out.affine.data_ptr(),
        exchange.data_ptr(),
        out.weights.numel(),
        out.affine.numel(),
        exchange.numel(),
    )
    inputs = {f"parameter {i}": parameter for i, parameter in enumerate(parameters)}
    inputs |= {"table of weights": table.halves, "table of affine": table.affine}
    outputs = {"weights": out.weights, "affine": out.affine, "exchange": exchange}
    return PersistentLaunch(
        "pack.cu", "dense_persistent_pack", sizes, out.maps.dtype, arguments, inputs, outputs,
        _PACK_PROGRAMS, _PACK_THREADS, 0, cooperative=False,
    )  # fmt: skip


def forward_launch(
    sizes: PersistentPlan, out: PersistentForward, exchange: Tensor, images: Tensor, eps: float
) -> PersistentLaunch:
    """Return the launch that fills the rest of `out` from its packed parameters.

    images: (B, 3, H, W), channels_last in memory.
    """
    arguments = ForwardArguments(
        images.data_ptr(),
        out.weights.data_ptr(),
        out.affine.data_ptr(),
        out.maps.data_ptr(),
        out.statistics.data_ptr(),
        _pointers(out[:3]),
        exchange.data_ptr(),
        eps,
    )
    inputs = {
        "images": images, "weights": out.weights, "affine": out.affine, "exchange": exchange
    }  # fmt: skip
    outputs = {"maps": out.maps, "statistics": out.statistics}
    outputs |= {f"pooled {i}": pooled for i, pooled in enumerate(out[:3])}
    return PersistentLaunch(
        "forward.cu", "dense_persistent_forward", sizes, images.dtype, arguments, inputs, outputs,
        sizes.programs, THREADS, sizes.forward_shared, cooperative=True,
    )  # fmt: skip


def backward_launch(
    sizes: PersistentPlan,
    table: Tables,
    grads: Tensor,
    d_pooled: Sequence[Tensor],
    images: Tensor,
    saved: PersistentForward,
    eps: float,
) -> PersistentLaunch:
    """Return the launch that fills the flat gradient `grads`, (gradient_size(plan),).

    d_pooled: (B, C) fp32 for each tap, contiguous. saved: what the forward wrote, from the same
    images.
    """
    plan = sizes.plan
    assert grads.numel() == gradient_size(plan)
    single = functools.partial(torch.empty, dtype=torch.float32, device=images.device)
    columns = single(plan.batch * sizes.num_columns)
    scratch = single(plan.batch * sizes.scratch_groups * sizes.scratch_tiles * THREADS * 4)
    in_memory = 0 if sizes.is_resident else plan.batch * sizes.image_bytes
    planes = torch.empty(in_memory, dtype=torch.uint8, device=images.device)
    exchange = empty_exchange(plan, images).zero_()
    arguments = BackwardArguments(
        images.data_ptr(),
        saved.maps.data_ptr(),
        saved.statistics.data_ptr(),
        saved.affine.data_ptr(),
        saved.weights.data_ptr() + table.num_forward * saved.weights.element_size(),
        _pointers(d_pooled),
        table.gradient.data_ptr(),
        columns.data_ptr(),
        grads.data_ptr(),
        scratch.data_ptr(),
        planes.data_ptr(),
        exchange.data_ptr(),
        eps,
    )
    inputs = {
        "images": images, "maps": saved.maps, "statistics": saved.statistics,
        "affine": saved.affine, "weights": saved.weights, "order": table.gradient,
        "exchange": exchange, **{f"d pooled {i}": d for i, d in enumerate(d_pooled)},
    }  # fmt: skip
    outputs = {"columns": columns, "grads": grads, "scratch": scratch, "planes": planes}
    return PersistentLaunch(
        "backward.cu", "dense_persistent_backward", sizes, images.dtype, arguments, inputs,
        outputs, sizes.programs, THREADS, sizes.backward_shared, cooperative=True,
    )  # fmt: skip


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
