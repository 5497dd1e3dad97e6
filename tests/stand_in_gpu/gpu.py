"""Compile, load and read the stand-in."""

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from stand_in_gpu.cubin import triton_folder
from stand_in_gpu.devices import CARDS

_SOURCES = Path(__file__).with_name("csrc")
_LIBRARY = "libcuda.so.1"
# enum Kind of stand_in.h.
KINDS = ("driver kernel", "runtime kernel", "copy", "fill", "library", "graph", "sync")


class Record(NamedTuple):
    """One thing that the GPU was asked to do, or that the host waited for."""

    kind: str
    """one of KINDS"""
    name: str
    """of the kernel or call; C++ names are mangled"""
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    capture: int
    """number of the capture that took it; 0 where it was to run at once"""
    stream: int
    num_bytes: int
    """of a copy or fill; of a graph: its nodes"""

    @property
    def is_launch(self) -> bool:
        """Whether the GPU would run a kernel, copy or fill for it, outside any graph's replay."""
        return self.kind not in ("graph", "sync")


class DriverLaunch(NamedTuple):
    """What a launch through the driver was given, read as the driver would."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    stream: int
    params: tuple[bytes, ...]
    """in the number and sizes that the cubin declares"""
    cubin: bytes


class _Record(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("capture", ctypes.c_int),
        ("stream", ctypes.c_void_p),
        ("num_bytes", ctypes.c_size_t),
    ]


class _Function(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("image", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("num_params", ctypes.c_int),
        ("param_sizes", ctypes.c_uint16 * 256),
    ]


_HOOK = ctypes.CFUNCTYPE(
    None,
    ctypes.POINTER(_Function),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_uint,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
)


class Gpu:
    """The loaded stand-in."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._hook: Any = None

    def clear(self) -> None:
        """Forget what was recorded."""
        self._library.stand_in_clear()

    def count(self) -> int:
        """Return how much was recorded since the last `clear`."""
        return ctypes.c_size_t.in_dll(self._library, "stand_in_num_records").value

    def records(self) -> list[Record]:
        """Return what was recorded since the last `clear`, in order."""
        first = ctypes.POINTER(_Record).in_dll(self._library, "stand_in_records")
        return [
            Record(
                KINDS[r.kind],
                r.name.decode(),
                tuple(r.grid),
                tuple(r.block),
                r.shared,
                r.capture,
                r.stream or 0,
                r.num_bytes,
            )
            for r in (first[i] for i in range(self.count()))
        ]

    def note(self, name: str, stream: int) -> None:
        """Record a kernel that the caller would have launched through the driver."""
        error = self._library.stand_in_note(name.encode(), ctypes.c_void_p(stream))
        if error:
            raise RuntimeError(f"the stand-in refuses {name}: {self.refusal()}")

    def refusal(self) -> str:
        """Say why the last refused call was refused; empty where none was."""
        return (ctypes.c_char * 256).in_dll(self._library, "stand_in_refusal").value.decode()

    def on_driver_launch(self, callback: Callable[[DriverLaunch], None] | None) -> None:
        """Call `callback` inside every launch that goes through the driver (Triton's do)."""

        def hook(function: Any, grid: Any, block: Any, shared: int, stream: int, params: Any):
            f = function.contents
            values = tuple(
                ctypes.string_at(params[i], f.param_sizes[i]) for i in range(f.num_params)
            )
            cubin = ctypes.string_at(f.image, f.size)
            callback(
                DriverLaunch(
                    f.name.decode(),
                    tuple(grid[:3]),
                    tuple(block[:3]),
                    shared,
                    stream or 0,
                    values,
                    cubin,
                )  # fmt: skip
            )

        self._hook = _HOOK(hook) if callback else None
        address = ctypes.cast(self._hook, ctypes.c_void_p).value if callback else None
        ctypes.c_void_p.in_dll(self._library, "stand_in_on_launch").value = address


def _header_folders() -> list[str]:
    """Return gcc's arguments: torch's CUDA headers, then Triton's, which has all of them.

    Triton 3.6 brings those of CUDA 12, and a struct of the runtime that torch reads has changed.
    """
    torch = importlib.util.find_spec("torch")
    assert torch is not None and torch.origin is not None, "the stand-in needs torch"
    theirs = Path(torch.origin).parents[1] / "nvidia/cu13/include"
    return [f"-I{theirs}", f"-I{triton_folder() / 'backends/nvidia/include'}"]


def library() -> Path:
    """Return the compiled stand-in; gcc takes two seconds when the sources are new."""
    sources = sorted(path.name for path in _SOURCES.glob("*.c"))
    command = [
        "gcc", "-shared", "-fPIC", "-O1", "-w", "-fno-strict-aliasing", *_header_folders(),
        f"-Wl,-soname,{_LIBRARY}", *sources, "-ldl", "-lpthread",
    ]  # fmt: skip
    digest = hashlib.sha256(" ".join(command).encode())
    for name in [*sources, "stand_in.h"]:
        digest.update((_SOURCES / name).read_bytes())
    folder = Path(tempfile.gettempdir(), f"stand-in-gpu-{os.getuid()}-{digest.hexdigest()[:16]}")
    path = folder / _LIBRARY
    if not path.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        partial = folder / f"{os.getpid()}.so"
        subprocess.run([*command, "-o", str(partial)], check=True, cwd=_SOURCES)
        partial.replace(path)
    return path


def _settings(name: str, path: Path) -> dict[str, str]:
    card = CARDS[name]
    attributes = ",".join(f"{key}={value}" for key, value in card.attributes.items())
    # A card that torch's own cuDNN has dropped reports an older one, which torch is to take.
    has_older_cudnn = card.capability < (7, 5)
    return {
        "PYTORCH_SKIP_CUDNN_COMPATIBILITY_CHECK": "1" if has_older_cudnn else "0",
        "STAND_IN_GPU": f"stand-in {name}|{card.memory_bytes}|{attributes}",
        # Triton links its own C module against the driver that it finds here.
        "TRITON_LIBCUDA_PATH": str(path.parent),
        # Processes that this one starts have the same GPU.
        "LD_PRELOAD": str(path),
    }


def environment(name: str) -> dict[str, str]:
    """Return this process's environment, changed so that a command started in it has the GPU."""
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return inherited | _settings(name, library())


def load(name: str) -> Gpu:
    """Make this process, and those it starts from now on, see the GPU `name`.

    In a process that was started with `environment(name)` it returns the GPU that is there.
    Raises RuntimeError where torch has been imported without it.
    """
    inherited = os.environ.get("STAND_IN_GPU")
    if inherited is None and "torch" in sys.modules:
        raise RuntimeError("the stand-in has to be loaded before torch is imported")
    # Not one that other sources make: two in a process would share a record and not its size.
    path = library() if inherited is None else Path(os.environ["TRITON_LIBCUDA_PATH"], _LIBRARY)
    settings = _settings(name, path)
    if inherited is not None and inherited != settings["STAND_IN_GPU"]:
        raise RuntimeError(f"this process has another stand-in: {inherited.split('|')[0]}")
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.update(settings)
    return Gpu(ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL))
