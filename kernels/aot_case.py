"""AotCase: one kernel at one dtype, layout and configuration, for `lion_fast.kernels.aot`."""

import inspect
from typing import Any, NamedTuple

import torch

from .launch import Launch

_TRITON_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


class AotCase(NamedTuple):
    """One specialisation that the package ships. Each op lists its own."""

    name: str
    """unique, readable: op, kernel, dtype, layout"""
    kernel: Any
    """the `@triton.jit` function"""
    signature: dict[str, Any]
    """argument name -> Triton type ("*bf16", "i32", "fp32"), or a tuple of them"""
    constexprs: dict[str, Any]
    """argument name -> value, of constexpr arguments and of those that are None"""
    options: dict[str, Any]
    """`Launch.options`"""
    aligned: tuple[str, ...] = ()
    """arguments that are multiples of 16 at run time, as Triton's launcher would find them"""
    min_capability: int = 70
    """first sm_NN that the case is for: 80 for bf16"""


def case_of(name: str, launch: Launch) -> AotCase:
    """Return what Triton's launcher would compile for `launch`.

    Every tensor is taken to start at a multiple of 16 bytes; it may be on the meta device. Integers
    are not specialised, so a kernel lists those it takes under `do_not_specialize`.
    """
    # Read from the function under @triton.jit, which is there in the interpreter too.
    annotations = inspect.get_annotations(launch.kernel.fn)
    constexprs = {
        key: value
        for key, value in launch.args.items()
        if value is None or "constexpr" in str(annotations.get(key))
    }
    runtime = {key: value for key, value in launch.args.items() if key not in constexprs}
    tensors = [
        t
        for value in runtime.values()
        for t in (value if isinstance(value, tuple) else (value,))
        if isinstance(t, torch.Tensor)
    ]
    return AotCase(
        name,
        launch.kernel,
        {key: _type_of(value) for key, value in runtime.items()},
        constexprs,
        launch.options,
        aligned=tuple(key for key, value in runtime.items() if not isinstance(value, int | float)),
        min_capability=80 if any(t.dtype == torch.bfloat16 for t in tensors) else 70,
    )


def _type_of(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_type_of, value))
    if isinstance(value, torch.Tensor):
        return "*" + _TRITON_TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"
