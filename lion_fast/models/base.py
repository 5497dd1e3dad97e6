"""The surface that every deeply-supervised network of this package shares.

A backbone returns its taps as a list, the main head's last. Heads never touch the backbone's path
(but for ResNet-DS with `placement="residual"`), so what they compute, cross-entropy and weighting
of all heads are one op, which the heads know (`heads.py`).

Shapes: B images, H heads, K classes, C_h channels of tap h.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lion_fast.errors import UserError
from lion_fast.kernels import Impl, pooled_supervision_loss
from lion_fast.models.heads import Heads, Losses

MIN_IMAGE_SIDE = 8
"""Pixels. Three halvings leave one pixel, and the data loaders go no lower."""


class DeeplySupervised(nn.Module):
    """A backbone with taps, and the heads that read them: the base class of your own network.

    A subclass builds its backbone, then calls `attach_heads` with the channels of its taps, and
    defines `taps`. It then trains, initialises and exports like densenet_ds and resnet_ds:

        import torch.nn.functional as F
        from torch import nn
        from lion_fast.models import DeeplySupervised


        class Plain(DeeplySupervised):
            '''Three convolutions with batch norm and a tap behind each.'''

            def __init__(self, num_classes, width=16):
                super().__init__()
                widths = [width, 2 * width, 4 * width]
                self.convolutions = nn.ModuleList(
                    nn.Conv2d(below, above, 3, padding=1, bias=False)
                    for below, above in zip([3, *widths], widths)
                )
                self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in widths)
                self.attach_heads(widths, num_classes)

            def taps(self, images):
                maps, x = [], images
                for convolution, norm in zip(self.convolutions, self.norms):
                    x = F.relu(norm(convolution(x)))
                    maps.append(x)
                    x = F.max_pool2d(x, 2)
                return maps


        model = initialize_(Plain(num_classes=10), "lion_dg")
        losses = model.loss(images, labels, 0.3)
        losses.loss.backward()

    The contract of `taps`: H maps (B, C_h, height_h, width_h) in forward order, the main head's
    last, no head called on the way. With `attach_heads(widths, num_classes, DenseHeads)` heads give
    a class to every pixel of their maps, and targets are masks. More members may be overridden:
    `residual_branches`, which fixup and rezero ask for, `heads_in_path`, `runs_norms_once`,
    `runs_convolutions_once` and `pooled_taps`.

    Under DistributedDataParallel call the wrapper, `ddp(images, labels, aux_weight)`, never
    `ddp.module.loss(...)`: only calls of the wrapper synchronise gradients.
    """

    heads: Heads
    heads_in_path: bool = False
    """Whether the backbone runs through the heads' weights, which LION-DG refuses elsewhere."""
    runs_norms_once: bool = False
    """Whether `taps` runs each batch norm exactly once: a step may then count for all of them."""
    runs_convolutions_once: bool = False
    """Whether `taps` runs each convolution exactly once and reads no weight of theirs besides: a
    step may then cast all of them at once."""
    _main_mask: Tensor
    _aux_mask: Tensor

    def attach_heads(
        self, tap_channels: Sequence[int], num_classes: int, kind: type[Heads] = Heads
    ) -> None:
        """Add the heads: `self.heads.aux`, a ModuleList, and `self.heads.main`.

        tap_channels: C_h of every tap, the main one's last. kind: Heads for a label an image,
        DenseHeads for one a pixel. To be called last in `__init__`, so that the backbone's
        parameters come first in `parameters()`. Raises UserError on fewer than 2 classes.
        """
        if num_classes < 2:
            raise UserError(f"num_classes is {num_classes}: a classifier needs at least 2")
        self.heads = kind(tap_channels, num_classes)
        # On the device beforehand, so that a step neither copies from the host nor waits for it.
        main_mask = torch.tensor([0.0] * (len(tap_channels) - 1) + [1.0])
        self.register_buffer("_main_mask", main_mask, persistent=False)
        aux_mask = torch.tensor([*self.heads.aux_factors(), 0.0])
        self.register_buffer("_aux_mask", aux_mask, persistent=False)

    def taps(self, images: Tensor) -> list[Tensor]:
        """Return H maps (B, C_h, height_h, width_h) of images (B, 3, height, width).

        The main head's map comes last. Raises UserError on other shapes and on images below 8x8
        pixels.
        """
        raise NotImplementedError

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        aux_weight: float | Tensor = 0.3,
        *,
        label_smoothing: float = 0.0,
        dice: float = 0.0,
        impl: Impl = "auto",
    ) -> list[Tensor] | Losses:
        """Return the logits (B, K) of every head, the main head's last; given labels, `loss`.

        Dense heads' logits are (B, K, height_h, width_h).
        """
        if labels is not None:
            return self.loss(
                images, labels, aux_weight, label_smoothing=label_smoothing, dice=dice, impl=impl
            )
        taps = self.taps(images)
        return [head(tap) for head, tap in zip(self.heads, taps, strict=True)]

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        aux_weight: float | Tensor,
        *,
        label_smoothing: float = 0.0,
        dice: float = 0.0,
        impl: Impl = "auto",
    ) -> Losses:
        """Compute the paper's eq. 1, L_main + aux_weight * sum of L_aux, over all heads in one op.

        images: (B, 3, height, width). target: (B,) int64, or masks (B, height, width) of any
        integer type for dense heads, whose losses are halved a level beyond the finest auxiliary
        one. dice: weight of Dice, for dense heads. aux_weight: a float, or a () float32
        tensor on the device that may change between steps without a host sync or a recompilation.
        """
        return self.loss_from_taps(
            self.taps(images),
            target,
            aux_weight,
            label_smoothing=label_smoothing,
            dice=dice,
            impl=impl,
        )

    def loss_from_taps(
        self,
        taps: Sequence[Tensor],
        target: Tensor,
        aux_weight: float | Tensor,
        *,
        label_smoothing: float = 0.0,
        dice: float = 0.0,
        impl: Impl = "auto",
    ) -> Losses:
        """Compute `loss` of maps that `taps` returned."""
        return self.heads.loss(
            taps,
            target,
            self.loss_weights(aux_weight),
            label_smoothing=label_smoothing,
            dice=dice,
            impl=impl,
        )

    def pooled_taps(self, images: Tensor, *, impl: Impl = "auto") -> list[Tensor]:
        """Return every tap's mean over its positions, (B, C_h) in fp32 or wider.

        A network that can compute them without making its taps overrides this.
        """
        return [
            tap.mean((2, 3), dtype=torch.promote_types(tap.dtype, torch.float32))
            for tap in self.taps(images)
        ]

    def loss_from_pooled(
        self,
        pooled: Sequence[Tensor],
        target: Tensor,
        aux_weight: float | Tensor,
        *,
        label_smoothing: float = 0.0,
        impl: Impl = "auto",
    ) -> Losses:
        """Compute `loss` of what `pooled_taps` returned."""
        return pooled_supervision_loss(
            pooled,
            *self.heads.weights_and_biases(),
            target,
            self.loss_weights(aux_weight),
            label_smoothing=label_smoothing,
            impl=impl,
        )

    def loss_weights(self, aux_weight: float | Tensor) -> Tensor:
        """Return (H,): 1.0 for the main head, and for others aux_weight times `aux_factors`."""
        return self._main_mask + self._aux_mask * aux_weight

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters outside every head, the main head included in what is left out."""
        heads = set(self.heads.parameters())
        return (parameter for parameter in self.parameters() if parameter not in heads)

    def aux_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the auxiliary heads."""
        return self.heads.aux.parameters()

    def residual_branches(self) -> list[list[nn.Module]]:
        """Return the layers of every residual branch in forward order; none by default."""
        return []


def check_images(images: Tensor) -> None:
    """Raise UserError unless images are (B, 3, height, width) of at least 8x8 pixels."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"images have shape {tuple(images.shape)}: give (batch, 3, height, width)")
    check_image_size((images.shape[2], images.shape[3]))


def check_image_size(image_size: tuple[int, int]) -> None:
    """Raise UserError unless (height, width) is at least 8x8 pixels."""
    height, width = image_size
    if min(height, width) < MIN_IMAGE_SIDE:
        raise UserError(
            f"images are {height}x{width} pixels: resize them to at least "
            f"{MIN_IMAGE_SIDE}x{MIN_IMAGE_SIDE}"
        )
