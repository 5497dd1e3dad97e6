"""What a result was obtained on: software versions, GPU, CPU, commit."""

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("lion-fast", "torch", "torchvision", "triton", "numpy")
_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


def environment(device: torch.device) -> dict[str, str | int | None]:
    """Return the setting of a run on `device`; absent things are None."""
    facts: dict[str, str | int | None] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_threads": torch.get_num_threads(),
        "commit": commit(),
    }
    facts |= {name: package_version(name) for name in _PACKAGES}
    facts["dali"] = next((f"{name} {v}" for name in _DALI if (v := package_version(name))), None)
    facts["cuda"] = torch.version.cuda
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "compute_capability": f"{major}.{minor}",
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver_version(),
        }
    return facts


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_model() -> str | None:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def driver_version() -> str | None:
    """Return the NVIDIA driver's version, or None where no driver is loaded."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    words = text.splitlines()[0].split()
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def commit() -> str | None:
    """Return this package's own git commit, `-dirty` where edited.

    Outside its own git tree: what the environment variable LION_FAST_COMMIT says, or None. A
    repository that it is merely installed in, or copied into, is not its own.
    """
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    own = Path(*here.parts[-4:]).as_posix()
    tracked = _first_line([*git, "ls-files", "--full-name", "--error-unmatch", here.name])
    head = _first_line([*git, "rev-parse", "HEAD"]) if tracked == own else None
    if head is None:
        return os.environ.get("LION_FAST_COMMIT")
    dirty = _first_line([*git, "status", "--porcelain", "--untracked-files=no"])
    return f"{head}-dirty" if dirty else head


def _first_line(command: list[str]) -> str | None:
    # A git hook, say, tells git by GIT_DIR of a repository that is not asked for here.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, env=env
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None


def seconds_since_process_start() -> float | None:
    """Return wall seconds since this process started, or None where that is not known."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def peak_memory_mib(device: torch.device) -> float:
    """Return peak memory: allocated by torch on a GPU, resident size of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
