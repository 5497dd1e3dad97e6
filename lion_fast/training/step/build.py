"""From a config to an initialised network on its device."""

import torch

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch, planned_batch
from lion_fast.data.dataset import DataSet
from lion_fast.data.plan import BatchPlan
from lion_fast.errors import UserError
from lion_fast.init import METHODS, initialize_, log_frequencies, prior_bias_
from lion_fast.init.whitening import NUM_IMAGES
from lion_fast.models import DeeplySupervised, build_model
from lion_fast.training.machine.resolve import Resolved
from lion_fast.training.step.losses import LossOptions


def build(
    config: TrainConfig, resolved: Resolved, images: DataSet, plan: BatchPlan
) -> DeeplySupervised:
    """Return the network of `config`, initialised from its seed, channels_last, on its device."""
    model = on_device(build_model(config, images.num_classes, images.image_size), resolved)
    initialise(model, config, resolved, images, plan)
    return model


def on_device(model: DeeplySupervised, resolved: Resolved) -> DeeplySupervised:
    """Bring `model` to its device in channels_last; return it."""
    model.to(resolved.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def check_labels(model: DeeplySupervised, images: DataSet) -> None:
    """Raise UserError where the network gives a class to every pixel and the images have none."""
    name = type(model).__name__
    if model.heads.is_dense and not images.has_masks:
        raise UserError(
            f"{images.name} has a label an image, and {name} gives a class to every pixel: take a"
            " set with masks, such as --dataset scenes, or --arch densenet_ds"
        )
    if images.has_masks and not model.heads.is_dense:
        raise UserError(
            f"{images.name} has masks, and {name} gives a class to an image: take --arch unet_ds"
        )


def initialise(
    model: DeeplySupervised,
    config: TrainConfig,
    resolved: Resolved,
    images: DataSet,
    plan: BatchPlan,
) -> None:
    """Initialise `model` from the config's seed.

    Data-driven initialisers, and whitening, see the first planned images, unflipped. A prior is
    that of the whole training set.
    """
    calibration = _calibration_batch(config, resolved, images, plan)
    initialize_(
        model,
        config.init,
        images=calibration.images if calibration else None,
        labels=calibration.labels if calibration else None,
        generator=torch.Generator().manual_seed(config.seed),
        loss=LossOptions.of(config).of_logits,
        whiten=config.whiten,
    )
    if config.head_bias == "prior":
        prior_bias_(model, log_frequencies(images.class_counts()))


def _calibration_batch(
    config: TrainConfig, resolved: Resolved, images: DataSet, plan: BatchPlan
) -> Batch | None:
    num_images = max(METHODS[config.init].num_images, NUM_IMAGES if config.whiten else 0)
    if num_images == 0:
        return None
    planned = plan.whole.steps(0, -(-num_images // plan.batch_size))
    indices = torch.from_numpy(planned.indices.reshape(-1)[:num_images])
    return planned_batch(images, indices, resolved.device, torch.float32, impl=resolved.impl)
