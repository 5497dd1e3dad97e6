"""A second run gives out what layers gave in the first, and only while that is what they give."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lion_fast.init.example import Inputs
from lion_fast.init.replay import Recording
from lion_fast.init.trace import Trace


def recorded(layer, x, y=None):
    recording = Recording()
    recording.note(layer, [x], layer(x) if y is None else y)
    return recording


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 1), nn.ConvTranspose2d(2, 3, 2, bias=False)])
def test_a_layer_on_the_same_input_gives_the_same_once_followed_by_gradients(layer):
    x = torch.randn(1, 2, 4, 4)
    recording = recorded(layer, x)
    given = recording.output(layer, [x.clone()])
    assert torch.equal(given, layer(x)) and given.requires_grad and not given.is_leaf
    assert recording.output(layer, [x]) is None


@torch.no_grad()
def write_weight(layer, x, y):
    layer.weight.zero_()


@torch.no_grad()
def write_input(layer, x, y):
    x.add_(1)


@torch.no_grad()
def write_output(layer, x, y):
    y.relu_()


def replace_weight(layer, x, y):
    layer.weight = nn.Parameter(layer.weight.detach().clone())


@pytest.mark.parametrize("write", [write_weight, write_input, write_output, replace_weight])
def test_what_was_written_into_since_is_run_again(write):
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    y = layer(x)
    recording = recorded(layer, x, y)
    write(layer, x, y)
    assert recording.output(layer, [x]) is None


def test_another_input_is_run():
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    for other in (x + 1, x[:1], x.double(), x.t().contiguous().t()):
        assert recorded(layer, x).output(layer, [other]) is None


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.randn(())


@pytest.mark.parametrize(
    "layer",
    [Noisy(4, 3), parametrizations.weight_norm(nn.Linear(4, 3)), nn.BatchNorm1d(4)],
    ids=["own", "parametrized", "norm"],
)
def test_layers_that_do_more_than_multiply_are_never_given_out(layer):
    x = torch.randn(2, 4)
    assert recorded(layer, x).output(layer, [x]) is None


def test_a_network_written_in_place_gives_the_same_outputs_in_its_second_run(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(True), nn.LayerNorm(8), nn.Linear(8, 3))
    inputs = Inputs((torch.randn(2, 4),), {})
    first = Trace(model, inputs)
    ran = []
    linear = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *a: ran.append(a) or linear(*a))
    second = Trace(model, inputs, replay=first.recording)
    assert torch.equal(first.output, second.output)
    # The first layer's output was written into by the activation behind it.
    assert len(ran) == 1
