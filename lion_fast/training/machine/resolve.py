"""What `auto` means on this machine, and why: one function for training and `doctor`."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from lion_fast.config import BackboneName, Impl, TrainConfig
from lion_fast.errors import UserError
from lion_fast.kernels import (
    dense_obstacle,
    persistent_machine_obstacle,
    persistent_obstacle_on,
    resolve_impl,
)
from lion_fast.models import STEM_CHANNELS, DeeplySupervised, DenseNetDS
from lion_fast.training.machine.choice import Choice
from lion_fast.training.machine.device import capability, chosen_device, device_reason
from lion_fast.training.machine.precision import choose_precision, compute_dtype


@dataclass(frozen=True)
class Resolved:
    """The config's `auto` fields, decided for one machine."""

    device: torch.device
    engine: Literal["eager", "compile", "graph"]
    loader: Literal["resident", "dali", "workers"]
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    impl: Literal["triton", "torch"]
    backbone: Literal["fused", "persistent", "modules"]
    reasons: dict[str, str]
    modules_at: dict[int, str] = field(default_factory=dict)
    """Why smaller images, by their side in pixels, train by the modules whatever `backbone` is."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of convolutions and of the images fed to them."""
        return compute_dtype(self.precision)

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
    device = chosen_device(config.device)
    choices = {
        "device": Choice(str(device), device_reason(config.device, device)),
        "engine": _engine(config.engine, device),
        "loader": _loader(config.loader, device),
        "precision": choose_precision(config.precision, device, cpu_bf16=config.cpu_bf16),
        "impl": _impl(config.impl, device),
    }
    choices["backbone"] = _backbone(config, device, choices)
    return Resolved(
        device=device,
        **{name: choice.value for name, choice in choices.items() if name != "device"},  # type: ignore[arg-type]
        reasons={name: choice.reason for name, choice in choices.items()},
    )


def _engine(asked: str, device: torch.device) -> Choice:
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
    if capability(device) < (7, 0):
        return Choice("eager", "torch.compile needs compute capability 7.0")
    return Choice("graph", "one launch runs whole training steps")


def _has_cpp_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def _loader(asked: str, device: torch.device) -> Choice:
    if asked != "auto":
        return Choice(asked, "asked for")
    if device.type == "cpu":
        return Choice("resident", "the decoded set is in memory, and nothing is cheaper to read")
    # DALI is to be the default wherever it costs at most 2 % more; bench/bench_loaders.py will say.
    return Choice("resident", "one launch a batch; what dali costs beside it is not measured yet")


def _impl(asked: Impl, device: torch.device) -> Choice:
    try:
        value = resolve_impl(asked, device)
    except ValueError as error:
        raise UserError(str(error)) from None
    if asked != "auto":
        return Choice(value, "asked for")
    if value == "triton":
        return Choice(value, "fused kernels run on this GPU")
    return Choice(value, "Triton needs a CUDA GPU of compute capability 7.0 or newer")


# Where a step of the fused backbone has been timed beside one of the modules: compute capability,
# and what was found (bench/results/gpu). Nothing is known of any other.
_MEASURED = {(9, 0): "1.21 ms a step with it, 2.54 with the modules, measured on an H200"}


# Dynamo of torch 2.11 makes other gradients of the reference's own backward than eager code
# (tests/test_dense_reference.py). 2.14 is right; the versions between have not been asked.
_TRACES_REFERENCE = torch.__version__ >= "2.14"


def _backbone(config: TrainConfig, device: torch.device, choices: dict[str, Choice]) -> Choice:
    dtype = compute_dtype(choices["precision"].value)
    if config.backbone == "modules":
        return Choice("modules", "asked for")
    asked = "fused" if config.backbone == "auto" else config.backbone
    reason = "asked for"
    if asked == "persistent" and device.type == "cuda" and config.impl != "torch":
        # A matter of this machine's installation, not of what was asked for: fused goes on.
        if lacking := persistent_machine_obstacle(device):
            asked, reason = "fused", f"the persistent kernels do not fit this machine: {lacking}"
    obstacle = _obstacle(asked, config, device, dtype)
    is_compiled = choices["engine"].value != "eager"
    if asked == "fused" and config.impl == "torch" and is_compiled and not _TRACES_REFERENCE:
        obstacle = obstacle or "before torch 2.14 impl torch needs engine eager with it"
    if config.backbone != "auto":
        if obstacle:
            raise _refusal(asked, obstacle)
        return Choice(asked, reason)
    if config.arch != "densenet_ds":
        return Choice("modules", f"the fused backbone is densenet_ds's, and this is {config.arch}")
    if device.type == "cpu":
        return Choice("modules", "the fused backbone is for GPUs: its kernels need one")
    major, minor = capability(device)
    if (major, minor) not in _MEASURED:
        return Choice("modules", f"backbone fused is not measured on capability {major}.{minor}")
    for name, timed in (("engine", "graph"), ("precision", "bf16"), ("impl", "triton")):
        if choices[name].value != timed:
            found = f"{name} {choices[name].value}"
            return Choice("modules", f"backbone fused is not measured with {found}")
    if obstacle:
        return Choice("modules", f"the fused backbone cannot run: {obstacle}")
    return Choice("fused", _MEASURED[major, minor])


def _obstacle(
    backbone: str, config: TrainConfig, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Return why a backbone of kernels cannot train the config's network; None if it can."""
    if config.arch != "densenet_ds":
        return f"it is densenet_ds's, and arch is {config.arch}"
    if config.impl == "torch":
        other = "impl torch runs no kernel, and it has no other form (fused has)"
        return None if backbone == "fused" else other
    # The images are not known yet: a side that the kernels take.
    side = 32 if backbone == "fused" else 16
    sizes = (STEM_CHANNELS, config.growth_rate, config.block_layers)
    return _kernel_obstacle(backbone, (side, side), sizes, config.batch_size, device, dtype)


def _refusal(backbone: str, obstacle: str) -> UserError:
    others = "fused or modules" if backbone == "persistent" else "modules"
    return UserError(f"backbone {backbone} cannot run here: {obstacle}; take backbone {others}")


def fit_backbone(
    asked: BackboneName,
    resolved: Resolved,
    model: DeeplySupervised,
    image_size: tuple[int, int],
    batch_size: int,
    *,
    sides: Sequence[int] = (),
    shares_norms: bool = False,
) -> Resolved:
    """Return `resolved` with the backbone that can train this model on these images.

    Where `auto` had taken the fused one and it cannot, the modules do; where it was asked for, this
    raises UserError. At smaller sizes that it cannot, the modules do. asked: the config's.
    image_size: (height, width). sides: of smaller images that training begins with. shares_norms:
    whether batch norms are to see the images of other processes too, which the kernels do not.
    """
    if resolved.backbone == "modules":
        return resolved
    obstacle = _model_obstacle(resolved, model, image_size, batch_size)
    if asked == "auto" and shares_norms:
        obstacle = obstacle or "batch norms are shared among processes"
    if obstacle is None:
        found = {side: _model_obstacle(resolved, model, (side, side), batch_size) for side in sides}
        modules_at = {side: why for side, why in found.items() if why}
        return replace(resolved, modules_at=modules_at) if modules_at else resolved
    if asked != "auto":
        raise _refusal(asked, obstacle)
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
    return _kernel_obstacle(
        resolved.backbone, image_size, sizes, batch_size, resolved.device, resolved.compute_dtype
    )


def _kernel_obstacle(
    backbone: str,
    image_size: tuple[int, int],
    sizes: tuple[int, int, int],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> str | None:
    """Return why the kernels cannot run, None if they can. sizes: stem channels, growth, layers."""
    if backbone == "persistent":
        return persistent_obstacle_on(device, (batch_size, *image_size, *sizes), dtype)
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
        capability=capability(device) if device.type == "cuda" else None,
        dtype=dtype,
    )


def remarks(asked: BackboneName, resolved: Resolved) -> list[str]:
    """Return what a run says first of a choice that its images have a part in, with the reason.

    Or of one that the machine has a part in: fused in persistent's place.
    """
    chosen = asked in ("auto", "persistent") and resolved.device.type != "cpu"
    told = chosen and asked != resolved.backbone
    return [
        *([f"backbone {resolved.backbone}: {resolved.reasons['backbone']}"] if told else []),
        *(f"backbone modules at {side} pixels: {why}" for side, why in resolved.modules_at.items()),
    ]
