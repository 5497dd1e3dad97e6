"""Batch norm over the batch of all ranks, on any device and backend.

`torch.nn.SyncBatchNorm` computes the same and refuses CPU tensors. Here ranks exchange mean and
variance in the forward pass and two sums in the backward (Ioffe and Szegedy 2015, with sums over
all ranks), as functional collectives, which torch.compile(fullgraph=True) traces.

Shapes: x (B, C, height, width) of this rank; W ranks of equal B.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed._functional_collectives as functional
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lion_fast.errors import UserError
from lion_fast.training.resolve import Resolved
from lion_fast.training.world import World


class SharedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose batch statistics are those of all ranks; `share_norms` makes them."""

    group_name: str
    num_ranks: int

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; running statistics move as they would in one process with the whole batch."""
        if not self.training:
            return super().forward(input)
        output, mean, variance = _SharedNorm.apply(
            input, self.weight, self.bias, self.eps, self.group_name, self.num_ranks
        )
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        num = input.numel() // input.shape[1] * self.num_ranks
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (num / (num - 1)), self.momentum)
        return output


class _SharedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: str, num_ranks: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised x, and mean (C,) and biased variance (C,) over all ranks."""
        values = _wide(x)
        own_variance, own_mean = torch.var_mean(values, (0, 2, 3), correction=0)
        # (W, 2, C), in the same order on every rank: all compute the same bits from them.
        found = _gather(torch.stack([own_mean, own_variance]), group, num_ranks)
        mean = found[:, 0].mean(0)
        variance = found[:, 1].mean(0) + (found[:, 0] - mean).square().mean(0)
        scale = torch.rsqrt(variance + eps)
        y = (values - _map(mean)) * _map(weight * scale) + _map(bias)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.group, ctx.num_ranks = group, num_ranks
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of this rank's x, and its part of those of weight and bias."""
        x, weight, mean, scale = ctx.saved_tensors
        dy = _wide(grad)
        normalised = (_wide(x) - _map(mean)) * _map(scale)
        sums = torch.stack([dy.sum((0, 2, 3)), (dy * normalised).sum((0, 2, 3))])
        num = x.numel() // x.shape[1] * ctx.num_ranks
        means = _gather(sums, ctx.group, ctx.num_ranks).sum(0) / num
        dx = _map(weight * scale) * (dy - _map(means[0]) - normalised * _map(means[1]))
        return dx.to(x.dtype), sums[1], sums[0], None, None, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _map(channels: Tensor) -> Tensor:
    return channels[:, None, None]


def _gather(x: Tensor, group: str, num_ranks: int) -> Tensor:
    """Return x of every rank, (W, ...), in order of ranks."""
    gathered = torch.ops._c10d_functional.all_gather_into_tensor(x, num_ranks, group)
    return functional.wait_tensor(gathered).view(num_ranks, *x.shape)


def share_norms(model: nn.Module, resolved: Resolved, world: World) -> None:
    """Let every batch norm of `model` normalise over the batch of all ranks, in place.

    Raises UserError on one that this module has no counterpart for, and where the fused backbone
    computes them, which knows of no other rank.
    """
    assert world.group is not None
    if resolved.backbone == "fused":
        raise UserError(
            "batch_norm global is not for backbone fused, whose kernels normalise over one"
            " process's images: give --batch-norm local, or --backbone modules"
        )
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if type(module) is not nn.BatchNorm2d or not _is_plain(module):
            raise UserError(
                f"batch_norm global cannot share {name!r}, a {type(module).__name__}: it takes"
                " nn.BatchNorm2d with weights, running statistics and a momentum; give"
                " --batch-norm local"
            )
        module.__class__ = SharedBatchNorm
        module.group_name = world.group.group_name  # type: ignore[assignment]
        module.num_ranks = world.size  # type: ignore[assignment]


def _is_plain(module: nn.BatchNorm2d) -> bool:
    return module.affine and module.track_running_stats and module.momentum is not None


@contextmanager
def unshared(model: nn.Module) -> Iterator[None]:
    """Let the batch norms inside see this rank's batch alone: what one rank does, others need not.

    Saved in its terms, a network is that of one process: the class is no part of a checkpoint.
    """
    shared: list[nn.Module] = [m for m in model.modules() if type(m) is SharedBatchNorm]
    for module in shared:
        module.__class__ = nn.BatchNorm2d
    try:
        yield
    finally:
        for module in shared:
            module.__class__ = SharedBatchNorm
