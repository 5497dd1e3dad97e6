"""What decides bf16, fp16, tf32 and fp32: what is asked for, and what a device has units for."""

import torch

from lion_fast.errors import UserError
from lion_fast.training.machine.choice import Choice
from lion_fast.training.machine.device import capability


def compute_dtype(precision: str) -> torch.dtype:
    """Return the dtype of convolutions in that precision, and of the images fed to them."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def precision_refusal(precision: str, device: torch.device) -> str | None:
    """Return why `device` cannot compute in that precision, with a remedy; None where it can."""
    if device.type == "cpu":
        if precision in ("tf32", "fp16"):
            return f"precision {precision} needs a CUDA GPU: on the CPU take fp32 or bf16"
        return None
    major, minor = capability(device)
    if precision in ("bf16", "tf32") and major < 8:
        return (
            f"precision {precision} needs compute capability 8.0 and this GPU has {major}.{minor}:"
            " take fp16 or fp32"
        )
    return None


def choose_precision(asked: str, device: torch.device, *, cpu_bf16: bool) -> Choice:
    """Return what precision `asked` means on `device`; raise UserError where it cannot run.

    cpu_bf16: whether `auto` may take bf16 on a CPU that has instructions for it.
    """
    refusal = precision_refusal(asked, device)
    if refusal is not None:
        raise UserError(refusal)
    if asked != "auto":
        return Choice(asked, "asked for")
    if device.type == "cpu":
        return _cpu_precision(cpu_bf16)
    major, minor = capability(device)
    if major >= 8:
        return Choice("bf16", f"compute capability {major}.{minor} has bf16 tensor cores")
    if major >= 7:
        return Choice(
            "fp16", f"compute capability {major}.{minor} has fp16 but no bf16 tensor cores"
        )
    return Choice("fp32", f"compute capability {major}.{minor} has no tensor cores")


def _cpu_precision(bf16_allowed: bool) -> Choice:
    instructions = cpu_bf16_instructions()
    if bf16_allowed and instructions:
        return Choice("bf16", f"this CPU has {instructions}, and cpu_bf16 allows it")
    if bf16_allowed:
        return Choice("fp32", "this CPU has neither AVX512-BF16 nor AMX, and emulates bf16")
    if instructions:
        return Choice("fp32", f"{instructions} computes in bf16 if cpu_bf16 allows it")
    return Choice("fp32", "the CPU's native arithmetic")


def cpu_bf16_instructions() -> str | None:
    """Return the name of this CPU's instructions for products in bf16, as torch sees them."""
    # Not mkldnn's question whether bf16 is supported: it is, emulated, wherever AVX512 is.
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return "AVX512-BF16"
    return None
