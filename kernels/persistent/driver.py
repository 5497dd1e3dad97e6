"""Load compiled kernels and launch them: on the current stream, all programs at once or not at all.

A cooperative launch is refused by the driver where its programs would not all be on the GPU, so
programs that wait for each other never wait for one that has not begun. It may be captured in a
CUDA graph, whose node stays cooperative.
"""

import ctypes
import functools
from typing import Any

import torch

from .compile import compiled

_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_DEFAULT_SHARED = 48 * 1024
"""bytes of shared memory that a kernel may take without being told so"""


def _checked(result: tuple[Any, ...], what: str) -> Any:
    from cuda.bindings import driver

    if result[0] == driver.CUresult.CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE:
        raise RuntimeError(
            f"{what}: the GPU cannot run all programs at once, because a part of it is taken or"
            " reserved (MIG, MPS, another process): take backbone fused or modules"
        )
    if result[0] != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{what}: {result[0].name}")
    return result[1] if len(result) > 1 else None


@functools.cache
def loaded(
    file: str, kernel: str, definitions: tuple[tuple[str, int], ...], shared_bytes: int, device: int
) -> Any:
    """Return a kernel as the driver holds it, compiled for and loaded on CUDA device `device`.

    Stays loaded as long as the process runs: captured graphs keep its address.
    """
    capability = torch.cuda.get_device_capability(device)
    return function_of(compiled(dict(definitions), capability)[file], kernel, shared_bytes, device)


def function_of(cubin: bytes, kernel: str, shared_bytes: int, device: int) -> Any:
    """Load a cubin on CUDA device `device`, and return one of its kernels."""
    from cuda.bindings import driver

    with torch.cuda.device(device):
        module = _checked(driver.cuModuleLoadData(cubin), f"loading {kernel}")
        function = _checked(driver.cuModuleGetFunction(module, kernel.encode()), kernel)
        if shared_bytes > _DEFAULT_SHARED:
            attribute = driver.CUfunction_attribute(_SHARED_BYTES)
            _checked(
                driver.cuFuncSetAttribute(function, attribute, shared_bytes),
                f"{shared_bytes} bytes of shared memory for {kernel}",
            )
    return function


def launch(
    function: Any,
    arguments: ctypes.Structure,
    programs: int,
    threads: int,
    shared_bytes: int,
    *,
    cooperative: bool,
    device: torch.device,
) -> None:
    """Enqueue a kernel, which takes one structure, on the current stream of `device`."""
    from cuda.bindings import driver

    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
    enqueue = driver.cuLaunchCooperativeKernel if cooperative else driver.cuLaunchKernel
    rest = () if cooperative else (0,)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        result = enqueue(
            function, programs, 1, 1, threads, 1, 1, shared_bytes, stream,
            ctypes.addressof(parameters), *rest,
        )  # fmt: skip
    _checked(result, "launching a persistent kernel")
