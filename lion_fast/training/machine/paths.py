"""Paths that a user gave, as they serve from any folder."""

from dataclasses import replace
from pathlib import Path

from lion_fast.config import TrainConfig
from lion_fast.data.sources import BUILT_IN


def anchored(config: TrainConfig) -> TrainConfig:
    """Return `config` with absolute paths to its data, which then serve from any folder."""
    path = Path(config.dataset).expanduser()
    if config.dataset not in BUILT_IN and path.exists():
        config = replace(config, dataset=str(path.absolute()))
    if config.data_dir is not None:
        config = replace(config, data_dir=Path(config.data_dir).expanduser().absolute())
    return config
