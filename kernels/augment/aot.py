"""Kernels of augment_batch to compile ahead of time."""

import torch
from torch import Tensor

from ..aot_case import AotCase, case_of
from .kernels import DTYPES, augment_launch, empty_batch


def _aot_case(dtype: torch.dtype, channels_last: bool, side: int | None = None) -> AotCase:
    """Return the kernel with everything on: step counter, crops and flips, of 32x32 images."""

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    images, labels = empty(50_000, 32, 32, 3, dtype=torch.uint8), empty(50_000, dtype=torch.int64)
    indices, flips, crops = empty(390, 128), empty(390, 128, dtype=torch.bool), empty(390, 128, 2)
    step = empty(dtype=torch.int64)
    batch, batch_labels = empty_batch(images, labels, indices, dtype, channels_last, side)
    ones = (1.0, 1.0, 1.0)
    launch = augment_launch(
        batch, batch_labels, images, labels, indices, flips, ones, ones, crops, 4, step
    )
    memory = "channels_last" if channels_last else "contiguous"
    reduced = "" if side is None else f" to {side}"
    return case_of(f"augment_batch {DTYPES[dtype]} {memory}{reduced}", launch)


AOT_CASES = [
    *(_aot_case(dtype, channels_last) for dtype in DTYPES for channels_last in (True, False)),
    # What training takes: channels last, in the precisions of a GPU.
    *(_aot_case(dtype, True, side) for side in (16, 24) for dtype in DTYPES),
]
