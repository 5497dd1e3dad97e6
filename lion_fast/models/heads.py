"""Heads, and the op that computes the loss of all of them: a label an image, or one a pixel.

A set of heads holds the auxiliary ones in the order of the taps and the main one, and knows its
loss, so that a network of either kind is a backbone and one of these.

Shapes: B images, H heads, K classes, C_h channels of tap h.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lion_fast.errors import UserError
from lion_fast.kernels import (
    DenseLosses,
    HeadLosses,
    Impl,
    deep_supervision_loss,
    dense_supervision_loss,
)

Losses: TypeAlias = HeadLosses | DenseLosses


class Head(nn.Module):
    """Global average pool, then a linear layer with bias."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_classes)

    @property
    def output_layer(self) -> nn.Linear:
        """The layer that gives the logits: weight (K, C_h), bias (K,)."""
        return self.linear

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (B, K) of a map (B, C_h, height, width)."""
        return self.linear(feature.mean((2, 3)))


class DenseHead(nn.Module):
    """A 1x1 convolution with bias."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, num_classes, 1)

    @property
    def output_layer(self) -> nn.Conv2d:
        """The layer that gives the logits: weight (K, C_h, 1, 1), bias (K,)."""
        return self.convolution

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (B, K, height, width) of a map (B, C_h, height, width)."""
        return self.convolution(feature)


class Heads(nn.Module):
    """The auxiliary heads in forward order, and the main head: a label an image."""

    is_dense = False
    """Whether targets are masks (B, H, W) and logits have positions."""
    kind: type[Head] | type[DenseHead] = Head

    def __init__(self, tap_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        *aux, main = (self.kind(channels, num_classes) for channels in tap_channels)
        self.aux = nn.ModuleList(aux)
        self.main = main

    def __iter__(self) -> Iterator[Head | DenseHead]:
        """Yield every head in the order of the taps: the main head last."""
        yield from self.aux  # type: ignore[misc]
        yield self.main

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.main.output_layer.weight.shape[0]

    def aux_factors(self) -> list[float]:
        """Return by what the auxiliary weight is multiplied for each auxiliary head."""
        return [1.0] * len(self.aux)

    def weights_and_biases(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return every head's weight and bias (K,)."""
        layers = [head.output_layer for head in self]
        biases = [layer.bias for layer in layers]
        assert all(bias is not None for bias in biases)
        return [layer.weight for layer in layers], biases  # type: ignore[return-value]

    def loss(
        self,
        taps: Sequence[Tensor],
        target: Tensor,
        loss_weights: Tensor,
        *,
        label_smoothing: float = 0.0,
        dice: float = 0.0,
        impl: Impl = "auto",
    ) -> Losses:
        """Compute the loss of all heads by `deep_supervision_loss`; see there.

        Raises UserError on `dice`, which is of heads that give a class to every pixel.
        """
        if dice:
            raise UserError(f"dice is {dice}, and these heads give a class an image: leave it out")
        weights, biases = self.weights_and_biases()
        return deep_supervision_loss(
            taps,
            weights,
            biases,
            target,
            loss_weights,
            label_smoothing=label_smoothing,
            impl=impl,
        )


class DenseHeads(Heads):
    """The same with a class for every pixel.

    Each level coarser than the finest auxiliary one weighs half as much, as nnU-Net's do.
    """

    is_dense = True
    kind = DenseHead

    def aux_factors(self) -> list[float]:
        """Return 1 for the finest auxiliary head, half as much a level coarser."""
        return [0.5**level for level in reversed(range(len(self.aux)))]

    def loss(
        self,
        taps: Sequence[Tensor],
        target: Tensor,
        loss_weights: Tensor,
        *,
        label_smoothing: float = 0.0,
        dice: float = 0.0,
        impl: Impl = "auto",
    ) -> Losses:
        """Compute the loss of all heads by `dense_supervision_loss`; see there.

        target: (B, H, W), 255 where a pixel is of no class. impl: of one implementation so far,
        which runs everywhere. Raises UserError on `label_smoothing`.
        """
        if label_smoothing:
            raise UserError(
                f"label_smoothing is {label_smoothing}, and these heads give a class a pixel:"
                " leave it out"
            )
        weights, biases = self.weights_and_biases()
        return dense_supervision_loss(taps, weights, biases, target, loss_weights, dice=dice)


def masks_of(levels: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
    """Return the classes (B, *size) uint8 that each level's logits (B, K, height, width) give.

    A coarse level's classes are repeated over the pixels that they stand for.
    """
    masks = []
    for logits in levels:
        classes = logits.argmax(1, keepdim=True).to(torch.uint8)
        if classes.shape[2:] != size:
            classes = nn.functional.interpolate(classes, size, mode="nearest-exact")
        masks.append(classes[:, 0])
    return masks
