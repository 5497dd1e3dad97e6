"""The config of a run that takes a second: what tests of training begin with."""

from pathlib import Path
from typing import Any

from lion_fast.config import TrainConfig


def small_config(dataset: Path, folder: Path, **changes: Any) -> TrainConfig:
    """One layer a block and batches of 32 on the CPU, with runs in folder/runs; then `changes`."""
    settings: dict[str, Any] = {
        "growth_rate": 2,
        "block_layers": 1,
        "batch_size": 32,
        "window": 3,
        "checkpoint_every": 0,
        "device": "cpu",
    }
    return TrainConfig(dataset=str(dataset), out=folder / "runs", **settings | changes)
