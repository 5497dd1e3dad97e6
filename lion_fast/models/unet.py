"""UNet-DS: a small U-Net (Ronneberger et al. 2015) whose every decoder stage has a head.

    encoder stage s    2 x (3x3 convolution, batch norm, ReLU) of width 2^s channels, 2x2 max pool
    decoder stage s    2x2 transposed convolution, concatenation with encoder stage s, and the same
                       two convolutions of width 2^s channels; a tap, which a 1x1 convolution reads

Taps go from the coarsest decoder stage to the finest, at full resolution, which is the main one's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lion_fast.errors import UserError
from lion_fast.models.base import DeeplySupervised, check_images
from lion_fast.models.heads import DenseHeads

WIDTH, STAGES = 12, 4


def _two_convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class UNetDS(DeeplySupervised):
    """See `unet_ds`."""

    runs_norms_once = True
    runs_convolutions_once = True

    def __init__(self, num_classes: int, width: int, stages: int) -> None:
        super().__init__()
        widths = [width << stage for stage in range(stages)]
        self.down = nn.ModuleList(
            _two_convolutions(below, above)
            for below, above in zip([3, *widths], widths, strict=False)
        )
        coarse_to_fine = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, above, 2, 2, bias=False) for below, above in coarse_to_fine
        )
        self.join = nn.ModuleList(
            _two_convolutions(2 * above, above) for _, above in coarse_to_fine
        )
        self.attach_heads([above for _, above in coarse_to_fine], num_classes, DenseHeads)

    def taps(self, images: Tensor) -> list[Tensor]:
        """Return the decoder's maps, coarse to fine; the last is at full resolution."""
        check_images(images)
        check_stride((images.shape[2], images.shape[3]), len(self.down))
        skips: list[Tensor] = []
        x = images
        for number, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if number else x)
            skips.append(x)
        maps = []
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(torch.cat([up(x), skip], 1))
            maps.append(x)
        return maps


def check_stride(image_size: tuple[int, int], stages: int) -> None:
    """Raise UserError unless both sides of (height, width) are multiples of 2^(stages - 1)."""
    height, width = image_size
    stride = 1 << (stages - 1)
    if height % stride or width % stride:
        raise UserError(
            f"images are {height}x{width} pixels, and a unet_ds of {stages} stages takes multiples"
            f" of {stride}: resize them, or take fewer stages"
        )


def unet_ds(num_classes: int = 11, width: int = WIDTH, stages: int = STAGES) -> UNetDS:
    """Build UNet-DS with weights as PyTorch leaves them; `lion_fast.init` sets them.

    width: channels of the first stage; each later one doubles them. stages: resolutions, so that
    there are stages - 1 heads. Images are (B, 3, height, width), both multiples of 2^(stages - 1)
    and at least 8. Raises UserError on fewer than 2 classes, a width below 1 and fewer than 2
    stages.
    """
    for name, value, least in (("width", width, 1), ("stages", stages, 2)):
        if value < least:
            raise UserError(f"{name} is {value}: give at least {least}")
    return UNetDS(num_classes, width, stages)
