"""A step casts all convolution weights at once, and trains to the bits that autocast has."""

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
    "residual": lambda: resnet_ds(2, base_width=2, placement="residual"),
}


class Casts(TorchDispatchMode):
    """Counts what copies or casts a tensor of convolution weights, one by one or all at once."""

    def __init__(self):
        super().__init__()
        self.single = self.multi = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.single += args[0].ndim == 4 and args[0].shape[2] in (1, 3)
        self.multi += func is torch.ops.aten._foreach_copy_.default
        return func(*args, **(kwargs or {}))


def make_step(model, precision="bf16"):
    config = TrainConfig(device="cpu", engine="eager", precision=precision, max_steps=9)
    step = TrainStep(model, config, resolve(config))
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    batch = Batch(images, torch.tensor([0, 1, 0, 1]))
    row = torch.zeros(1 + 2 * len(list(model.heads)))
    return lambda: step(batch, row)


def built(network):
    torch.manual_seed(0)
    return NETWORKS[network]()


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_cast_at_once_train_to_the_bits_of_weights_cast_one_by_one(network):
    at_once, one_by_one = built(network), built(network)
    one_by_one.runs_convolutions_once = False
    for model in (at_once, one_by_one):
        take_step = make_step(model)
        for _ in range(3):
            take_step()
    wanted = one_by_one.state_dict()
    assert list(at_once.state_dict()) == list(wanted)
    for name, tensor in at_once.state_dict().items():
        assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_casts_weights_once_each_way(network):
    take_step = make_step(built(network))
    take_step()
    with Casts() as casts:
        take_step()
    assert (casts.single, casts.multi) == (0, 2)


def test_fp32_casts_nothing():
    take_step = make_step(built("densenet_ds"), "fp32")
    with Casts() as casts:
        take_step()
    assert casts.multi == 0


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_that_promises_to_run_each_convolution_once_does(network):
    model, runs = built(network), {}
    assert model.runs_convolutions_once
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            runs[name] = 0
            module.register_forward_hook(lambda *_, name=name: runs.update({name: runs[name] + 1}))
    model.loss(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]), 0.3)
    assert set(runs.values()) == {1}


def test_an_own_network_and_a_shared_weight_are_left_to_autocast():
    model = Plain(2)
    with Casts() as casts:
        make_step(model)()
    assert casts.multi == 0 and casts.single > 0
    model = built("resnet_ds")
    first, second = model.stages[0][0], model.stages[0][1]
    second.conv1.weight = first.conv1.weight
    with Casts() as casts:
        make_step(model)()
    assert casts.single > 0
    assert second.conv1.weight is first.conv1.weight


def test_a_step_that_fails_leaves_the_weights_in_place():
    model = built("densenet_ds")
    weights, take_step = list(model.parameters()), make_step(model)
    model.taps = None
    with pytest.raises(TypeError):
        take_step()
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
