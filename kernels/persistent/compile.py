"""Compile the sources in `csrc/` by NVRTC, which torch's wheels bring, and keep the cubins on disk.

`cuda.bindings` calls it, and the driver: torch's wheels for CUDA 13 require it, torch itself loads
the same NVRTC, and it is a thin layer over the C interface, which does not change. `cuda.core`
would be one more package to install and its interface still moves.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch  # before NVRTC: loads the library that its wheel brings

_SOURCES = Path(__file__).with_name("csrc")
FILES = ("pack.cu", "forward.cu", "backward.cu")


class CompileError(RuntimeError):
    """NVRTC refused a source; says what it printed."""


def compiler_obstacle(capability: tuple[int, int] | None = None) -> str | None:
    """Return why nothing can be compiled here, in one line, or None.

    capability: of a GPU of this machine, whose driver has to load what is compiled for it.
    """
    if importlib.util.find_spec("cuda") is None or not importlib.util.find_spec("cuda.bindings"):
        return (
            "the package cuda-bindings is not installed, which brings NVRTC and the driver's calls"
        )
    from cuda.bindings import nvrtc

    try:
        status, *_ = nvrtc.nvrtcVersion()
    except RuntimeError as error:  # the bindings found no library
        return f"NVRTC was not found: {str(error).splitlines()[0]}"
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        return f"NVRTC does not answer: {status}"
    return None if capability is None else _gpu_obstacle(capability)


def _gpu_obstacle(capability: tuple[int, int]) -> str | None:
    from cuda.bindings import driver, nvrtc

    major, minor = _nvrtc_version()
    _status, known = nvrtc.nvrtcGetSupportedArchs()
    if 10 * capability[0] + capability[1] not in known:
        return f"NVRTC {major}.{minor} compiles nothing for sm_{capability[0]}{capability[1]}"
    # Of the same major version every driver loads what NVRTC compiles.
    _status, version = driver.cuDriverGetVersion()
    if version // 1000 < major:
        return (
            f"the driver runs CUDA {version // 1000}.{version % 1000 // 10}, and NVRTC is of CUDA "
            f"{major}.{minor}: update the driver"
        )
    return None


def cache_folder() -> Path:
    """Return the folder of compiled kernels: that of Triton's, or ~/.cache, with our name in it."""
    base = os.environ.get("TRITON_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "lion_fast_persistent"


def definitions_of(sizes: Mapping[str, int], dtype: torch.dtype) -> dict[str, int]:
    """Return what the sources are compiled with. sizes: `PersistentPlan.definitions`."""
    return {**sizes, "HALF_IS_FP16": int(dtype == torch.float16)}


def missing(definitions: Mapping[str, int], capability: tuple[int, int]) -> list[str]:
    """Return those of FILES whose cubin `compiled` would have to make."""
    return [file for file in FILES if not _job(file, definitions, capability).path.exists()]


def compiled(definitions: Mapping[str, int], capability: tuple[int, int]) -> dict[str, bytes]:
    """Return the cubin of each of FILES, compiled where it is not kept yet, side by side.

    Raises CompileError where a source does not compile, and OSError where the cache folder cannot
    be written.
    """
    with ThreadPoolExecutor(len(FILES)) as pool:  # NVRTC holds no lock of Python's
        cubins = pool.map(lambda file: compiled_file(file, definitions, capability), FILES)
        return dict(zip(FILES, cubins, strict=True))


class _Job(NamedTuple):
    source: bytes
    headers: dict[str, bytes]
    options: list[str]
    path: Path
    """of the cubin, once it is there"""


def _job(file: str, definitions: Mapping[str, int], capability: tuple[int, int]) -> _Job:
    options = [
        f"--gpu-architecture=sm_{capability[0]}{capability[1]}",
        "--std=c++17",
        "--generate-line-info",  # changes no instruction; profilers and bench/gpu name lines by it
        *(f"-D{name}={value}" for name, value in definitions.items()),
    ]
    headers = {path.name: path.read_bytes() for path in sorted(_SOURCES.glob("*.h"))}
    source = (_SOURCES / file).read_bytes()
    version = importlib.metadata.version("cuda-bindings"), _nvrtc_version()
    key = repr((file, source, headers, options, version)).encode()
    digest = hashlib.sha256(key).hexdigest()[:32]
    return _Job(source, headers, options, cache_folder() / f"{Path(file).stem}-{digest}.cubin")


def compiled_file(file: str, definitions: Mapping[str, int], capability: tuple[int, int]) -> bytes:
    """Return the cubin of a source: of `csrc/`, or the path of another that includes from there.

    Raises as `compiled`.
    """
    source, headers, options, path = _job(file, definitions, capability)
    if path.exists():
        return path.read_bytes()
    cubin = _compile(file, source, headers, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is whole: another process may read it at any time.
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as unfinished:
        unfinished.write(cubin)
    os.replace(unfinished.name, path)
    return cubin


def _nvrtc_version() -> tuple[int, int]:
    from cuda.bindings import nvrtc

    _status, major, minor = nvrtc.nvrtcVersion()
    return major, minor


def _compile(file: str, source: bytes, headers: Mapping[str, bytes], options: list[str]) -> bytes:
    from cuda.bindings import nvrtc

    success = nvrtc.nvrtcResult.NVRTC_SUCCESS

    def value(result: tuple[Any, ...]) -> Any:
        if result[0] != success:
            raise CompileError(f"NVRTC: {result[0].name} with {file} for {options[0]}")
        return result[1] if len(result) > 1 else None

    names = [name.encode() for name in headers]
    program = value(
        nvrtc.nvrtcCreateProgram(source, file.encode(), len(headers), list(headers.values()), names)
    )
    try:
        flags = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
        if status != success:
            log = b" " * value(nvrtc.nvrtcGetProgramLogSize(program))
            value(nvrtc.nvrtcGetProgramLog(program, log))
            text = log.rstrip(b"\0").decode(errors="replace").strip()
            raise CompileError(f"{file} for {options[0]}: {text or status.name}")
        cubin = b" " * value(nvrtc.nvrtcGetCUBINSize(program))
        value(nvrtc.nvrtcGetCUBIN(program, cubin))
        return cubin
    finally:
        nvrtc.nvrtcDestroyProgram(program)
