"""ResNet-DS: ResNet-18 (He et al. 2016) for small images, with a head on each of its stages.

The paper (arXiv 2601.02105) does not specify its ResNet-DS. This is the common CIFAR form, whose
11.2 M parameters fit the accuracies that the paper reports: a 3x3 stem without pooling, four stages
of two basic blocks, widths w to 8w (w = 64), auxiliary heads on stages 1 to 3, the main head on 4.

`placement` says where the auxiliary weights W (K, C) and b (K,) of a stage stand. With F the
residual branch of the stage's last block, x its input and h its output:

- "side_tap", the design that the paper trains: h = relu(x + F(x)), and the head reads h. W is
  beside the path.
- "residual", the wrong design of its Theorem 1, which the paper describes ("auxiliary outputs are
  embedded within F") but does not define. Here the branch's map F(x) passes through the auxiliary
  classifier at every position and back through the same weights, transposed: h = relu(x + W^T (W
  F(x) + b)), and the head reads F(x), so its logits are the average of the embedded ones. Nothing
  is added: both placements have the same parameters under the same names, and a comparison of the
  two compares the wiring alone. With W = 0 and b = 0 the branch adds nothing (eq. 24: h = relu(x))
  and no loss sends it a gradient: the dead zone. The auxiliary loss moves W first, and only then
  does the branch wake up. For every W the branch's contribution has rank K at most.
"""

from typing import cast, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lion_fast.config import Placement
from lion_fast.errors import UserError
from lion_fast.models.base import DeeplySupervised, check_images
from lion_fast.models.heads import Head

NUM_STAGES = 4


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def branch(self, x: Tensor) -> Tensor:
        """Return the residual F(x)."""
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return self.norm2(self.conv2(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut(x) + F(x))."""
        return self.join(x, self.branch(x))

    def join(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return relu(shortcut(x) + residual)."""
        return F.relu(self.shortcut(x) + residual, inplace=True)


def through_head(residual: Tensor, linear: nn.Linear) -> Tensor:
    """Compute W^T (W r + b) at every position of a map r (B, C, height, width)."""
    logits = linear(residual.permute(0, 2, 3, 1))
    return F.linear(logits, linear.weight.t()).permute(0, 3, 1, 2)


class ResNetDS(DeeplySupervised):
    """See `resnet_ds`."""

    runs_norms_once = True
    runs_convolutions_once = True

    def __init__(self, num_classes: int, placement: Placement, base_width: int) -> None:
        super().__init__()
        self.placement = placement
        self.heads_in_path = placement == "residual"
        self.stem = nn.Conv2d(3, base_width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(base_width)
        self.stages = nn.ModuleList()
        widths = [base_width << i for i in range(NUM_STAGES)]
        for below, width in zip([base_width, *widths], widths, strict=False):
            stride = 1 if below == width else 2
            self.stages.append(
                nn.Sequential(BasicBlock(below, width, stride), BasicBlock(width, width, 1))
            )
        self.attach_heads(widths, num_classes)

    def taps(self, images: Tensor) -> list[Tensor]:
        """Return the stages' outputs; for heads in the path, their last residuals instead."""
        check_images(images)
        x = F.relu(self.norm(self.stem(images)), inplace=True)
        taps = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            if self.placement == "side_tap" or head is self.heads.main:
                x = stage(x)
                taps.append(x)
            else:
                x, tap = self._stage_through_head(cast(nn.Sequential, stage), cast(Head, head), x)
                taps.append(tap)
        return taps

    @staticmethod
    def _stage_through_head(stage: nn.Sequential, head: Head, x: Tensor) -> tuple[Tensor, Tensor]:
        x = stage[0](x)
        last = cast(BasicBlock, stage[1])
        residual = last.branch(x)
        return last.join(x, through_head(residual, head.linear)), residual

    def residual_branches(self) -> list[list[nn.Module]]:
        """Return convolution, norm, convolution, norm of each of the eight branches."""
        blocks = [module for module in self.modules() if isinstance(module, BasicBlock)]
        return [[block.conv1, block.norm1, block.conv2, block.norm2] for block in blocks]


def resnet_ds(
    num_classes: int = 10, placement: Placement = "side_tap", base_width: int = 64
) -> ResNetDS:
    """Build ResNet-DS with weights as PyTorch leaves them; `lion_fast.init` sets them.

    placement: "side_tap", or "residual" for Theorem 1's deliberately wrong design (see the module's
    docstring). base_width: channels of the first stage; each later stage doubles them. Images are
    (B, 3, height, width) of at least 8x8 pixels. Raises UserError on fewer than 2 classes, an
    unknown placement and a width below 1.
    """
    if placement not in get_args(Placement):
        raise UserError(f"placement is {placement!r}: take one of {', '.join(get_args(Placement))}")
    if base_width < 1:
        raise UserError(f"base_width is {base_width}: give at least 1")
    return ResNetDS(num_classes, placement, base_width)
