"""Paths that a user gave, as they serve from any folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from lion_fast.config import TrainConfig
from lion_fast.data.sources import BUILT_IN
from lion_fast.errors import UserError
from lion_fast.places import place


def anchored(config: TrainConfig) -> TrainConfig:
    """Return `config` with absolute paths to its data, which then serve from any folder."""
    path = place(config.dataset)
    if config.dataset not in BUILT_IN and path.exists():
        config = replace(config, dataset=str(path.absolute()))
    if config.data_dir is not None:
        config = replace(config, data_dir=config.data_dir.absolute())
    return config


@contextmanager
def moved_advice(dataset: str, has_trained: bool = True) -> Iterator[None]:
    """Say of the images of an earlier run that cannot be opened, where they are gone, what to do.

    has_trained: whether there is an earlier run, and it is what names their place.
    """
    try:
        yield
    except UserError:
        if not has_trained or dataset in BUILT_IN or place(dataset).exists():
            raise
        raise UserError(
            f"the run's images are no longer at {dataset}: say with --dataset where they lie now"
        ) from None
