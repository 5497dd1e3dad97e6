"""The rivals of the benchmarks train as the trainer does, so that only their speed differs."""

from contextlib import closing
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch

from lion_fast.config import TrainConfig
from lion_fast.data.open import load_image_set
from support.rivals import HandLoop, PlainScript
from support.training import Training, new_step

NUM_STEPS = 4

# Python 3.12 warns of what DataLoader's workers do by default on Linux.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture
def config(stripes):
    return TrainConfig(
        dataset=str(stripes),
        growth_rate=2,
        block_layers=1,
        batch_size=16,
        device="cpu",
        init="he",
        lr=1e-3,
        num_workers=0,
    )


@pytest.fixture
def image_set(config):
    return load_image_set(config)


@pytest.fixture
def trained(config, image_set):
    """The parameters after NUM_STEPS of the trainer's steps, and the batches that it trained on."""
    with Training(config, image_set, num_steps=NUM_STEPS) as training:
        batches = training.first_batches(NUM_STEPS)
        for _ in range(NUM_STEPS):
            training()
        return dict(training.step.model.named_parameters()), batches


def assert_same_update(ours, before, theirs):
    """The rival moved every parameter, and to where we moved it."""
    for name, parameter in theirs.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        torch.testing.assert_close(parameter, ours[name], rtol=1e-4, atol=1e-5)


def initial(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_hand_loop_makes_the_trainers_updates(config, image_set, trained):
    ours, batches = trained
    model = new_step(config, image_set).model
    before = initial(model)
    HandLoop(model, batches, config, steps_per_call=NUM_STEPS)()
    assert_same_update(ours, before, model)


def test_the_plain_script_makes_the_trainers_updates(config, image_set, trained):
    ours, batches = trained
    model = new_step(config, image_set).model
    before = initial(model)
    with closing(PlainScript(model, image_set, config, torch.device("cpu"))) as script:
        for images, labels in batches:
            script.train_on(images.contiguous(), labels)
    assert_same_update(ours, before, model)


def test_the_plain_script_draws_normalised_flipped_batches_without_end(config, image_set):
    one_epoch = len(image_set.train_labels) // config.batch_size
    model = new_step(config, image_set).model
    script = PlainScript(model, image_set, config, torch.device("cpu"), steps_per_call=one_epoch)
    seen = []
    script.train_on = lambda images, labels: seen.append((images, labels))
    with closing(script):
        script()
        script()
    assert len(seen) == 2 * one_epoch
    images = torch.cat([images for images, _ in seen])
    assert images.shape[1:] == (3, 8, 8)
    assert images.is_contiguous()
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=0.1)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), rtol=0, atol=0.1)
    first_epoch, second_epoch = (
        torch.cat([y for _, y in half]) for half in (seen[:one_epoch], seen[one_epoch:])
    )
    assert not torch.equal(first_epoch, second_epoch)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_plain_script_learns_and_ends_its_workers(config, image_set, num_workers):
    torch.manual_seed(0)
    config = replace(config, num_workers=num_workers, lr=1e-2)
    model = new_step(config, image_set).model
    script = PlainScript(model, image_set, config, torch.device("cpu"), steps_per_call=40)
    with closing(script):
        script()
    assert script.accuracy > 0.5
    assert torch.multiprocessing.active_children() == []


@pytest.mark.skipif(
    not version("torch").startswith("2.11"), reason="Inductor of torch 2.11 alone warns of itself"
)
def test_what_inductor_warns_of_as_it_autotunes_ends_no_rival():
    """On a CPU it times its own candidates for a batched product alone."""
    a, b = torch.randn(2, 32, 48), torch.randn(2, 48, 32)
    compiled = torch.compile(torch.bmm, mode="max-autotune", dynamic=False)
    torch.testing.assert_close(compiled(a, b), a @ b)
