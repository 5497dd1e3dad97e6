"""The persistent kernels of the paper's network, compiled beforehand for the stand-in's H100.

NVRTC crashes in a process whose driver is the stand-in.
"""

from pathlib import Path

import pytest
import torch

from gpu.persistent import EXCHANGE
from lion_fast.kernels.persistent.aot import PAPER
from lion_fast.kernels.persistent.compile import compiled, compiled_file, definitions_of
from lion_fast.kernels.persistent.plan import PersistentPlan

H100 = (9, 0)


def compile_persistent(
    cache: str | Path, *dtypes: torch.dtype, sizes: PersistentPlan | None = None
) -> None:
    """Fill the folder of compiled kernels under TRITON_CACHE_DIR `cache`; both dtypes if none."""
    sizes = sizes or PersistentPlan(PAPER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(cache))
        for dtype in dtypes or (torch.bfloat16, torch.float16):
            compiled(definitions_of(sizes.definitions, dtype), H100)
        compiled_file(str(EXCHANGE), {"HALF_IS_FP16": 0}, H100)
