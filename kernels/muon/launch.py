"""How the kernel of muon_update_ is configured and launched, and what it compiles ahead of time."""

import functools
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ..aot_case import AotCase, case_of
from ..launch import Launch
from .kernels import _muon_update_kernel

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""of X, A X and A^2 X"""
ITERATIONS = 5
EPS = 1e-7
"""smallest norm divided by"""

# Rows of a block -> its columns; not tuned: no GPU has run the halves yet. Rows are padded to a
# block, since tl.dot takes 16 or more, and a weight of 8 rows does not pay for one of 24. Halves
# spill for sm_80, whose mma.sync holds its factors in registers, and so would they for sm_120.
# Without, factors of 64 x 64 spill with 8 and with 16 warps, so that they lie in memory.
_BLOCKS_OF_HALVES = {16: 256, 32: 64, 64: 128}
_WARPS_OF_HALVES = 4
_MAJORS_OF_HALVES = (9, 10)
"""first numbers of the compute capabilities whose products are made of halves on tensor cores"""
_BLOCKS = {16: 64, 32: 64, 64: 16}
_MAX_IN_REGISTERS = 32
_NUM_WARPS = 8
MAX_ROWS = max(_BLOCKS)


def scale_of(weight: Tensor) -> float:
    """Return max(1, rows / columns)^(1/2) of a weight flattened to (first dimension, rest)."""
    rows = weight.shape[0]
    return max(1.0, rows / (weight.numel() / rows)) ** 0.5


def muon_launch(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    averages: Sequence[Tensor],
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    tensor_cores: bool | None = None,
) -> Launch:
    """Return the launch that updates matrices of at most MAX_ROWS rows or columns in place.

    tensor_cores: whether products are made of halves (`halves.py`); None: as the device can.
    """
    if tensor_cores is None:
        major, _ = torch.cuda.get_device_capability(lr.device) if lr.is_cuda else (9, 0)
        tensor_cores = major in _MAJORS_OF_HALVES
    blocks = _BLOCKS_OF_HALVES if tensor_cores else _BLOCKS
    sizes = [next(block for block in blocks if min(w.shape) <= block) for w in weights]
    order = sorted(range(len(weights)), key=sizes.__getitem__)
    used = sorted(set(sizes))
    matrices = [weights[i] for i in order]
    wide = [w if w.shape[0] <= w.shape[1] else w.T for w in matrices]
    args = {
        "weights": tuple(matrices), "grads": tuple(_like(grads[i], weights[i]) for i in order),
        "averages": tuple(averages[i] for i in order), "lr": lr,
        "momentum": float(momentum), "weight_decay": float(weight_decay),
        "scratch": None if tensor_cores else _scratch(sizes, lr),
        "ROWS": tuple(w.shape[0] for w in wide), "COLUMNS": tuple(w.shape[1] for w in wide),
        "STRIDE_R": tuple(w.stride(0) for w in wide), "STRIDE_C": tuple(w.stride(1) for w in wide),
        "SCALE": tuple(map(scale_of, matrices)),
        "LINEAR": COEFFICIENTS[0], "CUBIC": COEFFICIENTS[1], "QUINTIC": COEFFICIENTS[2],
        "ITERATIONS": ITERATIONS, "EPS": EPS, "NUM_SIZES": len(used),
        "FIRST": tuple(accumulate((sizes.count(block) for block in used), initial=0)),
        "IN_REGISTERS": tuple(block <= _MAX_IN_REGISTERS for block in used),
        "BLOCK_R": tuple(used), "BLOCK_C": tuple(blocks[block] for block in used),
        "TENSOR_CORES": tensor_cores,
    }  # fmt: skip
    warps = _WARPS_OF_HALVES if tensor_cores else _NUM_WARPS
    return Launch(_muon_update_kernel, (len(weights),), args, warps, num_stages=1)


def _scratch(sizes: Sequence[int], lr: Tensor) -> Tensor | None:
    """Return room for the factors that are too large for registers; None where none is."""
    in_memory = [block for block in sizes if block > _MAX_IN_REGISTERS]
    if not in_memory:
        return None
    return lr.new_empty((len(in_memory), 3, MAX_ROWS, MAX_ROWS), dtype=torch.float32)


def _like(grad: Tensor, weight: Tensor) -> Tensor:
    return grad if grad.stride() == weight.stride() else torch.empty_like(weight).copy_(grad)


_DENSENET = [
    (24, 27), (36, 72), (42, 84),
    *((8, 9 * (first + 8 * layer)) for first in (24, 36, 42) for layer in range(6)),
]  # fmt: skip
_MIXED = [(64, 27), (32, 576), (24, 8), (10, 640), (64, 576)]


def _shipped(name: str, shapes: list[tuple[int, int]]) -> list[AotCase]:
    matrices = [torch.empty(shape, device="meta") for shape in shapes]
    lr = torch.empty((), device="meta")
    step = functools.partial(muon_launch, matrices, matrices, matrices, lr, 0.95, 0.01)
    on_tensor_cores = case_of(f"muon {name}, tensor cores", step(tensor_cores=True))
    return [
        case_of(f"muon {name}", step(tensor_cores=False)),
        on_tensor_cores._replace(min_capability=10 * min(_MAJORS_OF_HALVES)),
    ]


AOT_CASES = [
    *_shipped(f"{len(_DENSENET)} weights of densenet", _DENSENET),
    *_shipped(f"{len(_MIXED)} weights, tall and wide", _MIXED),
    *_shipped("1 weight of 8 rows", _DENSENET[-1:]),
]
