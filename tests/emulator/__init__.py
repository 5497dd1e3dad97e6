"""CUDA C++ run on a CPU: every thread a fibre, every program alive, every access looked at.

processor.h says what is emulated and what not, checks.cpp what is found. `build` compiles a file of
kernels for it with g++, and `Emulator.run` launches one of them on tensors.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
SOURCES = FOLDER.parent.parent / "kernels" / "persistent" / "csrc"
_RUNTIME = ("processor.cpp", "checks.cpp")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")


class Fault(Exception):
    """What a launch did wrong."""


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("begin", ctypes.c_void_p),
        ("bytes", ctypes.c_long),
        ("name", ctypes.c_char_p),
        ("is_input", ctypes.c_int),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("programs", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("is_checked", ctypes.c_int),
        ("skip_file", ctypes.c_char_p),
        ("skip_line", ctypes.c_int),
        ("num_buffers", ctypes.c_int),
        ("buffers", ctypes.POINTER(_Buffer)),
    ]


class Emulator:
    """A library of kernels that `build` made."""

    def __init__(self, path: Path, is_checked: bool) -> None:
        self._library = ctypes.CDLL(str(path))
        self._is_checked = is_checked

    def constant(self, name: str) -> int:
        """Return the value of a `const int` that the library exports."""
        return ctypes.c_int.in_dll(self._library, name).value

    def run(
        self,
        kernel: str,
        arguments: ctypes.Structure,
        buffers: Mapping[str, torch.Tensor],
        inputs: Sequence[str] = (),
        *,
        programs: int,
        threads: int,
        shared_bytes: int,
        seed: int = 0,
        skip: tuple[str, int] | None = None,
    ) -> None:
        """Launch a kernel; raise Fault on what it does wrong.

        buffers: what it may touch; inputs: those of them that it may only read. Of checked
        libraries, reading of the others what the launch did not write is a fault. seed: of the
        order in which threads run. skip: file and line of a barrier that is left out.
        """
        entries = (_Buffer * len(buffers))(
            *(
                (t.data_ptr(), t.untyped_storage().nbytes(), name.encode(), name in inputs)
                for name, t in buffers.items()
            )
        )
        file, line = skip or (None, 0)
        launch = _Launch(
            programs, threads, shared_bytes, seed, self._is_checked,
            file and file.encode(), line, len(entries), entries,
        )  # fmt: skip
        emulate = getattr(self._library, f"emulate_{kernel}")
        emulate.restype = ctypes.c_char_p
        fault = emulate(ctypes.byref(arguments), ctypes.byref(launch))
        if fault:
            raise Fault(fault.decode())


def _make(command: Sequence[str], target: Path) -> None:
    """Run a compiler; what it makes is renamed when whole, for other processes want it too."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder, target.name)
        subprocess.run([*command, "-o", str(unfinished)], check=True)
        os.replace(unfinished, target)


def _compile(folder: Path, source: Path, options: Sequence[str]) -> Path:
    """Compile a source where its object is not there yet, by what it and all headers say."""
    text = b"".join(
        path.read_bytes() for path in sorted([*FOLDER.iterdir(), *SOURCES.iterdir()])
        if path.suffix in (".h", ".cu", ".cpp")
    )  # fmt: skip
    key = hashlib.sha256(text + " ".join([str(source), *options]).encode()).hexdigest()[:20]
    target = folder / f"{source.stem}-{key}.o"
    if not target.exists():
        command = ["g++", "-std=c++17", "-O2", "-fPIC", "-c", *options]
        _make([*command, f"-I{FOLDER}", f"-I{SOURCES}", str(source)], target)
    return target


def build(
    folder: Path, source: Path, definitions: Mapping[str, int], *, is_checked: bool = False
) -> Emulator:
    """Compile a file of kernels and return it; `folder` keeps what was compiled.

    is_checked: whether every access of a launch is looked at, which takes several times as long.
    """
    defined = [f"-D{name}={value}" for name, value in definitions.items()]
    half = [d for d in defined if d.startswith("-DHALF")]
    objects = [_compile(folder, FOLDER / name, half) for name in _RUNTIME]
    # The calls that it puts before accesses are answered by checks.cpp: nothing of it is linked.
    seen = ["-fsanitize=thread", "-w"] if is_checked else []
    objects.append(_compile(folder, source, [*seen, *defined]))
    name = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:20]
    path = folder / f"{source.stem}-{name}.so"
    if not path.exists():
        _make(["g++", "-shared", "-Wl,-Bsymbolic", *map(str, objects)], path)
    return Emulator(path, is_checked)
