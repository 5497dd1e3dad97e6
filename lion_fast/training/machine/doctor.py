"""doctor(): what this machine has, what `auto` picks here and why, and what is missing."""

import platform

import torch

from lion_fast.config import TrainConfig
from lion_fast.data.dali import dali_status
from lion_fast.kernels import persistent_machine_obstacle
from lion_fast.training.machine.environment import environment
from lion_fast.training.machine.packing import mps_status
from lion_fast.training.machine.resolve import resolve

_V100 = """\
A V100 (compute capability 7.0) needs builds for CUDA 12, the last that support it:
  torch 2.14 or older from PyTorch's own cu126 wheel index, and the extra lion-fast[dali-cu12]
  (package nvidia-dali-cuda120) instead of lion-fast[dali]. Precision there is fp16, not bf16."""


def doctor(config: TrainConfig | None = None) -> list[str]:
    """Return the report as lines: hardware and versions, choices with reasons, advice.

    Raises UserError when `config` asks for what this machine cannot run.
    """
    resolved = resolve(config or TrainConfig())
    facts = environment(resolved.device)
    lines = [
        f"{name:20} {value if value is not None else 'not found'}" for name, value in facts.items()
    ]
    lines.append(f"{'dali runs on':20} {_dali()}")
    if resolved.device.type != "cuda":
        lines.append(f"{'gpu':20} {_no_gpu_reason()}")
    else:
        lines.append(f"{'mps':20} {mps_status()}")
        lines.append(f"{'persistent kernels':20} {_persistent(resolved.device)}")
    lines += ["", "auto picks here:"]
    for name, value in resolved.to_dict().items():
        reason = resolved.reasons.get(name)
        lines.append(f"  {name:10} {value:10}" + (f" {reason}" if reason else ""))
    return [line.rstrip() for line in lines] + ["", *_V100.splitlines()]


def _dali() -> str:
    status = dali_status()
    return f"{status.usable_on or 'nothing'}: {status.reason}"


def _persistent(device: torch.device) -> str:
    """Say whether `--backbone persistent` can be compiled and loaded here."""
    obstacle = persistent_machine_obstacle(device)
    return f"no, fused instead: {obstacle}" if obstacle else "NVRTC and the driver fit"


def _no_gpu_reason() -> str:
    if torch.version.cuda is None:
        return f"this torch build has no CUDA ({torch.__version__} on {platform.system()})"
    return f"none visible to torch (built for CUDA {torch.version.cuda})"
