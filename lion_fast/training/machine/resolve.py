"""What `auto` means on this machine, and why: one function for training and `doctor`."""

import shutil
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.kernels import dense_obstacle, resolve_impl
from lion_fast.models import STEM_CHANNELS, DeeplySupervised, DenseNetDS


class Choice(NamedTuple):
    """A value picked for a config field and the reason."""

    value: str
    reason: str


@dataclass(frozen=True)
class Resolved:
    """The config's `auto` fields, decided for one machine."""

    device: torch.device
    engine: Literal["eager", "compile", "graph"]
    loader: Literal["resident", "dali", "workers"]
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    impl: Literal["triton", "torch"]
    backbone: Literal["fused", "modules"]
    reasons: dict[str, str]

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of convolutions and of the images fed to them."""
        return _compute_dtype(self.precision)

    def to_dict(self) -> dict[str, str]:
        """Return the choices as strings, for summary.json."""
        return {
            "device": str(self.device),
            "engine": self.engine,
            "loader": self.loader,
            "precision": self.precision,
            "impl": self.impl,
            "backbone": self.backbone,
        }


def resolve(config: TrainConfig) -> Resolved:
    """Decide every `auto` of `config` for this machine; raise UserError on what cannot run here."""
    device = _device(config.device)
    choices = {
        "device": Choice(str(device), _device_reason(config.device, device)),
        "engine": _engine(config, device),
        "loader": _loader(config, device),
        "precision": _precision(config, device),
        "impl": _impl(config, device),
    }
    choices["backbone"] = _backbone(config, device, choices)
    return Resolved(
        device=device,
        **{name: choice.value for name, choice in choices.items() if name != "device"},  # type: ignore[arg-type]
        reasons={name: choice.reason for name, choice in choices.items()},
    )


def _compute_dtype(precision: str) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def _device(name: str) -> torch.device:
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


def _device_reason(asked: str, device: torch.device) -> str:
    if asked != "auto":
        return "asked for"
    if device.type == "cuda":
        return "the first CUDA GPU that torch sees"
    return "torch sees no CUDA GPU"


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _engine(config: TrainConfig, device: torch.device) -> Choice:
    asked = config.engine
    if device.type == "cpu":
        if asked == "graph":
            raise UserError("engine graph needs a CUDA GPU: on the CPU take eager or compile")
        if asked == "compile" and not _has_cpp_compiler():
            raise UserError(
                "engine compile needs a C++ compiler on the CPU: install g++ or take eager"
            )
        return Choice(
            "eager" if asked == "auto" else asked,
            "asked for" if asked != "auto" else "on the CPU compiling pays only in long runs",
        )
    if asked != "auto":
        return Choice(asked, "asked for")
    if _capability(device) < (7, 0):
        return Choice("eager", "torch.compile needs compute capability 7.0")
    return Choice("graph", "one launch runs whole training steps")


def _has_cpp_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def precision_refusal(precision: str, device: torch.device) -> str | None:
    """Return why `device` cannot compute in that precision, with a remedy; None where it can."""
    if device.type == "cpu":
        if precision in ("tf32", "fp16"):
            return f"precision {precision} needs a CUDA GPU: on the CPU take fp32 or bf16"
        return None
    major, minor = _capability(device)
    if precision in ("bf16", "tf32") and major < 8:
        return (
            f"precision {precision} needs compute capability 8.0 and this GPU has {major}.{minor}:"
            " take fp16 or fp32"
        )
    return None


def _precision(config: TrainConfig, device: torch.device) -> Choice:
    asked = config.precision
    refusal = precision_refusal(asked, device)
    if refusal is not None:
        raise UserError(refusal)
    if asked != "auto":
        return Choice(asked, "asked for")
    if device.type == "cpu":
        return _cpu_precision(config.cpu_bf16)
    major, minor = _capability(device)
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


def _loader(config: TrainConfig, device: torch.device) -> Choice:
    if config.loader != "auto":
        return Choice(config.loader, "asked for")
    if device.type == "cpu":
        return Choice("resident", "the decoded set is in memory, and nothing is cheaper to read")
    # DALI is to be the default wherever it costs at most 2 % more; bench/bench_loaders.py will say.
    return Choice("resident", "one launch a batch; what dali costs beside it is not measured yet")


def _impl(config: TrainConfig, device: torch.device) -> Choice:
    try:
        value = resolve_impl(config.impl, device)
    except ValueError as error:
        raise UserError(str(error)) from None
    if config.impl != "auto":
        return Choice(value, "asked for")
    if value == "triton":
        return Choice(value, "fused kernels run on this GPU")
    return Choice(value, "Triton needs a CUDA GPU of compute capability 7.0 or newer")


# Where a step of the fused backbone has been timed beside one of the modules: compute capability,
# and what was found (bench/results/gpu). Nothing is known of any other.
_MEASURED = {(9, 0): "1.21 ms a step with it, 2.54 with the modules, measured on an H200"}


def _backbone(config: TrainConfig, device: torch.device, choices: dict[str, Choice]) -> Choice:
    dtype = _compute_dtype(choices["precision"].value)
    if config.backbone == "modules":
        return Choice("modules", "asked for")
    if config.backbone == "fused":
        if obstacle := _fused_obstacle(config, device, dtype):
            raise _fused_refusal(obstacle)
        return Choice("fused", "asked for")
    if config.arch != "densenet_ds":
        return Choice("modules", f"the fused backbone is densenet_ds's, and this is {config.arch}")
    if device.type == "cpu":
        return Choice("modules", "the fused backbone is for GPUs: its kernels need one")
    capability = _capability(device)
    if capability not in _MEASURED:
        major, minor = capability
        return Choice("modules", f"backbone fused is not measured on capability {major}.{minor}")
    for name, timed in (("engine", "graph"), ("precision", "bf16"), ("impl", "triton")):
        if choices[name].value != timed:
            found = f"{name} {choices[name].value}"
            return Choice("modules", f"backbone fused is not measured with {found}")
    if obstacle := _fused_obstacle(config, device, dtype):
        return Choice("modules", f"the fused backbone cannot run: {obstacle}")
    return Choice("fused", _MEASURED[capability])


def _fused_obstacle(config: TrainConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the fused backbone cannot train the config's network, in words; None if it can."""
    if config.arch != "densenet_ds":
        return f"it is densenet_ds's, and arch is {config.arch}"
    if config.impl == "torch":
        return None
    # The images are not known yet: a side that the kernels take.
    sizes = (STEM_CHANNELS, config.growth_rate, config.block_layers)
    return _kernel_obstacle((32, 32), sizes, config.batch_size, device, dtype)


def _fused_refusal(obstacle: str) -> UserError:
    return UserError(f"backbone fused cannot run here: {obstacle}; take backbone modules")


def fit_backbone(
    config: TrainConfig,
    resolved: Resolved,
    model: DeeplySupervised,
    image_size: tuple[int, int],
    batch_size: int,
    *,
    shares_norms: bool = False,
) -> Resolved:
    """Return `resolved` with the backbone that can train this model on these images.

    Where `auto` had taken the fused one and it cannot, the modules do; where it was asked for, this
    raises UserError. image_size: (height, width). shares_norms: whether batch norms are to see the
    images of other processes too, which the kernels do not.
    """
    if resolved.backbone != "fused":
        return resolved
    obstacle = _model_obstacle(resolved, model, image_size, batch_size)
    if config.backbone == "auto" and shares_norms:
        obstacle = obstacle or "batch norms are shared among processes"
    if obstacle is None:
        return resolved
    if config.backbone == "fused":
        raise _fused_refusal(obstacle)
    reasons = resolved.reasons | {"backbone": f"the fused backbone cannot run: {obstacle}"}
    return replace(resolved, backbone="modules", reasons=reasons)


def _model_obstacle(
    resolved: Resolved, model: DeeplySupervised, image_size: tuple[int, int], batch_size: int
) -> str | None:
    if not isinstance(model, DenseNetDS) or type(model).taps is not DenseNetDS.taps:
        return f"it is densenet_ds's, and the model is {type(model).__name__}"
    if resolved.impl == "torch":
        return None
    sizes = (model.stem.out_channels, model.growth_rate, model.block_layers)
    return _kernel_obstacle(image_size, sizes, batch_size, resolved.device, resolved.compute_dtype)


def _kernel_obstacle(
    image_size: tuple[int, int],
    sizes: tuple[int, int, int],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> str | None:
    """Return why the kernels cannot run, None if they can. sizes: stem channels, growth, layers."""
    try:
        resolve_impl("triton", device, dtype)
    except ValueError as error:
        reason = str(error).removeprefix("impl='triton' cannot run here: ").partition(";")[0]
        return f"{reason} (impl torch runs its reference)"
    return dense_obstacle(
        batch=batch_size,
        height=image_size[0],
        width=image_size[1],
        stem_channels=sizes[0],
        growth_rate=sizes[1],
        block_layers=sizes[2],
        capability=_capability(device) if device.type == "cuda" else None,
        dtype=dtype,
    )


def remarks(config: TrainConfig, resolved: Resolved) -> list[str]:
    """Return what a run says first of a choice that its images have a part in, with the reason."""
    if config.backbone != "auto" or resolved.device.type == "cpu":
        return []
    return [f"backbone {resolved.backbone}: {resolved.reasons['backbone']}"]
