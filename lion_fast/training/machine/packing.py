"""What several runs at a time on one GPU gain from NVIDIA's Multi-Process Service (MPS)."""

import os
import shutil
from pathlib import Path

_DAEMON = "nvidia-cuda-mps-control"


def mps_status() -> str:
    """Return one line: whether MPS is there, and how to start it.

    Without MPS the processes on a GPU take turns (time slices); with it, their kernels may run at
    the same time. Whether the daemon runs is judged by the `control` pipe that it keeps in
    CUDA_MPS_PIPE_DIRECTORY (/tmp/nvidia-mps where that is unset); a daemon that was killed may
    leave the pipe behind, hence "found" and not "runs".
    Source: NVIDIA, Multi-Process Service, Appendix "Environment Variables".
    """
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")
    if (pipes / "control").exists():
        return f"found in {pipes}: kernels of `study --jobs K` may run at the same time"
    if shutil.which(_DAEMON) is None:
        return f"not installed ({_DAEMON} is not on PATH): `study --jobs K` takes turns on a GPU"
    return f"off: `study --jobs K` takes turns on a GPU; `{_DAEMON} -d` lets kernels overlap"
