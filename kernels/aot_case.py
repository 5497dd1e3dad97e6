"""AotCase: one kernel at one dtype, layout and configuration, to be compiled ahead of time."""

import inspect
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from .launch import Launch

_TRITON_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")

# From 3.7 on Triton's launcher lists constants among the arguments with attributes, with none each.
_CONSTANTS_HAVE_ATTRIBUTES = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7)


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


def compile_case(case: AotCase, capability: int) -> CompiledKernel:
    """Compile `case` for `sm_<capability>` as Triton's launcher would on such a GPU.

    The launcher finds it in the cache: its key is a text of signature, constants and attributes, so
    that these have to be spelled, and ordered, as the launcher does.
    """
    names = case.kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, (name, kind) in enumerate(signature.items()):
        if name in case.aligned:
            parts = range(len(kind)) if isinstance(kind, tuple) else None
            paths = [(position,)] if parts is None else [(position, part) for part in parts]
            attributes |= {path: [["tt.divisibility", 16]] for path in paths}
        elif kind == "constexpr" and _CONSTANTS_HAVE_ATTRIBUTES:
            attributes[position,] = []
    return triton.compile(
        ASTSource(case.kernel, signature, case.constexprs, attributes),
        target=GPUTarget("cuda", capability, 32),
        options=case.options,
    )


def resources_of(cubin: bytes) -> tuple[int, int]:
    """Return the registers a thread of a kernel takes, and the bytes that do not fit into them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    resources = _RESOURCES.search(listing)
    assert resources, f"cuobjdump lists no resources: {listing}"
    registers, stack, local = map(int, resources.groups())
    return registers, stack + local


def _type_of(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_type_of, value))
    if isinstance(value, torch.Tensor):
        return "*" + _TRITON_TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"
