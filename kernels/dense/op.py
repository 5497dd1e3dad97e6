"""dense_backbone: DenseNet-DS from images to pooled taps, in about fifty launches a training step.

    x        = conv3x3(images)                                      the stem
    block    : layer u appends conv3x3(relu(norm_u(channels so far)))
    between  : x = avgpool2(conv1x1(relu(norm(block's channels))))
    taps     = mean over positions of block 1's channels, block 2's, relu(norm(block 3's))

Training mode. Every norm takes the batch's statistics, which the readers of a channel share: they
are made once, where the channel is made (`statistics.py`). A block lives in one buffer, to which a
layer adds its channels; nothing is copied. The backward pulls every channel's gradient once from
all its readers (`backward.py`). Weights stay ordinary parameters; one launch packs them.

Maps are rounded to their dtype once, when they are written; statistics, sums of products and
gradients of parameters are fp32. The same inputs give the same bits: no atomics, fixed orders.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..dispatch import Impl, resolve_impl
from .launch import (
    DenseForward,
    empty_forward,
    forward_launches,
    pack_launch,
    running_statistics_launch,
)
from .launch_backward import backward_launches, gradient_size, gradient_views
from .plan import NUM_BLOCKS, Plan, dense_obstacle


def _plan(images: Tensor, convs: Sequence[Tensor], block_layers: int) -> Plan:
    batch, _, height, width = images.shape
    return Plan(batch, height, width, convs[0].shape[0], convs[1].shape[0], block_layers)


def _channels_last(convs: Sequence[Tensor]) -> bool:
    """Return the 3x3 weights' memory format, which their gradients take as well."""
    return not convs[1].is_contiguous()


def _in_format(convs: Sequence[Tensor], channels_last: bool) -> list[Tensor]:
    memory = torch.channels_last if channels_last else torch.contiguous_format
    return [conv.contiguous(memory_format=memory) for conv in convs]


@torch.library.custom_op("lion_fast::dense_backbone", mutates_args=())
def _dense_backbone(
    images: Tensor,
    convs: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    block_layers: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the fields of `DenseForward`."""
    plan = _plan(images, convs, block_layers)
    out = empty_forward(plan, images)
    channels_last = _channels_last(convs)
    packed = _in_format(convs, channels_last)
    launches = [
        pack_launch(plan, out, packed, gammas, betas, channels_last),
        *forward_launches(plan, out, images, eps),
    ]
    for launch in launches:
        launch.run(device_of=images)
    return out


@_dense_backbone.register_fake
def _(images, convs, gammas, betas, block_layers, eps):
    return empty_forward(_plan(images, convs, block_layers), images)


@torch.library.custom_op("lion_fast::dense_backbone_backward", mutates_args=())
def _dense_backbone_backward(
    d_pooled: Sequence[Tensor],
    images: Tensor,
    saved: Sequence[Tensor],
    stem_channels: int,
    growth_rate: int,
    block_layers: int,
    eps: float,
    channels_last: bool,
) -> Tensor:
    """Return the flat fp32 gradient of all parameters (`launch_backward.py` says its order).

    saved: the fields of `DenseForward`.
    """
    batch, _, height, width = images.shape
    plan = Plan(batch, height, width, stem_channels, growth_rate, block_layers)
    grads = torch.empty(gradient_size(plan), dtype=torch.float32, device=images.device)
    rows = [d if d.stride(1) == 1 else d.contiguous() for d in d_pooled]
    for launch in backward_launches(
        plan, grads, rows, images, DenseForward(*saved), eps, channels_last
    ):
        launch.run(device_of=images)
    return grads


def _empty_gradient(
    d_pooled, images, saved, stem_channels, growth_rate, block_layers, eps, channels_last
):
    """Return a flat gradient without values: the fake of every op that computes one."""
    batch, _, height, width = images.shape
    plan = Plan(batch, height, width, stem_channels, growth_rate, block_layers)
    return torch.empty(gradient_size(plan), dtype=torch.float32, device=images.device)


_dense_backbone_backward.register_fake(_empty_gradient)


@torch.library.custom_op(
    "lion_fast::dense_running_statistics_", mutates_args=("running_means", "running_vars")
)
def _dense_running_statistics_(
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    statistics: Tensor,
    sizes: Sequence[int],
    momentum: float,
) -> None:
    """Move running statistics towards `DenseForward.statistics`. sizes: the fields of `Plan`."""
    running_statistics_launch(Plan(*sizes), statistics, running_means, running_vars, momentum).run(
        device_of=statistics
    )


@_dense_running_statistics_.register_fake
def _(running_means, running_vars, statistics, sizes, momentum):
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    images, convs, _, _, ctx.block_layers, ctx.eps = inputs
    ctx.save_for_backward(images, *output)
    ctx.mark_non_differentiable(*output[NUM_BLOCKS:])
    ctx.set_materialize_grads(False)  # else zeros of the size of all maps are made
    ctx.stem_channels, ctx.growth_rate = convs[0].shape[0], convs[1].shape[0]
    ctx.channels_last = _channels_last(convs)


def _backward_by(flat_gradient: Callable[..., Tensor]) -> Callable[..., tuple[Any, ...]]:
    """Return the autograd of a backbone op whose flat gradient `flat_gradient` computes."""

    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Any, ...]:
        images, *saved = ctx.saved_tensors
        d_pooled = [
            torch.zeros_like(pooled) if d is None else d
            for pooled, d in zip(saved[:NUM_BLOCKS], d_outputs[:NUM_BLOCKS], strict=True)
        ]
        batch, _, height, width = images.shape
        sizes = ctx.stem_channels, ctx.growth_rate, ctx.block_layers
        flat = flat_gradient(d_pooled, images, saved, *sizes, ctx.eps, ctx.channels_last)
        grads = gradient_views(Plan(batch, height, width, *sizes), flat, ctx.channels_last)
        wanted = [
            [g if needed else None for g, needed in zip(group, needs, strict=True)]
            for group, needs in zip(grads, ctx.needs_input_grad[1:4], strict=True)
        ]
        return None, *wanted, None, None

    return backward


_dense_backbone.register_autograd(
    _backward_by(_dense_backbone_backward), setup_context=_setup_context
)


def _check(
    images: Tensor,
    convs: Sequence[Tensor],
    norms: dict[str, Sequence[Tensor]],
    block_layers: int,
) -> Plan:
    """Return the plan of these inputs; raise ValueError where they do not fit each other."""
    count = NUM_BLOCKS * block_layers + NUM_BLOCKS
    if block_layers < 1:
        raise ValueError(f"block_layers is {block_layers}: give at least 1")
    for name, tensors in {"convs": convs, **norms}.items():
        if len(tensors) != count:
            raise ValueError(
                f"{len(tensors)} {name} for {block_layers} layers a block: give {count}"
            )
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ValueError(f"images is {tuple(images.shape)}: give (B, 3, height, width)")
    plan = _plan(images, convs, block_layers)
    expected: list[tuple[str, Tensor, tuple[int, ...]]] = [
        (f"convs[{i}]", conv, shape)
        for i, (conv, shape) in enumerate(zip(convs, plan.conv_shapes, strict=True))
    ]
    for name, tensors in norms.items():
        expected += [
            (f"{name}[{i}]", tensor, (channels,))
            for i, (tensor, channels) in enumerate(zip(tensors, plan.norm_channels, strict=True))
        ]
    for name, tensor, shape in expected:
        if tensor.shape != shape or tensor.device != images.device:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} on {tensor.device}: "
                f"give {shape} on {images.device}"
            )
    return plan


def _check_kernels(convs: Sequence[Tensor], norms: dict[str, Sequence[Tensor]]) -> None:
    """Raise ValueError on parameters that the kernels would misread."""
    for name, tensors in {"convs": convs, **norms}.items():
        for i, tensor in enumerate(tensors):
            if tensor.dtype != torch.float32 or (tensor.ndim == 1 and not tensor.is_contiguous()):
                raise ValueError(
                    f"{name}[{i}] is {tensor.dtype} with strides {tensor.stride()}: "
                    "the kernels take contiguous float32; take impl='torch'"
                )


def dense_backbone(
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
    impl: Impl = "auto",
) -> list[Tensor]:
    """Compute DenseNet-DS's pooled taps in training mode: [(B, C_1), (B, C_2), (B, C_3)] fp32.

    images: (B, 3, H, W); channels_last in memory, else a copy is made. Their dtype is the maps'.
    convs: the fp32 weights in forward order: stem, block 1's layers, transition 1, block 2's,
    transition 2, block 3's. gammas, betas: the norms in forward order, the last one before the
    final pool. running_means, running_vars: theirs, updated in place by `momentum` and the unbiased
    variance, as `torch.nn.BatchNorm2d` does.

    Gradients go to convs, gammas and betas, none to images. With Triton they are views of one flat
    fp32 tensor, a weight's in the memory format of the 3x3 weights; differentiating them again
    raises. `dense_obstacle` says which sizes and GPUs the kernels take; impl="auto" takes the
    reference elsewhere, and impl="triton" raises.

    Raises ValueError on inputs that do not fit each other.
    """
    norms = {
        "gammas": gammas, "betas": betas,
        "running_means": running_means, "running_vars": running_vars,
    }  # fmt: skip
    plan = _check(images, convs, norms, block_layers)
    obstacle = None
    if resolved := resolve_impl(impl, images.device, images.dtype) == "triton":
        obstacle = dense_obstacle(
            **plan._asdict(), capability=_capability(images.device), dtype=images.dtype
        )
    if not resolved or (obstacle and impl == "auto"):
        from .reference import dense_backbone_ref

        return dense_backbone_ref(
            images, convs, gammas, betas, running_means, running_vars,
            block_layers=block_layers, momentum=momentum, eps=eps,
        )  # fmt: skip
    if obstacle:
        raise ValueError(f"impl='triton' cannot run here: {obstacle}")
    _check_kernels(convs, norms)
    images = images.detach().contiguous(memory_format=torch.channels_last)
    *pooled, _, statistics, _, _ = _dense_backbone(images, convs, gammas, betas, block_layers, eps)
    _dense_running_statistics_(running_means, running_vars, statistics, list(plan), momentum)
    return pooled


def _capability(device: torch.device) -> tuple[int, int] | None:
    if device.type != "cuda":
        return None
    gpu = torch.cuda.get_device_properties(device)  # torch.compile folds it into a constant
    return gpu.major, gpu.minor
