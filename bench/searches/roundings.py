"""Which rounding to bf16 moves the fused backbone's gradients how far: `roundings.py --batch 16`.

The kernels' arithmetic (kernels/dense/forward.py, backward.py, gradients.py) in fp64 and plain
PyTorch, with each of their roundings made by hand or left out. Beside them the network's modules
under autocast, rounded as PyTorch on this machine rounds. Printed are, over the parameters, median
and largest |gradient - exact| / |exact| in the Euclidean norm, and the mean over seeds.

The network is the paper's, its norms' gammas of both signs, images and gradients of the pooled taps
are noise: the setting in which a card was asked (docs/measured.md). Nothing here is a time.

Letters as in kernels/dense/reference.py.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from lion_fast.models import densenet_ds
from lion_fast.models.densenet import DenseNetDS

EPS = 1e-5
KERNELS = {
    "weights": "weights, packed for the products",
    "maps": "maps, as they are stored",
    "activation": "activation before a layer's product",
    "average_again": "averaged activation before a transition's weight gradient",
    "raw": "a group's gradient before its correction, as it is stored",
    "dout": "a group's gradient after it",
}
"""rounding -> what the kernels round there"""
AVERAGE = "average"
"""averaged activation before a transition's product: what rounding takes away is multiplied too"""


class Rounding(NamedTuple):
    """The roundings that are made."""

    made: frozenset[str]

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Return x rounded to bf16 and back where `name` is made."""
        return x.to(torch.bfloat16).to(x.dtype) if name in self.made else x


def per_channel(values: Tensor) -> Tensor:
    """Return (C,) values as they multiply (B, C, H, W)."""
    return values.view(1, -1, 1, 1)


class Block:
    """One dense block: forward on construction, then `backward`.

    convs: (k, c, 3, 3) a layer. gammas, betas: one a layer, and the block's last norm.
    """

    def __init__(
        self,
        x: Tensor,
        convs: Sequence[Tensor],
        gammas: Sequence[Tensor],
        betas: Sequence[Tensor],
        rounded: Rounding,
    ) -> None:
        self.convs, self.gammas, self.betas, self.rounded = convs, gammas, betas, rounded
        self.maps = x
        for u, conv in enumerate(convs):
            y = F.conv2d(rounded("activation", self.active(u)), conv, padding=1)
            self.maps = torch.cat([self.maps, rounded("maps", y)], 1)
        var, mean = torch.var_mean(self.maps, (0, 2, 3), correction=0)
        self.rstd = (var + EPS).rsqrt()
        self.xhat = (self.maps - per_channel(mean)) * per_channel(self.rstd)

    def active(self, u: int) -> Tensor:
        """Return relu(norm u of the channels that reader u has)."""
        maps = self.maps[:, : len(self.gammas[u])]
        return F.relu(F.batch_norm(maps, None, None, self.gammas[u], self.betas[u], True, 0, EPS))

    def backward(
        self, d_active: Tensor, d_tap: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """Return gradients of the input, of the convolutions, gammas and betas.

        d_active: of relu(last norm). d_tap: (B, C) of the maps' means over positions.
        """
        total = torch.zeros_like(self.maps)
        sums = torch.zeros(2, len(self.rstd), dtype=total.dtype)
        d_convs, d_gammas, d_betas = [], [], []
        for u in reversed(range(len(self.convs) + 1)):
            if u < len(self.convs):
                conv, c = self.convs[u], self.convs[u].shape[1]
                dout = self.gradient(total, sums, d_tap, slice(c, c + len(conv)))
                active = self.rounded("activation", self.active(u))
                d_convs.append(conv2d_weight(active, conv.shape, dout, padding=1))
                d_active = F.conv_transpose2d(dout, conv, padding=1)
            gamma, beta = self.gammas[u], self.betas[u]
            c = len(gamma)
            xhat = self.xhat[:, :c]
            dz = torch.where(xhat * per_channel(gamma) + per_channel(beta) > 0, d_active, 0)
            d_betas.append(dz.sum((0, 2, 3)))
            d_gammas.append((dz * xhat).sum((0, 2, 3)))
            total[:, :c] += per_channel(gamma) * dz
            sums[:, :c] += gamma * torch.stack([d_betas[-1], d_gammas[-1]])
        d_x = self.gradient(total, sums, d_tap, slice(0, self.convs[0].shape[1]))
        return d_x, d_convs[::-1], d_gammas[::-1], d_betas[::-1]

    def gradient(
        self, total: Tensor, sums: Tensor, d_tap: Tensor | None, channels: slice
    ) -> Tensor:
        """Return a group's gradient, all of whose readers are in `total`."""
        batch, _, height, width = total.shape
        rstd = per_channel(self.rstd[channels])
        raw = rstd * total[:, channels]
        if d_tap is not None:
            raw = raw + d_tap[:, channels, None, None] / (height * width)
        raw = self.rounded("raw", raw)
        s1, s2 = (per_channel(s[channels]) / (batch * height * width) for s in sums)
        return self.rounded("dout", raw - rstd * s1 - rstd * self.xhat[:, channels] * s2)


def emulate(
    model: DenseNetDS, images: Tensor, d_pooled: Sequence[Tensor], rounded: Rounding
) -> list[Tensor]:
    """Return the gradients of the convolutions, gammas and betas as the kernels make them."""
    convs, norms = model.in_forward_order()
    w = [rounded("weights", conv.weight.detach()) for conv in convs]
    gammas, betas = [n.weight.detach() for n in norms], [n.bias.detach() for n in norms]
    layers = model.block_layers
    x = rounded("maps", F.conv2d(images, w[0], padding=1))
    blocks: list[Block] = []
    for i in range(3):
        first = i * (layers + 1)
        if i > 0:
            average = rounded(AVERAGE, F.avg_pool2d(blocks[-1].active(layers), 2))
            x = rounded("maps", F.conv2d(average, w[first]))
        each = slice(first, first + layers + 1)
        blocks.append(
            Block(x, w[first + 1 : first + 1 + layers], gammas[each], betas[each], rounded)
        )

    d_convs: list[Tensor] = []
    d_gammas: list[Tensor] = []
    d_betas: list[Tensor] = []
    places = blocks[2].maps[0, 0].numel()
    d_active = (d_pooled[2] / places)[:, :, None, None].expand_as(blocks[2].maps)
    for i in reversed(range(3)):
        d_x, d_layers, d_gamma, d_beta = blocks[i].backward(
            d_active, None if i == 2 else d_pooled[i]
        )
        d_convs[:0], d_gammas[:0], d_betas[:0] = d_layers, d_gamma, d_beta
        if i > 0:
            conv = w[i * (layers + 1)]
            average = rounded("average_again", F.avg_pool2d(blocks[i - 1].active(layers), 2))
            d_convs.insert(0, conv2d_weight(average, conv.shape, d_x))
            d_active = F.interpolate(F.conv_transpose2d(d_x, conv), scale_factor=2) / 4
    d_convs.insert(0, conv2d_weight(images, w[0].shape, d_x, padding=1))
    return [*d_convs, *d_gammas, *d_betas]


def by_modules(
    model: DenseNetDS, images: Tensor, d_pooled: Sequence[Tensor], autocast: bool
) -> list[Tensor]:
    """Return the same gradients of the modules, in the model's dtype or under autocast to bf16."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        taps = model.taps(images)
    pooled = [tap.to(torch.promote_types(tap.dtype, torch.float32)).mean((2, 3)) for tap in taps]
    convs, norms = model.in_forward_order()
    parameters = [
        *(conv.weight for conv in convs),
        *(norm.weight for norm in norms),
        *(norm.bias for norm in norms),
    ]
    d = [g.to(p.dtype) for g, p in zip(d_pooled, pooled, strict=True)]
    return list(torch.autograd.grad(pooled, parameters, d))


def problem(batch: int, side: int, seed: int) -> tuple[DenseNetDS, Tensor, list[Tensor]]:
    """Return a network in fp64 whose weights bf16 holds, images that it holds, and gradients."""
    torch.manual_seed(seed)
    model = densenet_ds()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.normal_(0.8, 0.5)
                module.bias.normal_(0.0, 0.3)
            elif isinstance(module, nn.Conv2d):
                module.weight.copy_(module.weight.to(torch.bfloat16))
    images = torch.randn(batch, 3, side, side).to(torch.bfloat16).double()
    d_pooled = [torch.randn(batch, head.linear.in_features).double() for head in model.heads]
    return model.double(), images, d_pooled


def errors(grads: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, float]:
    """Return the median and the largest relative error of the parameters' gradients."""
    each = [
        float((g.double() - e).norm() / e.norm()) for g, e in zip(grads, exact, strict=True)
    ]  # fmt: skip
    return statistics.median(each), max(each)


def settings() -> dict[str, frozenset[str]]:
    """Return what is measured: name -> roundings made."""
    everything = frozenset(KERNELS)
    found = {"none": frozenset[str](), "the kernels'": everything}
    found["the kernels' and average"] = everything | {AVERAGE}
    for name in (*KERNELS, AVERAGE):
        found[f"only {name}"] = frozenset({name})
    for name in KERNELS:
        found[f"the kernels' but {name}"] = everything - {name}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="images")
    parser.add_argument("--side", type=int, default=32, help="pixels of an image's side")
    parser.add_argument("--seeds", type=int, default=3, help="networks and batches")
    options = parser.parse_args(arguments)
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(options.seeds):
        model, images, d_pooled = problem(options.batch, options.side, seed)
        exact = by_modules(copy.deepcopy(model), images, d_pooled, autocast=False)
        single = copy.deepcopy(model).float()
        stock = by_modules(single, images.float(), d_pooled, autocast=True)
        found.setdefault("modules under autocast", []).append(errors(stock, exact))
        for name, made in settings().items():
            ours = emulate(model, images, d_pooled, Rounding(made))
            found.setdefault(name, []).append(errors(ours, exact))
    print(f"{'roundings':27}  {'median':>8}  {'largest':>8}")
    for name, pairs in found.items():
        median, largest = (statistics.fmean(values) for values in zip(*pairs, strict=True))
        print(f"{name:27}  {median:8.4f}  {largest:8.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
