"""Deeply-supervised networks: a backbone, its taps, and a head on every tap.

`model(images)` returns the logits of every head, the main one's last; `model.taps(images)` the maps
that they read; `model.loss(images, target, aux_weight)` the weighted loss of all heads in one op.
`model.heads.aux` and `model.heads.main` hold the heads, stock `nn.Linear` layers inside.
Initialisation is `lion_fast.init`'s part.
"""

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.models.base import DeeplySupervised, Head, Heads, check_image_size
from lion_fast.models.densenet import STEM_CHANNELS, DenseNetDS, densenet_ds
from lion_fast.models.resnet import ResNetDS, resnet_ds

__all__ = [
    "STEM_CHANNELS",
    "DeeplySupervised",
    "DenseNetDS",
    "Head",
    "Heads",
    "ResNetDS",
    "build_model",
    "densenet_ds",
    "resnet_ds",
]


def build_model(
    config: TrainConfig, num_classes: int, image_size: tuple[int, int]
) -> DeeplySupervised:
    """Build the network that `config` names, for images of (height, width) pixels.

    Raises UserError on images below 8x8, on fewer than 2 classes, and on a placement that the
    network does not have.
    """
    check_image_size(image_size)
    if config.arch == "resnet_ds":
        return resnet_ds(num_classes, config.placement, config.base_width)
    if config.placement != "side_tap":
        raise UserError(
            f"placement is {config.placement!r}: "
            f"{config.arch} has no residual path, take arch=resnet_ds"
        )
    return densenet_ds(num_classes, config.growth_rate, config.block_layers)
