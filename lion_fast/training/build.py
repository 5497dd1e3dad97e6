"""From a config to an initialised network on its device."""

import torch
from torch import Tensor

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch
from lion_fast.data.encoded import EncodedSet
from lion_fast.data.images import ImageSet
from lion_fast.data.plan import BatchPlan
from lion_fast.init import METHODS, initialize_
from lion_fast.kernels import augment_batch
from lion_fast.models import DeeplySupervised, build_model
from lion_fast.training.resolve import Resolved


def build(
    config: TrainConfig, resolved: Resolved, images: ImageSet | EncodedSet, plan: BatchPlan
) -> DeeplySupervised:
    """Return the network of `config`, initialised from its seed, channels_last, on its device.

    Data-driven initialisers see the first planned images, unflipped.
    """
    model = build_model(config, images.num_classes, images.image_size)
    model.to(resolved.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    calibration = _calibration_batch(config, resolved, images, plan)
    initialize_(
        model,
        config.init,
        images=calibration.images if calibration else None,
        labels=calibration.labels if calibration else None,
        generator=torch.Generator().manual_seed(config.seed),
    )
    return model


def _calibration_batch(
    config: TrainConfig, resolved: Resolved, images: ImageSet | EncodedSet, plan: BatchPlan
) -> Batch | None:
    num_images = METHODS[config.init].num_images
    if num_images == 0:
        return None
    planned = plan.steps(0, -(-num_images // plan.batch_size))
    indices = torch.from_numpy(planned.indices.reshape(-1)[:num_images])
    return planned_batch(images, indices, resolved, torch.float32)


def planned_batch(
    images: ImageSet | EncodedSet, indices: torch.Tensor, resolved: Resolved, dtype: torch.dtype
) -> Batch:
    """Return the training images `indices`, unflipped and normalised, on the run's device."""
    pixels, labels = images.train_rows(indices)
    return normalised(pixels, labels, images, resolved, dtype)


def normalised(
    pixels: Tensor,
    labels: Tensor,
    images: ImageSet | EncodedSet,
    resolved: Resolved,
    dtype: torch.dtype,
) -> Batch:
    """Return uint8 pixels (B, H, W, 3) of `images` as a normalised batch on the run's device."""
    device = resolved.device
    order = torch.arange(len(labels), device=device)
    upright = torch.zeros_like(order, dtype=torch.bool)
    return Batch(
        *augment_batch(
            pixels.to(device),
            labels.to(device),
            order,
            upright,
            images.mean,
            images.std,
            out_dtype=dtype,
            impl=resolved.impl,
        )
    )
