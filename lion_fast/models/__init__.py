"""Deeply-supervised networks: a backbone, its taps, and a head on every tap.

`model(images)` returns the logits of every head, the main one's last; `model.taps(images)` the maps
that they read; `model.loss(images, target, aux_weight)` the weighted loss of all heads in one op.
`model.heads.aux` and `model.heads.main` hold the heads, stock `nn.Linear` layers inside, or stock
1x1 convolutions where they give a class to every pixel.
Initialisation is `lion_fast.init`'s part.
"""

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.models.base import DeeplySupervised, check_image_size
from lion_fast.models.densenet import STEM_CHANNELS, DenseNetDS, densenet_ds
from lion_fast.models.heads import DenseHead, DenseHeads, Head, Heads, Losses, masks_of
from lion_fast.models.resnet import ResNetDS, resnet_ds
from lion_fast.models.unet import STAGES, UNetDS, check_stride, unet_ds

__all__ = [
    "STEM_CHANNELS",
    "DeeplySupervised",
    "DenseHead",
    "DenseHeads",
    "DenseNetDS",
    "Head",
    "Heads",
    "Losses",
    "ResNetDS",
    "UNetDS",
    "build_model",
    "densenet_ds",
    "masks_of",
    "resnet_ds",
    "unet_ds",
]


def build_model(
    config: TrainConfig, num_classes: int, image_size: tuple[int, int]
) -> DeeplySupervised:
    """Build the network that `config` names, for images of (height, width) pixels.

    Raises UserError on images below 8x8 or of sides that the network cannot halve, on fewer than 2
    classes, and on a placement, an initialisation or a loss that the network does not have.
    """
    check_image_size(image_size)
    if config.arch == "unet_ds":
        _check_dense(config)
        check_stride(image_size, STAGES)
        return unet_ds(num_classes, config.unet_width)
    if config.dice:
        raise UserError(
            f"dice is {config.dice}, and {config.arch} gives a class an image: take arch=unet_ds"
        )
    if config.arch == "resnet_ds":
        return resnet_ds(num_classes, config.placement, config.base_width)
    if config.placement != "side_tap":
        raise UserError(
            f"placement is {config.placement!r}: "
            f"{config.arch} has no residual path, take arch=resnet_ds"
        )
    return densenet_ds(num_classes, config.growth_rate, config.block_layers)


def _check_dense(config: TrainConfig) -> None:
    """Raise UserError on what a network that gives a class to every pixel does not have."""
    for name, without in (("placement", "side_tap"), ("label_smoothing", 0.0)):
        if (value := getattr(config, name)) != without:
            raise UserError(
                f"{name} is {value!r}, and {config.arch} gives a class a pixel: leave it out"
            )
    if config.init == "gradinit":
        raise UserError(
            f"init gradinit learns on one label an image, and {config.arch} gives a class a pixel:"
            " take another"
        )
