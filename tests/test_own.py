"""A caller's own network, images, optimizer and schedule train like ours."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from run_results import results, table
from torch import nn

from lion_fast.config import TrainConfig
from lion_fast.data.arrays import LabelledArrays
from lion_fast.data.batches import Batch
from lion_fast.data.images import ImageSet
from lion_fast.errors import UserError
from lion_fast.models import DeeplySupervised
from lion_fast.training import train
from lion_fast.training.folder.checkpoint import load_checkpoint
from lion_fast.training.machine.resolve import resolve
from lion_fast.training.step.own import Own
from lion_fast.training.step.step import TrainStep


class Plain(DeeplySupervised):
    """Two convolutions with batch norm, a tap behind each."""

    def __init__(self, num_classes, image_size=(8, 8), width=8):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(2 * width)])
        attach = getattr(self, "attach_heads", None) or self._attach_heads
        attach([width, 2 * width], num_classes)

    def taps(self, images):
        early = F.relu(self.norms[0](self.first(images)))
        late = F.relu(self.norms[1](self.second(F.max_pool2d(early, 2))))
        return [early, late]


def squares(seed=0):
    """Two classes of tensors: bright above, or bright below."""
    rng = np.random.default_rng(seed)

    def split(num):
        labels = np.arange(num) % 2
        images = rng.integers(0, 120, (num, 8, 8, 3)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4 * label : 4 * label + 4] += 100
        return images, labels

    arrays = LabelledArrays(*split(128), *split(64), ("up", "down"))
    return ImageSet.from_arrays("squares", arrays, "squares")


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        growth_rate=2, block_layers=1, batch_size=16, max_steps=12, window=4, checkpoint_every=0,
        device="cpu", lr=0.01, out=str(tmp_path / "runs"),
    )  # fmt: skip


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.5)


def test_an_own_network_on_own_tensors_learns_and_starts_with_zeroed_heads(config):
    summary = train(config, model=Plain, images=squares())
    rows = table(summary.run)
    assert float(rows[0]["loss_head0"]) == pytest.approx(np.log(2))  # lion_dg zeroed it
    assert float(rows[-1]["loss"]) < 0.6 * float(rows[0]["loss"])
    assert summary.config["dataset"] == "squares"
    again = train(config, model=Plain(num_classes=2), images=squares())
    assert table(again.run) == rows


def test_an_own_run_resumes_only_with_the_same_parts(config):
    own = {
        "model": Plain,
        "images": squares(),
        "optimizer": sgd,
        "schedule": lambda step: 0.9**step,
    }
    whole = train(config, **own)
    part = train(dataclasses.replace(config, max_steps=5), **own)
    assert load_checkpoint(part.run)["own"] == ["model", "images", "optimizer", "schedule"]
    for name in ("model", "optimizer", "schedule"):
        others = {key: value for key, value in own.items() if key != name}
        with pytest.raises(UserError, match=f"with an own {name}: pass {name}= again"):
            train(config, resume=part.run, **others)
    train(config, resume=part.run, **own)
    assert table(part.run) == table(whole.run)
    assert results(part.run) == results(whole.run)
    ours = train(config, images=squares())
    with pytest.raises(UserError, match="not trained with an own optimizer: leave optimizer= out"):
        train(config, resume=ours.run, images=squares(), optimizer=sgd)


def test_warming_up_an_own_optimizer_teaches_nothing(config):
    """Its state is made anew: SGD's momentum with dampening does not start at zero."""
    model = Plain(2)
    step = TrainStep(model, config, resolve(config), Own(optimizer=sgd))
    batch = Batch(torch.rand(16, 3, 8, 8), torch.arange(16) % 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with step.rehearsal():
        step(batch, torch.empty(5))
    assert not step.optimizer.state
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_schedule_scales_the_learning_rate_of_each_step(config):
    """Factor 1 throughout is the plain run, and steps of factor 0 change no weight."""

    def run(schedule, steps=12):
        changed = dataclasses.replace(config, max_steps=steps)
        return train(changed, images=squares(), schedule=schedule).run

    plain = table(train(config, images=squares()).run)
    assert table(run(lambda step: 1.0)) == plain
    stopped = run(lambda step: float(step < 3))
    assert table(stopped)[:4] == plain[:4]
    assert table(stopped)[4] != plain[4]
    short = run(lambda step: 1.0, steps=3)
    ends = [load_checkpoint(path)["training"]["model"] for path in (stopped, short)]
    assert torch.equal(*(end["heads.main.linear.weight"] for end in ends))


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"model": nn.Linear(2, 2)}, "model is a Linear: pass a subclass of DeeplySupervised"),
        ({"model": lambda num_classes, image_size: None}, "model is a NoneType"),
        ({"model": Plain(5)}, "model tells 5 classes apart, but squares has 2"),
        ({"optimizer": lambda parameters: 3}, "optimizer made a int"),
        ({"schedule": lambda step: -1.0}, "schedule gives -1.0 at step 0"),
        ({"schedule": lambda step: "fast"}, "schedule gives 'fast' at step 0"),
        ({"images": [1, 2]}, "images is a list: make a set of it with ImageSet.from_tensors"),
    ],
)
def test_what_is_of_no_use_is_said_in_one_line_and_leaves_no_folder(config, own, words):
    with pytest.raises(UserError, match=words) as caught:
        train(config, **{"images": squares()} | own)
    assert "\n" not in str(caught.value)
    assert not config.out.exists() or not list(config.out.iterdir())


@pytest.mark.parametrize(
    "make",
    [sgd, torch.optim.Adam, lambda p: torch.optim.NAdam(p, capturable=True)],
)
def test_engine_graph_refuses_an_optimizer_that_it_cannot_capture(config, make):
    resolved = dataclasses.replace(resolve(config), engine="graph")
    with pytest.raises(UserError, match="engine graph cannot capture this"):
        Own(optimizer=make).make_optimizer(Plain(2), config, resolved)
