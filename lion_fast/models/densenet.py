"""DenseNet-DS: a compact DenseNet (Huang et al. 2017) with heads on each of its dense blocks.

With the paper's k = 8 and 6 layers a block (channels at 10 classes; convolution weights without
batch norm):

    part            channels    convolution weights    tap
    stem 3x3        24             648
    dense block 1   72          19,008                 auxiliary head 1 (720 weights)
    transition 1    36           2,592
    dense block 2   84          24,192                 auxiliary head 2 (840 weights)
    transition 2    42           3,528
    dense block 3   90          26,784                 main head, after batch norm and ReLU (900)
    sum                         76,752                 81,678 parameters in all

The paper (arXiv 2601.02105) contradicts itself here. Its text (k = 8, three blocks of 6 layers,
"77K" parameters, heads of 2 %) and the head sizes of its table, 720 and 840, give the network
above. The same table's 96 channels and 43,680 parameters of block 3, and so its main classifier of
960, cannot come from k = 8 after 42 channels.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lion_fast.errors import UserError
from lion_fast.kernels import Impl, dense_backbone, persistent_backbone
from lion_fast.models.base import DeeplySupervised, check_images

NUM_BLOCKS = 3
STEM_CHANNELS = 24


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution that makes `growth_rate` new channels."""

    def __init__(self, in_channels: int, growth_rate: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth_rate, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the new channels alone."""
        return self.conv(F.relu(self.norm(x), inplace=True))


class DenseBlock(nn.Module):
    """Layers that each read all channels so far and append their own (eq. 8).

    Concatenation copies, and writing into one buffer instead would overwrite what batch norm saved
    for its backward. In training every layer normalises a shared channel with the same batch
    statistics, which `DenseNetDS.pooled_taps` shares.
    """

    def __init__(self, in_channels: int, num_layers: int, growth_rate: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DenseLayer(in_channels + i * growth_rate, growth_rate) for i in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the input channels followed by every layer's."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Transition(nn.Module):
    """Batch norm, ReLU, a 1x1 convolution to fewer channels, and 2x2 average pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve height and width, rounded down."""
        return F.avg_pool2d(self.conv(F.relu(self.norm(x), inplace=True)), 2)


class DenseNetDS(DeeplySupervised):
    """See `densenet_ds`."""

    runs_norms_once = True
    runs_convolutions_once = True

    def __init__(
        self, num_classes: int, growth_rate: int, block_layers: int, stem_channels: int
    ) -> None:
        super().__init__()
        self.growth_rate, self.block_layers = growth_rate, block_layers
        self.stem = nn.Conv2d(3, stem_channels, 3, padding=1, bias=False)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        channels, tap_channels = stem_channels, []
        for i in range(NUM_BLOCKS):
            if i > 0:
                self.transitions.append(Transition(channels, channels // 2))
                channels //= 2
            self.blocks.append(DenseBlock(channels, block_layers, growth_rate))
            channels += block_layers * growth_rate
            tap_channels.append(channels)
        self.norm = nn.BatchNorm2d(channels)
        self.attach_heads(tap_channels, num_classes)

    def taps(self, images: Tensor) -> list[Tensor]:
        """Return the raw outputs of blocks 1 and 2, and block 3's after batch norm and ReLU."""
        check_images(images)
        first, *rest = self.blocks
        x = first(self.stem(images))
        taps = []
        for transition, block in zip(self.transitions, rest, strict=True):
            taps.append(x)
            x = block(transition(x))
        return [*taps, F.relu(self.norm(x), inplace=True)]

    def pooled_taps(
        self, images: Tensor, *, impl: Impl = "auto", persistent: bool = False
    ) -> list[Tensor]:
        """Return every tap's mean over its positions, (B, C_h), by `dense_backbone` in training.

        persistent: by `persistent_backbone`, whatever impl says.

        Weights, running statistics and batch counters are those of the modules, which compute the
        taps in evaluation mode. The images' dtype is the maps', also under autocast. Raises
        UserError where norms differ in mode, momentum or eps.
        """
        if not self.training:
            return super().pooled_taps(images, impl=impl)
        check_images(images)
        convs, norms = self.in_forward_order()
        momentum, eps = norms[0].momentum, norms[0].eps
        for norm in norms:
            if momentum is None or (norm.training, norm.momentum, norm.eps) != (
                True,
                momentum,
                eps,
            ):
                raise UserError(
                    "the fused backbone trains all norms alike, and these differ in mode, momentum"
                    " or eps: take backbone modules"
                )
        # None while a step counts for all norms itself.
        counters = [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None]
        if counters:
            torch._foreach_add_(counters, 1)
        backbone = persistent_backbone if persistent else partial(dense_backbone, impl=impl)
        return backbone(
            images,
            [conv.weight for conv in convs],
            [norm.weight for norm in norms],
            [norm.bias for norm in norms],
            [norm.running_mean for norm in norms],
            [norm.running_var for norm in norms],
            block_layers=self.block_layers,
            momentum=momentum,
            eps=eps,
        )

    def in_forward_order(self) -> tuple[list[nn.Conv2d], list[nn.BatchNorm2d]]:
        """Return the convolutions, the stem's first, and the norms, the last behind block 3."""
        parts: list[Any] = []
        for i, block in enumerate(self.blocks):
            if i > 0:
                parts.append(self.transitions[i - 1])
            # Dynamo of torch 2.11 traces no `list += ModuleList`.
            parts.extend(block.layers)  # type: ignore[arg-type]
        return [self.stem, *(p.conv for p in parts)], [*(p.norm for p in parts), self.norm]


def densenet_ds(
    num_classes: int = 10,
    growth_rate: int = 8,
    block_layers: int = 6,
    stem_channels: int = STEM_CHANNELS,
) -> DenseNetDS:
    """Build DenseNet-DS with weights as PyTorch leaves them; `lion_fast.init` sets them.

    growth_rate: channels that each layer adds. block_layers: layers in each of the three blocks.
    Images are (B, 3, height, width) of at least 8x8 pixels. Raises UserError on fewer than 2
    classes and sizes below 1.
    """
    sizes = {
        "growth_rate": growth_rate,
        "block_layers": block_layers,
        "stem_channels": stem_channels,
    }
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name} is {value}: give at least 1")
    return DenseNetDS(num_classes, growth_rate, block_layers, stem_channels)
