"""A small network, and heads of every shape to stand beside its backbone."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations


class Net(nn.Module):
    """A backbone of one convolution, heads called `aux...` beside it, and a main classifier."""

    def __init__(self, tapped=True, **heads):
        super().__init__()
        for name, head in heads.items():
            self.add_module(name, head)
        self.heads_run = list(heads) if tapped else []
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        outputs = []
        for name in self.heads_run:
            head = getattr(self, name)
            members = [head]
            if isinstance(head, nn.ModuleList):
                members = list(head)
            elif isinstance(head, nn.ModuleDict):
                members = list(head.values())
            outputs += [member(x) for member in members]
        return {"out": self.fc(x.mean((2, 3))), "aux": outputs}


def pooled(*layers):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)


def convolutions(kernel=3, bias=True):
    return nn.Sequential(
        nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, kernel, padding=kernel // 2, bias=bias)
    )


class Backwards(nn.Module):
    """A head whose output layer is registered first."""

    def __init__(self):
        super().__init__()
        self.out = nn.Conv2d(8, 4, 1)
        self.hidden = nn.Conv2d(6, 8, 1)

    def forward(self, x):
        return self.out(F.relu(self.hidden(x)))


class Branches(nn.Module):
    """A head whose logits are a sum of two layers'."""

    def __init__(self):
        super().__init__()
        self.near, self.far = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x):
        return F.interpolate(self.near(x) + self.far(x), scale_factor=2)


class HandWritten(nn.Module):
    """A linear layer that is none of torch.nn's."""

    def __init__(self, width=6):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(width, 4))
        self.offset = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return (x if x.ndim == 2 else x.mean((2, 3))) @ self.matrix + self.offset


class OwnBias(nn.Module):
    """A head that adds a bias of its own behind a linear layer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4, bias=False)
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return self.linear(x.mean((2, 3))) + self.bias


class Keywords(nn.Module):
    """A head that returns a tuple and takes more than the map."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 1)

    def forward(self, x, size=(8, 8)):
        return self.conv(x), F.interpolate(self.conv(x), size)


def normed(layer):
    norm = nn.BatchNorm1d(4)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    return pooled(layer, norm)


# Head, and the parameters of it that are zeroed.
RIGHT = {
    "conv1x1, relu, conv3x3": (convolutions, ["2.weight", "2.bias"]),
    "conv3x3 without bias": (lambda: convolutions(bias=False), ["2.weight"]),
    "conv5x5": (lambda: convolutions(5), ["2.weight", "2.bias"]),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(6, 8, 1), nn.ConvTranspose2d(8, 4, 2, 2)),
        ["1.weight", "1.bias"],
    ),
    "linear": (lambda: pooled(nn.Linear(6, 4)), ["2.weight", "2.bias"]),
    "trailing dropout, pool and flatten": (
        lambda: nn.Sequential(
            nn.Conv2d(6, 4, 1), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        ["0.weight", "0.bias"],
    ),
    "trailing upsampling": (
        lambda: nn.Sequential(convolutions(1), nn.Upsample(scale_factor=2)),
        ["0.2.weight", "0.2.bias"],
    ),
    "registered backwards": (Backwards, ["out.weight", "out.bias"]),
    "parallel branches": (Branches, ["near.weight", "near.bias", "far.weight", "far.bias"]),
    "hand-written": (HandWritten, ["matrix", "offset"]),
    "hand-written twice": (
        lambda: nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(), HandWritten()),
        ["2.matrix", "2.offset"],
    ),
    "own bias": (OwnBias, ["linear.weight", "bias"]),
    "two outputs": (Keywords, ["conv.weight", "conv.bias"]),
    "linear and batch norm": (lambda: normed(nn.Linear(6, 4)), ["3.weight", "3.bias"]),
    "learnt activation": (
        lambda: pooled(nn.Linear(6, 4), nn.PReLU()), ["2.weight", "2.bias"]
    ),
    "relu in place": (
        lambda: nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1)),
        ["2.weight", "2.bias"],
    ),
    "weight_norm": (
        lambda: pooled(parametrizations.weight_norm(nn.Linear(6, 4))),
        ["2.bias", "2.parametrizations.weight.original0"],
    ),
    "old weight_norm": (
        lambda: pooled(quietly(nn.utils.weight_norm, nn.Linear(6, 4))), ["2.bias", "2.weight_g"]
    ),
}  # fmt: skip


def quietly(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return function(*arguments)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(F.relu(self.fc(x.mean((2, 3)))))


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        return x + self.conv(x)


def frozen():
    return pooled(nn.Linear(6, 4)).requires_grad_(False)


def orthogonal():
    return pooled(parametrizations.orthogonal(nn.Linear(6, 4)))


REFUSED = {
    "spectral_norm": (
        lambda: pooled(parametrizations.spectral_norm(nn.Linear(6, 4))),
        "spectral_norm divides 'aux.2'.*remove",
    ),
    "old spectral_norm": (
        lambda: pooled(quietly(nn.utils.spectral_norm, nn.Linear(6, 4))),
        "spectral_norm divides 'aux.2'.*remove",
    ),
    "orthogonal": (orthogonal, "head 'aux' cannot be zeroed: with 'aux.2' zeroed"),
    "norm without parameters": (
        lambda: pooled(nn.Linear(6, 4), nn.BatchNorm1d(4, affine=False)),
        "ends in 'aux.3', a BatchNorm1d without parameters.*affine=True",
    ),
    "softmax": (
        lambda: pooled(nn.Linear(6, 4), nn.Softmax(1)), "'aux.2' zeroed its logits are not 0"
    ),
    "layer run twice": (Twice, "'aux.fc' zeroed its weights get no gradient"),
    "skip connection": (Skip, "'aux.conv' zeroed its logits are not 0"),
    "frozen": (frozen, "frozen 'aux.2.weight' and 'aux.2.bias'.*requires_grad"),
    "lazy": (lambda: pooled(quietly(nn.LazyLinear, 4)), "lazy layer.*run one batch first"),
    "meta": (lambda: pooled(nn.Linear(6, 4)).to("meta"), "meta device.*to_empty"),
}  # fmt: skip
