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
import torch.distributed._functional_collectives as collectives
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lion_fast.errors import UserError
from lion_fast.training.machine.resolve import Resolved
from lion_fast.training.ranks.world import World


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
    """Every pass over a map is one of PyTorch's own batch-norm kernels, on whichever device.

    Tensor operations would each read the map anew, and reductions over the channels of a
    channels_last map are slow on the CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: str, num_ranks: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised x, and mean (C,) and biased variance (C,) over all ranks."""
        # Without an eps, so that the variance can be had back from 1 / sqrt(variance).
        _, own_mean, own_scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, 0)
        # (W, 2, C), in the same order on every rank: all compute the same bits from them.
        found = _gather(torch.stack([own_mean, own_scale**-2]), group, num_ranks)
        mean = found[:, 0].mean(0)
        variance = found[:, 1].mean(0) + (found[:, 0] - mean).square().mean(0)
        y = _normalise(x, mean, variance, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.group, ctx.num_ranks = eps, group, num_ranks
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of this rank's x, and its part of those of weight and bias.

        With n of x normalised: dx = weight / sqrt(variance + eps) * (dy - mean(dy) - n mean(dy n)).
        """
        x, weight, mean, variance = ctx.saved_tensors
        # As if mean and variance were constants: the first term, and both sums of this rank.
        dx, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        num = x.numel() // x.shape[1] * ctx.num_ranks
        sums = _gather(torch.stack([of_weight, of_bias]), ctx.group, ctx.num_ranks).sum(0)
        scale, shift = -weight * torch.rsqrt(variance + ctx.eps) * sums / num
        dx = dx + _normalise(x, mean, variance, scale, shift, ctx.eps)
        return dx, of_weight, of_bias, None, None, None


def _normalise(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)


def _gather(x: Tensor, group: str, num_ranks: int) -> Tensor:
    """Return x of every rank, (W, ...), in order of ranks."""
    gathered = torch.ops._c10d_functional.all_gather_into_tensor(x, num_ranks, group)
    return collectives.wait_tensor(gathered).view(num_ranks, *x.shape)


def share_norms(model: nn.Module, resolved: Resolved, world: World) -> None:
    """Let every batch norm of `model` normalise over the batch of all ranks, in place.

    Raises UserError on one that this module has no counterpart for, and where the fused backbone
    computes them, which knows of no other rank.
    """
    assert world.group is not None
    if resolved.backbone != "modules":
        raise UserError(
            f"batch_norm global is not for backbone {resolved.backbone}, whose kernels normalise"
            " over one process's images: give --batch-norm local, or --backbone modules"
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
