"""evaluate(run): validation of a finished or interrupted run's newest checkpoint."""

import dataclasses
from pathlib import Path

import torch

from lion_fast.data.open import open_data
from lion_fast.errors import UserError
from lion_fast.models import build_model
from lion_fast.training.checkpoint import load_checkpoint
from lion_fast.training.resolve import resolve
from lion_fast.training.rundir import RunFolder
from lion_fast.training.step import float32_precision
from lion_fast.training.validate import Validation, validate


def evaluate(run: Path, *, device: str = "auto") -> Validation:
    """Return loss and per-head accuracy of the run folder's newest checkpoint on its test split.

    The run may have trained elsewhere: engine, loader and precision are chosen for `device`. Raises
    UserError when `run` is no run folder or holds no whole checkpoint.
    """
    _, config = RunFolder.open(run)
    checkpoint = load_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run} has no checkpoint yet: go on with --resume {run}")
    images = open_data(config, config.loader)
    config = dataclasses.replace(
        config, device=device, engine="auto", loader="auto", precision="auto", impl="auto"
    )
    resolved = resolve(config)
    model = build_model(config, images.num_classes, images.image_size)
    model.load_state_dict(checkpoint["training"]["model"])
    model.to(resolved.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with float32_precision(resolved):
        return validate(model, images, resolved)
