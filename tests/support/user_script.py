"""What a user's first script may look like; `test_face.py` runs it and has mypy check it."""

from pathlib import Path
from typing import assert_type

import torch

import lion_fast
from lion_fast import DeeplySupervised, Summary, TrainConfig, densenet_ds, lion_dg_, train


def train_a_little(dataset: str, out: Path) -> Summary:
    config = TrainConfig(
        dataset=dataset, growth_rate=2, block_layers=1, max_steps=2, device="cpu", out=out
    )
    summary = train(config)
    assert_type(summary.steps_to_target, int | None)
    assert_type(lion_fast.evaluate(summary.run, device="cpu").accuracy, float)
    return summary


def auxiliary_heads_start_at_zero() -> bool:
    model: DeeplySupervised = densenet_ds(num_classes=4, growth_rate=2, block_layers=1)
    lion_dg_(model)
    auxiliary, *_ = model(torch.zeros(1, 3, 8, 8))
    return not auxiliary.any()
