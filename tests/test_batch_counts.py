"""A step counts the batches of all batch norms at once, and leaves what stock modules leave."""

import pytest
import torch
from test_own import Plain
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch
from lion_fast.models import densenet_ds, resnet_ds
from lion_fast.training.machine.resolve import resolve
from lion_fast.training.step.step import TrainStep

NETWORKS = {
    "densenet_ds": lambda: densenet_ds(2, growth_rate=2, block_layers=1),
    "resnet_ds": lambda: resnet_ds(2, base_width=2),
}


class Additions(TorchDispatchMode):
    """Counts the calls that add to an integer tensor."""

    def __init__(self):
        super().__init__()
        self.num_calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.add_.Tensor, torch.ops.aten._foreach_add_.Scalar):
            first = args[0][0] if isinstance(args[0], list) else args[0]
            self.num_calls += first.dtype == torch.int64
        return func(*args, **(kwargs or {}))


def make_step(model):
    config = TrainConfig(device="cpu", engine="eager", max_steps=9)
    step = TrainStep(model, config, resolve(config))
    batch = Batch(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
    row = torch.zeros(1 + 2 * len(list(model.heads)))
    return lambda: step(batch, row)


def counts(model):
    return {k: int(v) for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}


@pytest.mark.parametrize("network", NETWORKS)
def test_all_batch_norms_are_counted_in_one_call_and_keep_their_place(network):
    model = NETWORKS[network]()
    keys, take_step = list(model.state_dict()), make_step(model)
    with Additions() as additions:
        take_step()
    assert additions.num_calls == 1
    take_step()
    assert list(model.state_dict()) == keys
    num_norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert list(counts(model).values()) == [2] * num_norms


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_that_promises_to_run_each_norm_once_does(network):
    model = NETWORKS[network]()
    model.loss(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]), 0.3)
    assert model.runs_norms_once
    assert set(counts(model).values()) == {1}


def test_a_frozen_norm_and_one_that_averages_over_all_batches_count_as_stock_ones_do():
    model = NETWORKS["densenet_ds"]()
    frozen, cumulative = model.norm, model.transitions[0].norm
    frozen.eval()
    cumulative.momentum = None
    take_step = make_step(model)
    take_step()
    take_step()
    assert counts(model)["norm.num_batches_tracked"] == 0
    assert counts(model)["transitions.0.norm.num_batches_tracked"] == 2


class Twice(Plain):
    """Runs its first norm a second time."""

    def taps(self, images):
        first, second = super().taps(images)
        return [self.norms[0](first), second]


def test_an_own_network_counts_for_itself():
    model = Twice(2)
    make_step(model)()
    assert list(counts(model).values()) == [2, 1]


def test_a_step_that_fails_leaves_the_counters_in_place():
    model = NETWORKS["densenet_ds"]()
    keys, take_step = list(model.state_dict()), make_step(model)
    model.taps = None
    with pytest.raises(TypeError):
        take_step()
    assert list(model.state_dict()) == keys
