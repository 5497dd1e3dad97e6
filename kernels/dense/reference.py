"""Dense blocks that share batch statistics, in plain PyTorch: the truth, and the portable route.

In training every norm of a dense block normalises a channel with the same batch mean and variance;
only gamma and beta differ. So statistics are taken once, where a channel is made, and what batch
norm's backward subtracts, linear in the incoming gradient, is summed over all readers and
subtracted once:

    xhat    = (h - mean) * rstd                                one for all readers of a channel
    a_u     = relu(gamma_u * xhat + beta_u);  h_new = conv3x3(a_u)
    dbeta_u = sum dz_u;  dgamma_u = sum dz_u * xhat;  dz_u = (z_u > 0) * da_u
    dh      = dh_direct + rstd * (G - S1 / N - xhat * S2 / N)
              G = sum_u gamma_u dz_u,  S1 = sum_u gamma_u dbeta_u,  S2 = sum_u gamma_u dgamma_u

A block of 24 + 6 * 8 channels reads 72 maps for its statistics where stock batch norms, the one
behind the block included, read 336. It lies in one buffer, to which a layer adds its channels.

Letters: B images, C channels of a block, c channels that a layer reads, k channels that it adds,
N = B * H * W positions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NUM_BLOCKS = 3


class DenseBlockOutput(NamedTuple):
    """What a block leaves: its maps, and how the norm behind it sees them."""

    maps: Tensor
    """(B, C, H, W), input channels first, in the input's dtype"""
    active: Tensor
    """(B, C, H, W) relu(last norm of the maps), in the input's dtype"""
    mean: Tensor
    """(C,) of the batch, fp32 (fp64 of fp64 maps); has no gradient"""
    var: Tensor
    """(C,) of the batch, biased; has no gradient"""


class _DenseBlock(torch.autograd.Function):
    """See `dense_block_ref`; parameters: the convolutions, then gammas, then betas."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, num_layers: int, *parameters: Tensor) -> Any:
        convs, gammas, betas = _split(parameters, num_layers)
        block = _Block.empty(x, convs)
        block.put(0, x, eps)
        # Casts are made here, by the maps' dtype: autocast would make others.
        with torch.autocast(x.device.type, enabled=False):
            for conv, gamma, beta in zip(convs, gammas, betas, strict=False):
                active = block.read(gamma, beta)[1].to(x.dtype)
                block.put(conv.shape[1], F.conv2d(active, conv.to(x.dtype), padding=1), eps)
        active = block.read(gammas[-1], betas[-1])[1].to(x.dtype)
        ctx.save_for_backward(*block, *parameters)
        ctx.num_layers = num_layers
        ctx.mark_non_differentiable(block.mean, block.var)
        ctx.set_materialize_grads(False)
        return block.maps, active, block.mean, block.var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_maps: Tensor | None, d_active: Tensor | None, *_: None) -> Any:
        block = _Block(*ctx.saved_tensors[: len(_Block._fields)])
        convs, gammas, betas = _split(ctx.saved_tensors[len(block) :], ctx.num_layers)
        pushed = _Pushed(block, d_maps)
        d_gammas, d_betas = [torch.zeros_like(g) for g in gammas], [*map(torch.zeros_like, betas)]
        if d_active is not None:
            d_gammas[-1], d_betas[-1] = pushed.add(d_active, gammas[-1], betas[-1])
        d_convs = []
        for u in reversed(range(ctx.num_layers)):
            conv, (c, k) = convs[u], (convs[u].shape[1], convs[u].shape[0])
            active = block.read(gammas[u], betas[u])[1].to(block.maps.dtype)
            d_active, d_conv, _bias = torch.ops.aten.convolution_backward(
                pushed.total(c, c + k), active, conv.to(active.dtype), None,
                [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False],
            )  # fmt: skip
            d_gammas[u], d_betas[u] = pushed.add(d_active, gammas[u], betas[u])
            d_convs.append(d_conv.to(conv.dtype))
        c = gammas[0].shape[0]
        d_x = pushed.total(0, c) if ctx.needs_input_grad[0] else None
        return d_x, None, None, *reversed(d_convs), *d_gammas, *d_betas


class _Block(NamedTuple):
    """The buffers of one block; statistics are fp32, or fp64 of fp64 maps."""

    maps: Tensor
    mean: Tensor
    var: Tensor
    rstd: Tensor

    @classmethod
    def empty(cls, x: Tensor, convs: Sequence[Tensor]) -> "_Block":
        batch, channels, height, width = x.shape
        channels += sum(conv.shape[0] for conv in convs)
        is_last = x.is_contiguous(memory_format=torch.channels_last)
        maps = torch.empty(
            (batch, channels, height, width), dtype=x.dtype, device=x.device,
            memory_format=torch.channels_last if is_last else torch.contiguous_format,
        )  # fmt: skip
        statistics = [
            torch.empty(channels, dtype=_wide(x.dtype), device=x.device) for _ in range(3)
        ]
        return cls(maps, *statistics)

    def put(self, start: int, new: Tensor, eps: float) -> None:
        """Append channels from `start` on, and their statistics."""
        stop = start + new.shape[1]
        self.maps[:, start:stop] = new
        # Of the rounded values: they are what every reader normalises.
        var, mean = torch.var_mean(new.to(self.mean.dtype), (0, 2, 3), correction=0)
        self.mean[start:stop] = mean
        self.var[start:stop] = var
        self.rstd[start:stop] = (var + eps).rsqrt()

    def normalised(self, start: int, stop: int) -> Tensor:
        """Return xhat of the channels from `start` to `stop`."""
        maps = self.maps[:, start:stop].to(self.mean.dtype)
        return (maps - _per_channel(self.mean[start:stop])) * _per_channel(self.rstd[start:stop])

    def read(self, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Return xhat and relu(gamma * xhat + beta) of as many channels as gamma has."""
        xhat = self.normalised(0, gamma.shape[0])
        return xhat, F.relu(xhat * _per_channel(gamma) + _per_channel(beta))


class _Pushed:
    """Gradients that the readers of a block's channels have pushed to them so far."""

    def __init__(self, block: _Block, d_maps: Tensor | None) -> None:
        self.block, self.direct = block, d_maps
        self.sum = torch.zeros_like(block.maps, dtype=block.mean.dtype)
        self.sum_dz = torch.zeros_like(block.mean)
        self.sum_dz_xhat = torch.zeros_like(block.mean)

    def add(self, d_active: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Push one reader's gradient; return its d gamma and d beta."""
        c = gamma.shape[0]
        xhat, active = self.block.read(gamma, beta)
        dz = d_active.to(xhat.dtype) * (active > 0)
        d_beta, d_gamma = dz.sum((0, 2, 3)), (dz * xhat).sum((0, 2, 3))
        self.sum[:, :c] += dz * _per_channel(gamma)
        self.sum_dz[:c] += gamma * d_beta
        self.sum_dz_xhat[:c] += gamma * d_gamma
        return d_gamma.to(gamma.dtype), d_beta.to(beta.dtype)

    def total(self, start: int, stop: int) -> Tensor:
        """Return the gradient of channels all of whose readers have pushed, in their dtype."""
        block = self.block
        channels = slice(start, stop)
        num_positions = block.maps.numel() // block.maps.shape[1]
        subtracted = self.sum_dz_xhat[channels] / num_positions
        inner = (
            self.sum[:, channels]
            - _per_channel(self.sum_dz[channels] / num_positions)
            - block.normalised(start, stop) * _per_channel(subtracted)
        )
        gradient = inner * _per_channel(block.rstd[channels])
        if self.direct is not None:
            gradient = gradient + self.direct[:, channels]
        return gradient.to(block.maps.dtype)


def _split(
    parameters: Sequence[Tensor], num_layers: int
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Return the convolutions, gammas and betas of a block."""
    last = 2 * num_layers + 1
    return parameters[:num_layers], parameters[num_layers:last], parameters[last:]


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def dense_block_ref(
    x: Tensor,
    convs: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    eps: float = 1e-5,
) -> DenseBlockOutput:
    """Compute a dense block and relu(batch norm) of all it made, on one set of batch statistics.

    x: (B, C_0, H, W), contiguous or channels_last, as the outputs then are; its dtype is the maps'.
    convs: one (k, c, 3, 3) a layer. gammas, betas: one (c,) a layer and one (C,) for the norm
    behind the block. Training mode. Arithmetic but for the convolutions' is fp32 (fp64 of fp64
    maps), also under autocast. First-order gradients only: differentiating again raises.

    Equals `torch.cat([x, conv(relu(batch_norm(x)))], 1)` layer by layer.
    """
    return DenseBlockOutput(*_DenseBlock.apply(x, eps, len(convs), *convs, *gammas, *betas))


def dense_backbone_ref(
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
    """Compute DenseNet-DS's pooled taps in training mode: [(B, C_1), (B, C_2), (B, C_3)].

    They are the means over positions of block 1's maps, block 2's, and relu(norm(block 3's)), in
    fp32 (fp64 of fp64 images).

    images: (B, 3, H, W); their dtype is the maps'. convs: weights in forward order: stem, block 1's
    layers, transition 1, block 2's, transition 2, block 3's. gammas, betas: block 1's layers,
    transition 1, ..., block 3's layers, the last norm. running_means, running_vars: theirs, updated
    in place by `momentum` and the unbiased variance, as `torch.nn.BatchNorm2d` does.

    Raises ValueError where block 3 has one position in all: its variance is undefined.
    """
    layers = block_layers
    if images.shape[0] * (images.shape[2] // 4) * (images.shape[3] // 4) < 2:
        raise ValueError(
            f"images is {tuple(images.shape)}: block 3 needs more than one position in a batch"
        )
    dtype, wide = images.dtype, _wide(images.dtype)
    pooled: list[Tensor] = []
    statistics: list[tuple[Tensor, Tensor]] = []
    with torch.autocast(images.device.type, enabled=False):
        x = F.conv2d(images, convs[0].to(dtype), padding=1)
        for i in range(NUM_BLOCKS):
            first = i * (layers + 1)
            norms = slice(first, first + layers + 1)
            block = dense_block_ref(
                x, convs[first + 1 : first + 1 + layers], gammas[norms], betas[norms], eps
            )
            positions = x.numel() // x.shape[1]
            unbiased = block.var * (positions / (positions - 1))
            for gamma in gammas[norms]:
                channels = slice(0, gamma.shape[0])
                statistics.append((block.mean[channels], unbiased[channels]))
            last = i == NUM_BLOCKS - 1
            pooled.append((block.active if last else block.maps).mean((2, 3), dtype=wide))
            if not last:
                # Pooling first, which commutes, takes a quarter of the products, but rounds twice
                # before them, which gradients in bf16 show.
                x = F.conv2d(block.active, convs[first + layers + 1].to(dtype))
                x = F.avg_pool2d(x, 2)
    _move_running(running_means, [mean for mean, _ in statistics], momentum)
    _move_running(running_vars, [var for _, var in statistics], momentum)
    return pooled


@torch.no_grad()
def _move_running(running: Sequence[Tensor], batch: Sequence[Tensor], momentum: float) -> None:
    same = [values.to(r.dtype) for values, r in zip(batch, running, strict=True)]
    torch._foreach_lerp_(list(running), same, momentum)
