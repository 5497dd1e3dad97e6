"""The modes in which initialisers run a model, and what a model must have before they do."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from lion_fast.errors import UserError
from lion_fast.init.state import untouched


def unwrapped(model: nn.Module) -> nn.Module:
    """Return what DataParallel, DistributedDataParallel or torch.compile has wrapped."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def check_materialised(model: nn.Module) -> None:
    """Raise UserError if a parameter or buffer has no values yet: lazy layers, the meta device."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise UserError(f"{name!r} has no shape yet (a lazy layer): run one batch first")
        if tensor.is_meta:
            raise UserError(
                f"{name!r} is on the meta device and holds no values: "
                "move the model with to_empty(device=...) first"
            )


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Switch the caller's autocast off, and let it forget the weights that it has cast before.

    autocast keeps its cast of a weight until the outermost context ends, whatever is written into
    the weight meanwhile.
    """
    parameter = next(model.parameters(), torch.empty(0))
    try:
        with torch.autocast(parameter.device.type, enabled=False):
            yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch as in training, but with dropout off and running statistics untouched.

    The model's own modes return afterwards.
    """
    training = [(module, module.training) for module in model.modules()]
    tracking = [
        (module, module.track_running_stats)
        for module in model.modules()
        if isinstance(module, _NormBase)
    ]
    try:
        model.train()
        for module, _ in training:
            if isinstance(module, _DropoutNd):
                module.eval()
        for norm, _ in tracking:
            norm.track_running_stats = False
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for norm, mode in tracking:
            norm.track_running_stats = mode


@contextmanager
def without_a_trace(model: nn.Module) -> Iterator[None]:
    """Run the model inside as in training, with gradients, and leave it and the RNGs as they were.

    Every parameter takes part in the graph, frozen ones too. What is written into a parameter is
    the caller's to restore. Compiled parts run uncompiled. Synchronised batch norms use their
    running statistics, since other ranks may not take part.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(full_precision(model))
        stack.enter_context(untouched(model))
        stack.enter_context(batch_statistics(model))
        stack.enter_context(_thawed(model))
        if _has_compiled_parts(model):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in model.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.eval()
        yield


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation mode; the model's own modes return afterwards."""
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in training:
            module.training = mode


@contextmanager
def _thawed(model: nn.Module) -> Iterator[None]:
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    frozen = [parameter for parameter in frozen if not parameter.is_inference()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _has_compiled_parts(model: nn.Module) -> bool:
    return any(
        module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
        for module in model.modules()
    )
