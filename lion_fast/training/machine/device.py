"""Which device a run takes: the one that is asked for, or the first GPU, or the CPU."""

import torch

from lion_fast.errors import UserError


def chosen_device(name: str) -> torch.device:
    """Return the device that a config's `device` means here; raise UserError if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device is {name!r}: take auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device is {name!r}: take auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"device is {name!r} but torch sees no CUDA GPU: see `lion-fast doctor`"
            )
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UserError(f"device is {name!r} but this machine has {count} CUDA device(s)")
    return device


def device_reason(asked: str, device: torch.device) -> str:
    """Return why `asked` means `device`, in words."""
    if asked != "auto":
        return "asked for"
    if device.type == "cuda":
        return "the first CUDA GPU that torch sees"
    return "torch sees no CUDA GPU"


def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)
