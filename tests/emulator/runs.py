"""DenseNet-DS's backbone run by the emulated kernels, and what it is compared with."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from emulator import backbone
from lion_fast.kernels.dense import dense_backbone_ref
from lion_fast.kernels.dense.launch_backward import gradient_size, gradient_views
from lion_fast.kernels.dense.plan import NUM_BLOCKS, Plan
from lion_fast.kernels.persistent.launch import (
    PersistentForward,
    backward_launch,
    empty_exchange,
    empty_forward,
    forward_launch,
    pack_launch,
    tables_on,
)
from lion_fast.kernels.persistent.plan import PersistentPlan

EPS = 1e-5
CPU = torch.device("cpu")


class Setting(NamedTuple):
    """A network, its batch and the dtype of its maps."""

    batch: int = 2
    side: int = 16
    stem_channels: int = 24
    growth_rate: int = 8
    block_layers: int = 2
    dtype: torch.dtype = torch.bfloat16
    channels_last: bool = True
    programs: int | None = None
    """that go through the images, maps in memory; None: one an image, maps in its own"""

    @property
    def plan(self) -> Plan:
        return Plan(self.batch, self.side, self.side, *self[2:5])

    @property
    def sizes(self) -> PersistentPlan:
        return PersistentPlan(self.plan, self.programs, is_resident=self.programs is None)


class Inputs(NamedTuple):
    images: Tensor
    convs: list[Tensor]
    gammas: list[Tensor]
    betas: list[Tensor]
    d_pooled: list[Tensor]

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.convs, *self.gammas, *self.betas]


class Run(NamedTuple):
    out: PersistentForward
    grads: list[Tensor]
    """of Inputs.parameters"""
    columns: Tensor


@functools.cache
def inputs(setting: Setting) -> Inputs:
    """Gammas of both signs, weights that the maps' dtype holds, gradients that fp16 holds."""
    generator = torch.Generator().manual_seed(7)
    plan = setting.plan
    memory = torch.channels_last if setting.channels_last else torch.contiguous_format

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    images = normal(setting.batch, 3, setting.side, setting.side).to(setting.dtype)
    convs = []
    for i, shape in enumerate(plan.conv_shapes):
        std = 0.3 if i == 0 else (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        w = (normal(*shape) * std).to(setting.dtype).float()
        convs.append(w.contiguous(memory_format=memory))
    gammas = [1 + 0.3 * normal(c) for c in plan.norm_channels]
    gammas[0][1], gammas[-1][3], gammas[-1][4] = -0.7, -0.7, 0.0
    return Inputs(
        images.contiguous(memory_format=torch.channels_last),
        convs,
        gammas,
        [0.3 * normal(c) for c in plan.norm_channels],
        [normal(setting.batch, block.channels) for block in plan.blocks],
    )


def _poisoned(tensors):
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
        else:  # every bit set
            tensor.fill_(255 if tensor.dtype == torch.uint8 else -1)


def run(setting: Setting, how: backbone.How = backbone.How()) -> Run:  # noqa: B008
    """Emulate forward and backward once; what a launch is to write holds NaN before it."""
    given, plan = inputs(setting), setting.plan
    table = tables_on(plan, setting.channels_last, CPU)
    out = empty_forward(plan, given.images, table.halves.numel())
    exchange = empty_exchange(plan, given.images)
    grads = torch.empty(gradient_size(plan))
    _poisoned([*out, exchange, grads])
    backbone.run(pack_launch(setting.sizes, table, out, exchange, *given[1:4]), how)
    backbone.run(forward_launch(setting.sizes, out, exchange, given.images, EPS), how)
    last = backward_launch(setting.sizes, table, grads, given.d_pooled, given.images, out, EPS)
    _poisoned(last.outputs.values())
    backbone.run(last, how)
    views = gradient_views(plan, grads, setting.channels_last)
    return Run(out, [g for part in views for g in part], last.outputs["columns"])


kernels_run = functools.cache(run)


def maps_of(setting: Setting, out: PersistentForward) -> list[tuple[Tensor, Tensor]]:
    """Return every block's maps (B, C, H, W), channels as parameters count them, and its gap's."""
    found, at = [], 0
    sizes = PersistentPlan(setting.plan)
    for b, block in enumerate(setting.plan.blocks):
        shape = (sizes.groups[b], setting.batch, block.height, block.width, 8)
        size = shape[0] * shape[1] * shape[2] * shape[3] * 8
        maps = out.maps[at : at + size].view(shape).permute(1, 0, 4, 2, 3).flatten(1, 2)
        at += size
        came, gap = block.in_channels, block.padded_in
        found.append((torch.cat([maps[:, :came], maps[:, gap:]], 1), maps[:, came:gap]))
    return found


class Values(NamedTuple):
    pooled: list[Tensor]
    maps: list[Tensor]
    grads: list[Tensor]


def _backbone_at(images, convs, gammas, betas, layers, given_maps):
    """Pooled taps and maps; where maps are given, channels take their values as they are made."""

    def taken(x, block, first):
        if given_maps is None:
            return x
        return x + (given_maps[block][:, first : first + x.shape[1]] - x).detach()

    convs, norms = iter(convs), iter(zip(gammas, betas, strict=True))
    pooled, all_maps = [], []
    x = taken(F.conv2d(images, next(convs), padding=1), 0, 0)

    def active(x):
        gamma, beta = next(norms)
        return F.relu(F.batch_norm(x, None, None, gamma, beta, True, 0.1, EPS))

    for block in range(NUM_BLOCKS):
        for _ in range(layers):
            new = F.conv2d(active(x), next(convs), padding=1)
            x = torch.cat([x, taken(new, block, x.shape[1])], 1)
        all_maps.append(x)
        last = active(x)
        pooled.append((last if block + 1 == NUM_BLOCKS else x).mean((2, 3)))
        if block + 1 < NUM_BLOCKS:
            x = taken(F.avg_pool2d(F.conv2d(last, next(convs)), 2), block + 1, 0)
    return pooled, all_maps


def exact(setting: Setting, given_maps: list[Tensor] | None = None) -> Values:
    """The network in fp64 by torch's own operators; at given maps, where no ReLU decides else."""
    given = inputs(setting)
    leaves = [t.double().requires_grad_() for t in given.parameters]
    count, norms = len(given.convs), len(given.gammas)
    parts = leaves[:count], leaves[count : count + norms], leaves[count + norms :]
    maps = None if given_maps is None else [m.double() for m in given_maps]
    pooled, made = _backbone_at(given.images.double(), *parts, setting.block_layers, maps)
    d_pooled = [d.double() for d in given.d_pooled]
    grads = torch.autograd.grad(pooled, leaves, d_pooled)
    return Values([p.detach() for p in pooled], [m.detach() for m in made], list(grads))


def reference(setting: Setting) -> tuple[list[Tensor], list[Tensor]]:
    """Pooled taps and gradients of the plain reference, in the setting's dtype."""
    given = inputs(setting)
    leaves = [t.clone().requires_grad_() for t in given.parameters]
    count, norms = len(given.convs), len(given.gammas)
    parts = leaves[:count], leaves[count : count + norms], leaves[count + norms :]
    running = [[torch.zeros_like(g) for g in given.gammas] for _ in range(2)]
    layers = setting.block_layers
    pooled = dense_backbone_ref(given.images, *parts, *running, block_layers=layers, eps=EPS)
    grads = torch.autograd.grad(pooled, leaves, given.d_pooled)
    return [p.detach() for p in pooled], list(grads)


def autocast(setting: Setting) -> list[Tensor]:
    """Gradients by torch's own operators under autocast to the setting's dtype."""
    given = inputs(setting)
    leaves = [t.clone().requires_grad_() for t in given.parameters]
    count, norms = len(given.convs), len(given.gammas)
    parts = leaves[:count], leaves[count : count + norms], leaves[count + norms :]
    with torch.autocast("cpu", setting.dtype):
        pooled, _ = _backbone_at(given.images, *parts, setting.block_layers, None)
    seeds = [d.to(p.dtype) for d, p in zip(given.d_pooled, pooled, strict=True)]
    return list(torch.autograd.grad(pooled, leaves, seeds))


def error(value: Tensor, truth: Tensor) -> float:
    """|value - truth| / |truth|, in the Euclidean norm."""
    return ((value.double() - truth).norm() / truth.norm()).item()
