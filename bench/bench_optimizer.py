"""A step of the optimizer: AdamW on everything, and Muon on the convolutions with AdamW beside it.

Gradients are random normal; the work does not depend on them. `bench_step.py` has the training step
that it is part of.
"""

import pytest
import torch

from lion_fast.config import Arch, OptimizerName, TrainConfig
from lion_fast.models import build_model
from lion_fast.training.optimizers import build_optimizer
from lion_fast.training.resolve import resolve

BENCHMARK = {
    "title": "Optimizer",
    "order": 25,
    "stage": "overhead",
}


@pytest.mark.parametrize("arch", ["densenet_ds", "resnet_ds"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_step_of_the_optimizer(bench, arch: Arch, optimizer: OptimizerName) -> None:
    """Time one update of all parameters."""
    config = TrainConfig(arch=arch, optimizer=optimizer, device=str(bench.device))
    model = build_model(config, 10, (32, 32))
    model.to(bench.device).to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    update = build_optimizer(model, config, resolve(config))
    update.step()
    bench.time(
        update.step,
        op="optimizer",
        impl=optimizer,
        shape=arch,
        dtype="float32",
        mode="update",
        arch=arch,
        rounds=5 if bench.device.type == "cpu" and arch == "resnet_ds" else None,
    )
