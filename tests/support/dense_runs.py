"""Small DenseNet-DS with its backbone run by modules and by kernels, each once for all tests."""

import copy
import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lion_fast.kernels.dense import dense_backbone
from lion_fast.models import densenet_ds

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Setting(NamedTuple):
    """Sizes of a run. On a GPU maps are two bytes wide, so fp32 settings are the interpreter's."""

    batch: int = 2
    height: int = 16
    width: int = 16
    stem_channels: int = 24
    growth_rate: int = 8
    block_layers: int = 1
    channels_last: bool = False
    dtype: torch.dtype = torch.float32


class Parameters(NamedTuple):
    convs: list[Tensor]
    gammas: list[Tensor]
    betas: list[Tensor]
    running_means: list[Tensor]
    running_vars: list[Tensor]

    @property
    def learned(self) -> list[Tensor]:
        return [*self.convs, *self.gammas, *self.betas]


class Run(NamedTuple):
    pooled: list[Tensor]
    grads: list[Tensor]
    """of Parameters.learned"""
    running: list[Tensor]
    """running means, then running variances"""


def parameters_of(model) -> Parameters:
    convs, norms = [model.stem.weight], []
    for i, block in enumerate(model.blocks):
        if i:
            transition = model.transitions[i - 1]
            convs.append(transition.conv.weight)
            norms.append(transition.norm)
        convs += [layer.conv.weight for layer in block.layers]
        norms += [layer.norm for layer in block.layers]
    norms.append(model.norm)
    return Parameters(
        convs,
        *([getattr(n, name) for n in norms]
          for name in ("weight", "bias", "running_mean", "running_var")),
    )  # fmt: skip


def make_model(setting: Setting):
    """Network with gammas of both signs and zero, and weights that the maps' dtype holds."""
    torch.manual_seed(0)
    model = densenet_ds(
        growth_rate=setting.growth_rate,
        block_layers=setting.block_layers,
        stem_channels=setting.stem_channels,
    ).to(DEVICE)
    if setting.channels_last:
        model = model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.randn(module.weight.shape) * 0.5 + 0.8)
                module.weight[1] = 0.0
                module.bias.copy_(torch.randn(module.bias.shape) * 0.3)
            elif isinstance(module, nn.Conv2d):
                module.weight.copy_(module.weight.to(setting.dtype))
    return model


def make_images(setting: Setting) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(
        (setting.batch, 3, setting.height, setting.width), generator=generator
    )  # fmt: skip
    return images.to(DEVICE, setting.dtype)


def make_d_pooled(pooled: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(p.shape, generator=generator).to(DEVICE) for p in pooled]


def scale_of(dtype: torch.dtype) -> float:
    """Return what gradients are multiplied by, so that fp16 holds the small ones."""
    return 1024.0 if dtype == torch.float16 else 1.0


@functools.cache
def modules_run(setting: Setting, dtype: torch.dtype) -> Run:
    """The network's own modules: in fp64, in fp32, or in fp16 or bf16 under autocast."""
    model = copy.deepcopy(make_model(setting))
    images = make_images(setting)
    scale = scale_of(dtype)
    if dtype in (torch.float16, torch.bfloat16):
        with torch.autocast(DEVICE.type, dtype=dtype):
            taps = model.taps(images.float())
    else:
        model = model.to(dtype)
        taps = model.taps(images.to(dtype))
    pooled = [tap.to(torch.promote_types(dtype, torch.float32)).mean((2, 3)) for tap in taps]
    parameters = parameters_of(model)
    d_pooled = [scale * d.to(p.dtype) for d, p in zip(make_d_pooled(pooled), pooled, strict=True)]
    grads = [g / scale for g in torch.autograd.grad(pooled, parameters.learned, d_pooled)]
    return Run(
        [p.detach() for p in pooled], grads, [*parameters.running_means, *parameters.running_vars]
    )


def kernels_on(model, images: Tensor, block_layers: int, impl="triton") -> list[Tensor]:
    return dense_backbone(images, *parameters_of(model), block_layers=block_layers, impl=impl)


def run_kernels(setting: Setting) -> Run:
    """The same through `dense_backbone`."""
    model = make_model(setting)
    scale = scale_of(setting.dtype)
    pooled = kernels_on(model, make_images(setting), setting.block_layers)
    parameters = parameters_of(model)
    d_pooled = [scale * d for d in make_d_pooled(pooled)]
    grads = [g / scale for g in torch.autograd.grad(pooled, parameters.learned, d_pooled)]
    return Run(
        [p.detach() for p in pooled], grads, [*parameters.running_means, *parameters.running_vars]
    )


kernels_run = functools.cache(run_kernels)


def relative_errors(values: list[Tensor], truth: list[Tensor]) -> list[float]:
    """|value - truth| / |truth|, in the Euclidean norm, of each pair."""
    return [
        ((value.double() - exact).norm() / exact.norm()).item()
        for value, exact in zip(values, truth, strict=True)
    ]


def scaled_errors(values: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Root mean square errors, over that of the whole kind's elements (weights, gammas or betas).

    A gradient may be small because its terms cancel, and rounding is as large as the terms: its
    kind's scale stands for theirs.
    """
    kinds = len(truth) // 3
    errors = []
    for first in range(0, len(truth), kinds):
        exact = truth[first : first + kinds]
        scale = torch.cat([t.flatten() for t in exact]).square().mean().sqrt()
        errors += [
            ((value.double() - t).square().mean().sqrt() / scale).item()
            for value, t in zip(values[first : first + kinds], exact, strict=True)
        ]
    return errors
