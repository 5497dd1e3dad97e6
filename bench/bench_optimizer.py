"""A step of the optimizer: AdamW on everything, and Muon on the convolutions with AdamW beside it.

Gradients are random normal; the work does not depend on them. `bench_step.py` has the training step
that it is part of.
"""

import time
from collections.abc import Callable

import pytest
import torch

from lion_fast.config import Arch, OptimizerName, TrainConfig
from lion_fast.models import DeeplySupervised, build_model
from lion_fast.training.machine.resolve import resolve
from lion_fast.training.step.optimizers import build_optimizer

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


MOST_OF_A_CPU_STEP = 0.03


def test_muon_is_a_small_share_of_a_cpu_step() -> None:
    """Hold DenseNet-DS's update to 3 % of forward and backward of 128 images, in CPU seconds."""
    config = TrainConfig(arch="densenet_ds", optimizer="muon", device="cpu")
    model = build_model(config, 10, (32, 32)).to(memory_format=torch.channels_last)
    images = torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.zeros(128, dtype=torch.int64)
    pass_seconds = _cpu_seconds(lambda: _passes(model, images, labels), 2)
    update = build_optimizer(model, config, resolve(config))
    update_seconds = _cpu_seconds(update.step, 10)
    assert update_seconds <= MOST_OF_A_CPU_STEP * pass_seconds


def _passes(model: DeeplySupervised, images: torch.Tensor, labels: torch.Tensor) -> None:
    model.zero_grad()
    model.loss(images, labels, 0.3).loss.backward()


def _cpu_seconds(function: Callable[[], object], rounds: int) -> float:
    """Return the fewest CPU seconds of a call, after a first one: other processes do not count."""
    function()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)
