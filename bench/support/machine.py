"""What a result was measured on: hardware, driver, clocks, versions, commit. Changes no setting."""

import subprocess
from typing import Any

import torch

from lion_fast.training.machine.environment import environment

_GPU_FACTS = ("gpu", "compute_capability", "cudnn", "driver")
SPEED_FACTS = (
    *("gpu", "driver", "power_limit_w", "cuda", "cudnn", "torch", "triton", "dali", "python"),
    *("cpu_model", "num_threads", "device"),
)
"""Keys of `machine_info` whose difference makes two results not comparable as they stand."""
_SMI_FIELDS = {
    "sm_clock_mhz": "clocks.sm",
    "max_sm_clock_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_limit_w": "power.limit",
}


def machine_info(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Return what every result file says of its machine; GPU facts are None on the CPU.

    commit: the hash to state where git cannot tell; `-dirty` at its end marks uncommitted changes.
    """
    facts: dict[str, Any] = {**dict.fromkeys(_GPU_FACTS), **environment(device)}
    facts["cpu_model"] = facts.pop("cpu")
    facts["num_threads"] = facts.pop("cpu_threads")
    named = facts["commit"] or commit
    facts["commit"] = named and named.removesuffix("-dirty")
    facts["dirty"] = named and named.endswith("-dirty")
    return {**facts, **_clocks(device), "device": device.type}


def _clocks(device: torch.device) -> dict[str, float | None]:
    """Read clocks and power limit; None for each that nvidia-smi does not tell."""
    unknown: dict[str, float | None] = dict.fromkeys(_SMI_FIELDS)
    if device.type != "cuda":
        return unknown
    # CUDA_VISIBLE_DEVICES renumbers the devices; the uuid stays.
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = [
        "nvidia-smi",
        f"--id={name}",
        f"--query-gpu={','.join(_SMI_FIELDS.values())}",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return unknown
    return parse_clocks(done.stdout)


def parse_clocks(line: str) -> dict[str, float | None]:
    """Turn nvidia-smi's line of values into numbers; None for words such as `[N/A]`."""
    values = [word.strip() for word in line.split(",")]
    return {
        field: float(value) if value.replace(".", "", 1).isdigit() else None
        for field, value in zip(_SMI_FIELDS, values, strict=True)
    }
