"""dense_supervision_loss against the losses of networks that give a class to every pixel.

Heads only: maps in, loss and gradients of maps, weights and biases out. Maps are bf16 and
channels_last, of 32, 64, 128 and 256 channels at strides 1, 2, 4 and 8; targets at full resolution.
On a CPU all is a sixteenth of the size. Peak memory is what the call allocates, gradients of the
maps included, maps and target not. Shapes: B images, K classes.

Rivals are restated in a few lines each, as their libraries compute them: eager cross-entropy of
every level, the same under torch.compile, `F.linear_cross_entropy` (no Dice) with chunks of 4,096,
logits upsampled to full resolution (transformers' UperNet, mmsegmentation), nnU-Net's cross-entropy
and memory-efficient Dice, and MONAI's DynUNet, which stacks all levels, with DiceCELoss.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lion_fast.kernels import dense_supervision_loss
from support.allocated import peak_allocated_bytes

BENCHMARK = {
    "title": "Heads and losses of dense prediction",
    "order": 72,
    "stage": "kernels",
    "ours": ("chunked", "chunked + Dice"),
}

CHANNELS = (32, 64, 128, 256)
"""At strides 1, 2, 4 and 8."""


class Setting(NamedTuple):
    """A shape of a user's."""

    batch_size: int
    size: tuple[int, ...]
    reduced: tuple[int, ...]
    """A sixteenth of the positions, for a CPU."""
    num_classes: int


SETTINGS = {
    "2-D 512^2 B8 K21": Setting(8, (512, 512), (128, 128), 21),
    "2-D 512^2 B8 K150": Setting(8, (512, 512), (128, 128), 150),
    "3-D 128^3 B2 K4": Setting(2, (128, 128, 128), (64, 64, 32), 4),
    "3-D 128^3 B2 K16": Setting(2, (128, 128, 128), (64, 64, 32), 16),
    "3-D 128^3 B2 K118": Setting(2, (128, 128, 128), (64, 64, 32), 118),
}


class Level(NamedTuple):
    """One head: its map and its 1x1 convolution."""

    x: Tensor
    """(B, C, *size)"""
    weight: Tensor
    """(K, C)"""
    bias: Tensor
    """(K,)"""

    def logits(self) -> Tensor:
        """Return (B, K, *size) as autocast computes them, in the map's dtype."""
        convolve = F.conv2d if self.x.ndim == 4 else F.conv3d
        weight = self.weight.reshape(*self.weight.shape, *[1] * (self.x.ndim - 2))
        return convolve(self.x, weight.to(self.x.dtype), self.bias.to(self.x.dtype))


Loss = Callable[[Sequence[Level], Tensor, Tensor], Tensor]
"""From levels, target and the levels' weights."""


def labels_of(target: Tensor, level: Level) -> Tensor:
    """Return the labels (B, *size) int64 of a level, as libraries downsample them."""
    size = level.x.shape[2:]
    if target.shape[1:] == size:
        return target.long()
    return F.interpolate(target[:, None].float(), size, mode="nearest-exact")[:, 0].long()


def op_loss(levels: Sequence[Level], target: Tensor, weights: Tensor, **options: object) -> Tensor:
    """Return the loss of `dense_supervision_loss`."""
    return dense_supervision_loss(
        *map(list, zip(*levels, strict=True)), target, weights, **options
    ).loss


def eager_loss(levels: Sequence[Level], target: Tensor, weights: Tensor) -> Tensor:
    """Return the cross-entropy as people write it."""
    losses = [
        F.cross_entropy(level.logits().float(), labels_of(target, level), ignore_index=255)
        for level in levels
    ]
    return (torch.stack(losses) * weights).sum()


def linear_loss(levels: Sequence[Level], target: Tensor, weights: Tensor) -> Tensor:
    """Return the cross-entropy of PyTorch's fused linear one, in chunks."""
    options = nn.LinearCrossEntropyOptions(
        batch_chunk_size=4096, chunking_method=None, acc_policy="accurate"
    )
    losses = [
        F.linear_cross_entropy(
            level.x.movedim(1, -1).reshape(-1, level.x.shape[1]),
            level.weight.to(level.x.dtype),
            labels_of(target, level).reshape(-1),
            linear_bias=level.bias.to(level.x.dtype),
            ignore_index=255,
            options=options,
        )
        for level in levels
    ]
    return (torch.stack([loss.float() for loss in losses]) * weights).sum()


def upsampled_loss(levels: Sequence[Level], target: Tensor, weights: Tensor) -> Tensor:
    """Return the cross-entropy of logits at full resolution: another loss than the others'."""
    mode = "bilinear" if target.ndim == 3 else "trilinear"
    losses = [
        F.cross_entropy(
            F.interpolate(level.logits().float(), target.shape[1:], mode=mode),
            target.long(),
            ignore_index=255,
        )
        for level in levels
    ]
    return (torch.stack(losses) * weights).sum()


def nnunet_loss(levels: Sequence[Level], target: Tensor, weights: Tensor) -> Tensor:
    """Return nnU-Net's DC_and_CE_loss of every level; its Dice counts minus the coefficient."""
    losses = []
    for level in levels:
        logits, labels = level.logits().float(), labels_of(target, level)[:, None]
        shares, axes = logits.softmax(1)[:, 1:], tuple(range(2, logits.ndim))
        with torch.no_grad():
            is_class = torch.zeros(logits.shape, device=logits.device).scatter_(1, labels, 1)[:, 1:]
            theirs = is_class.sum(axes)
        both, ours = (shares * is_class).sum(axes), shares.sum(axes)
        dice = (2 * both + 1e-5) / (ours + theirs + 1e-5).clamp_min(1e-8)
        losses.append(F.cross_entropy(logits, labels[:, 0]) - dice.mean())
    return (torch.stack(losses) * weights).sum()


def monai_loss(levels: Sequence[Level], target: Tensor, weights: Tensor) -> Tensor:
    """Return MONAI's DiceCELoss of DynUNet's output: all levels at full resolution, stacked."""
    logits = [level.logits() for level in levels]
    stacked = torch.stack([F.interpolate(each, target.shape[1:]) for each in logits], 1)
    labels = target.long()
    losses = []
    for each in stacked.unbind(1):
        shares = each.float().softmax(1)
        is_class = torch.zeros_like(shares).scatter_(1, labels[:, None], 1)[:, 1:]
        shares, axes = shares[:, 1:], tuple(range(2, each.ndim))
        both = (shares * is_class).sum(axes)
        total = shares.sum(axes) + is_class.sum(axes)
        dice = 1 - (2 * both + 1e-5) / (total + 1e-5)
        losses.append(dice.mean() + F.cross_entropy(each.float(), labels))
    return (torch.stack(losses) * weights).sum()


LOSSES: dict[str, Loss] = {
    "chunked": op_loss,
    "chunked + Dice": partial(op_loss, dice=1.0),
    "eager": eager_loss,
    "compile": eager_loss,
    "linear_cross_entropy": linear_loss,
    "upsampled": upsampled_loss,
    "nnU-Net": nnunet_loss,
    "MONAI": monai_loss,
}


def make_loss(impl: str) -> Loss:
    """Return the loss of that name; skip one that this version of PyTorch lacks."""
    if impl == "linear_cross_entropy" and not hasattr(F, "linear_cross_entropy"):
        pytest.skip("needs torch 2.13: F.linear_cross_entropy")
    if impl == "compile":
        torch.compiler.reset()  # every setting is compiled afresh, below the recompilation limit
        return torch.compile(eager_loss, fullgraph=True, dynamic=False)
    return LOSSES[impl]


def make_inputs(
    setting: Setting, device: torch.device, *, tiny: bool = False
) -> tuple[list[Level], Tensor, Tensor]:
    """Return the levels, a uint8 target without ignored labels, and weights 1, 1/2, 1/4, 1/8."""
    size = setting.size if device.type == "cuda" else setting.reduced
    if tiny:
        size = tuple(16 for _ in size)
    layout = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    generator = torch.Generator(device).manual_seed(0)
    levels = []
    for stride, channels in enumerate(CHANNELS):
        shape = (setting.batch_size, channels, *(side >> stride for side in size))
        x = torch.randn(shape, generator=generator, device=device).bfloat16()
        weight = torch.randn(setting.num_classes, channels, generator=generator, device=device)
        bias = torch.zeros(setting.num_classes, device=device)
        levels.append(
            Level(
                x.contiguous(memory_format=layout).requires_grad_(),
                weight.mul_(0.1).requires_grad_(),
                bias.requires_grad_(),
            )
        )
    target = torch.randint(
        setting.num_classes, (setting.batch_size, *size), generator=generator, device=device
    )
    return levels, target.byte(), torch.tensor([1.0, 0.5, 0.25, 0.125], device=device)


def forward_backward(
    loss: Loss, levels: Sequence[Level], target: Tensor, weights: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients, which nothing accumulates."""
    tensors = [tensor for level in levels for tensor in level]
    return torch.autograd.grad(loss(levels, target, weights), tensors)


def least_bytes(levels: Sequence[Level], target: Tensor) -> int:
    """Return what must move: each map twice, its gradient once, and the labels twice."""
    labels = sum(level.x[:, 0].numel() for level in levels) * target.itemsize
    return sum(3 * level.x.nbytes for level in levels) + 2 * labels


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("impl", LOSSES)
def test_dense_heads(bench, impl, name):
    """Time the heads alone, forward and backward, and state the peak of memory."""
    loss = make_loss(impl)
    if impl == "compile" and bench.quick:
        pytest.skip("compiles for longer than a quick look lasts")
    inputs = make_inputs(SETTINGS[name], bench.device, tiny=bench.quick or bench.rehearsal)
    peak = {}
    if bench.device.type == "cpu":
        once = partial(forward_backward, loss, *inputs)
        once()  # what is allocated once stays out of the account
        peak = {"peak_allocated_bytes": peak_allocated_bytes(once)}
    bench.time(
        partial(forward_backward, loss),
        [inputs],
        op="dense_supervision_loss",
        impl=impl,
        shape=name if bench.device.type == "cuda" else f"{name} / 16",
        dtype="bfloat16",
        mode="forward+backward",
        bytes_moved=least_bytes(*inputs[:2]),
        **peak,
    )
