"""Which implementation an op runs: the one function that decides, and why."""

import os
from typing import Literal, get_args

import torch

Impl = Literal["auto", "triton", "torch"]


def resolve_impl(
    impl: Impl, device: torch.device, dtype: torch.dtype = torch.float32
) -> Literal["triton", "torch"]:
    """Return the implementation to run on `device` for data of `dtype`.

    `auto` takes Triton on CUDA from compute capability 7.0 for fp32, fp16 and bf16, and the PyTorch
    reference elsewhere. `triton` also runs on the CPU inside Triton's interpreter
    (`TRITON_INTERPRET=1`, for tests: exact, and thousands of times slower), but for bf16, which the
    interpreter gets wrong without saying so.

    Raises ValueError on an unknown name, and on `triton` where Triton cannot run.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl is {impl!r}: take one of {', '.join(get_args(Impl))}")
    if impl == "torch":
        return "torch"
    obstacle = _triton_obstacle(device, dtype)
    if impl == "triton" and obstacle:
        raise ValueError(f"impl='triton' cannot run here: {obstacle}; take impl='auto' or 'torch'")
    if impl == "auto" and (obstacle or device.type != "cuda"):
        return "torch"
    return "triton"


def _triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernels compute in fp32 and the data are {dtype}"
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)  # torch.compile folds it into a constant
        return (
            None if gpu.major >= 7 else f"compute capability {gpu.major}.{gpu.minor} is below 7.0"
        )
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return "Triton's interpreter has no bf16" if dtype == torch.bfloat16 else None
    return f"it needs a CUDA device and the tensors are on {device.type}"
