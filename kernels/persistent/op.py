"""persistent_backbone: `dense_backbone` in two launches, one image a program, and one that packs.

The network, its numbers and its parameters are those of `..dense.op`, whose reference is this op's
truth too. Here an image never leaves the processor that owns it; between processors pass a layer's
batch statistics alone (`csrc/forward.cu`, `csrc/backward.cu`). Where there are more images than
processors, or one does not fit a processor's memory, each goes through its images in every phase,
with the same bits.

Maps are rounded to their dtype once, when they are written; statistics, sums of products, raw
gradients and gradients of parameters are fp32. The same inputs give the same bits.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..dense.launch_backward import gradient_size
from ..dense.op import (
    _backward_by,
    _channels_last,
    _check,
    _check_kernels,
    _dense_running_statistics_,
    _empty_gradient,
    _in_format,
    _plan,
    _setup_context,
)
from ..dense.plan import Plan
from .compile import compiled, compiler_obstacle, definitions_of, missing
from .launch import (
    PersistentForward,
    backward_launch,
    empty_exchange,
    empty_forward,
    forward_launch,
    pack_launch,
    tables_on,
)
from .pack import num_halves
from .plan import PersistentPlan, fitted, persistent_obstacle


@torch.library.custom_op("lion_fast::persistent_backbone", mutates_args=())
def _persistent_backbone(
    images: Tensor,
    convs: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    block_layers: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the fields of `PersistentForward`."""
    plan = _plan(images, convs, block_layers)
    # Asked here, where Dynamo does not look: to keep its eyes off costs an import of all of it.
    if obstacle := persistent_obstacle_on(images.device, tuple(plan), images.dtype):
        raise ValueError(f"the persistent backbone cannot run here: {obstacle}")
    channels_last = _channels_last(convs)
    table = tables_on(plan, channels_last, images.device)
    out = empty_forward(plan, images, table.halves.numel())
    exchange = empty_exchange(plan, images)
    parameters = _in_format(convs, channels_last), gammas, betas
    sizes = _fitted(plan, images.device)
    pack_launch(sizes, table, out, exchange, *parameters).run()
    forward_launch(sizes, out, exchange, images, eps).run()
    return out


@_persistent_backbone.register_fake
def _(images, convs, gammas, betas, block_layers, eps):
    plan = _plan(images, convs, block_layers)
    return empty_forward(plan, images, num_halves(plan))


@torch.library.custom_op("lion_fast::persistent_backbone_backward", mutates_args=())
def _persistent_backbone_backward(
    d_pooled: Sequence[Tensor],
    images: Tensor,
    saved: Sequence[Tensor],
    stem_channels: int,
    growth_rate: int,
    block_layers: int,
    eps: float,
    channels_last: bool,
) -> Tensor:
    """Return the flat fp32 gradient of all parameters, in `dense_backbone_backward`'s order.

    saved: the fields of `PersistentForward`.
    """
    batch, _, height, width = images.shape
    plan = Plan(batch, height, width, stem_channels, growth_rate, block_layers)
    table = tables_on(plan, channels_last, images.device)
    grads = torch.empty(gradient_size(plan), dtype=torch.float32, device=images.device)
    rows = [d.contiguous() for d in d_pooled]
    sizes = _fitted(plan, images.device)
    backward_launch(sizes, table, grads, rows, images, PersistentForward(*saved), eps).run()
    return grads


_persistent_backbone_backward.register_fake(_empty_gradient)
_persistent_backbone.register_autograd(
    _backward_by(_persistent_backbone_backward), setup_context=_setup_context
)


def _gpu_of(device: torch.device) -> dict[str, Any] | None:
    """Return what `persistent_obstacle` asks of a GPU; None of another device."""
    if device.type != "cuda":
        return None
    gpu = torch.cuda.get_device_properties(device)
    return {
        "capability": (gpu.major, gpu.minor),
        "processors": gpu.multi_processor_count,
        "shared_bytes": gpu.shared_memory_per_block_optin,  # type: ignore[attr-defined]
    }


def _fitted(plan: Plan, device: torch.device) -> PersistentPlan:
    gpu = _gpu_of(device)
    assert gpu is not None, "refused before"
    return fitted(plan, processors=gpu["processors"], shared_bytes=gpu["shared_bytes"])


def persistent_obstacle_on(
    device: torch.device, sizes: tuple[int, ...], dtype: torch.dtype
) -> str | None:
    """Return why the persistent kernels cannot run a network on `device`, or None.

    sizes: the fields of `Plan`.
    """
    gpu = _gpu_of(device)
    if gpu is None:
        return f"they need a CUDA GPU, and the device is {device.type}"
    return persistent_obstacle(Plan(*sizes), dtype, **gpu) or persistent_machine_obstacle(device)


def persistent_machine_obstacle(device: torch.device) -> str | None:
    """Return why this machine compiles or loads no persistent kernel for `device`, or None.

    It is no fault of the network: another driver or NVRTC is needed, which the line names.
    """
    gpu = _gpu_of(device)
    return compiler_obstacle(None if gpu is None else gpu["capability"])


def persistent_compilation(
    device: torch.device, sizes: tuple[int, ...], dtype: torch.dtype
) -> Callable[[], object] | None:
    """Return what compiles a network's kernels for `device`; None where they are on the disk.

    sizes: the fields of `Plan`, of a network that `persistent_obstacle_on` takes.
    """
    gpu = _gpu_of(device)
    assert gpu is not None, "refused before"
    definitions = definitions_of(_fitted(Plan(*sizes), device).definitions, dtype)
    if not missing(definitions, gpu["capability"]):
        return None
    return functools.partial(compiled, definitions, gpu["capability"])


def persistent_backbone(
    images: Tensor,
    convs: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    *,
    block_layers: int,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[Tensor]:
    """Compute what `dense_backbone` computes, from the same arguments, by the persistent kernels.

    Raises ValueError where they cannot run, with `persistent_obstacle_on`'s reason, and on inputs
    that do not fit each other.
    """
    norms = {
        "gammas": gammas, "betas": betas,
        "running_means": running_means, "running_vars": running_vars,
    }  # fmt: skip
    plan = _check(images, convs, norms, block_layers)
    _check_kernels(convs, norms)
    images = images.detach().contiguous(memory_format=torch.channels_last)
    *pooled, _, statistics, _, _ = _persistent_backbone(
        images, convs, gammas, betas, block_layers, eps
    )
    _dense_running_statistics_(running_means, running_vars, statistics, list(plan), momentum)
    return pooled
