"""The config's optimizers and schedules: what updates what, and that a run resumes with them."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from run_results import results, table
from torch import nn

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.kernels import muon_update_ref_
from lion_fast.models import build_model
from lion_fast.training import train
from lion_fast.training.machine.resolve import resolve
from lion_fast.training.step.optimizers import (
    MuonAdamW,
    build_optimizer,
    rate_factor,
    split_for_muon,
)
from lion_fast.training.step.own import Own

MUON = TrainConfig(
    optimizer="muon", lr=0.01, muon_weight_decay=0.1, growth_rate=2, block_layers=1, batch_size=16,
    max_steps=12, window=4, checkpoint_every=0, device="cpu", num_classes=3,
)  # fmt: skip


def with_gradients(config, seed=0):
    """The config's network, every parameter's gradient drawn at random."""
    torch.manual_seed(seed)
    model = build_model(config, 10, (16, 16)).to(memory_format=torch.channels_last)
    draw_gradients(model)
    return model


def draw_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def optimizer_of(model, config=MUON):
    return build_optimizer(model, config, resolve(config))


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("arch", ["densenet_ds", "resnet_ds"])
def test_muon_takes_every_convolution_and_adamw_everything_else(arch):
    model = with_gradients(dataclasses.replace(MUON, arch=arch, base_width=8))
    matrices, others = split_for_muon(model)
    convolutions = {m.weight for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert set(matrices) == convolutions
    assert len(matrices) + len(others) == len(list(model.parameters()))
    assert set(others) == set(model.parameters()) - convolutions


@pytest.mark.parametrize("arch", ["densenet_ds", "resnet_ds"])
def test_steps_are_the_textbook_s_muon_and_torch_s_adamw(arch):
    """ResNet-DS at full width: its largest matrix is 512 x 4,608."""
    config = dataclasses.replace(MUON, arch=arch)
    ours, theirs = with_gradients(config), with_gradients(config)
    optimizer = optimizer_of(ours)
    matrices, others = split_for_muon(theirs)
    adamw = torch.optim.AdamW(others, lr=0.01, weight_decay=0.05)
    averages = [torch.zeros_like(weight) for weight in matrices]
    for _ in range(2):
        draw_gradients(theirs)
        for mine, parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = parameter.grad.clone()
        optimizer.step()
        adamw.step()
        muon_update_ref_(
            [w.detach() for w in matrices], [w.grad for w in matrices], averages,
            torch.tensor(0.02), momentum=0.95, weight_decay=0.1,
        )  # fmt: skip
    for (name, mine), parameter in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter, rtol=1e-4, atol=2e-5, msg=name)


def test_sgd_subtracts_the_rate_times_the_gradient_and_nothing_else():
    config = dataclasses.replace(MUON, optimizer="sgd", weight_decay=0.5)
    model = with_gradients(config)
    optimizer = optimizer_of(model, config)
    for _ in range(3):
        before = copies(model)
        draw_gradients(model)
        optimizer.step()
        for name, parameter in model.named_parameters():
            expected = before[name] - config.lr * parameter.grad
            torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-7, msg=name)
    assert not optimizer.state


def test_a_step_whose_gradients_overflowed_changes_nothing():
    model = with_gradients(MUON)
    optimizer = optimizer_of(model)
    optimizer.step()
    before = copies(model)
    averages = [optimizer.state[w]["average"].clone() for w in split_for_muon(model)[0]]
    for parameter in model.parameters():
        parameter.grad.fill_(float("nan"))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0**16), torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    after = [optimizer.state[w]["average"] for w in split_for_muon(model)[0]]
    assert all(map(torch.equal, after, averages))


def test_loss_scaling_is_undone():
    plain, scaled = with_gradients(MUON), with_gradients(MUON)
    optimizer_of(plain).step()
    optimizer = optimizer_of(scaled)
    for parameter in scaled.parameters():
        parameter.grad.mul_(2.0**10)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0**10), torch.tensor(0.0)
    optimizer.step()
    for parameter, same in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(parameter, same, rtol=1e-6, atol=1e-7)


def test_a_parameter_without_a_gradient_stays_as_it_is():
    model = with_gradients(MUON)
    frozen = [split_for_muon(model)[0][0], split_for_muon(model)[1][0]]
    for parameter in frozen:
        parameter.grad = None
    before = [parameter.detach().clone() for parameter in frozen]
    optimizer_of(model).step()
    assert all(map(torch.equal, frozen, before))


def test_a_network_of_one_kind_of_parameter_is_trained():
    for group in (0, 1):
        weight = nn.Parameter(torch.ones(4, 4))
        weight.grad = torch.eye(4)
        lists = [[], []]
        lists[group].append(weight)
        MuonAdamW(
            *lists, muon_lr=0.1, momentum=0.9, muon_weight_decay=0.0, lr=0.1, weight_decay=0.0
        ).step()
        assert not torch.equal(weight, torch.ones(4, 4))


def test_a_linear_schedule_rises_falls_and_stays():
    config = TrainConfig(
        schedule="linear", lr_warmup_steps=4, lr_cooldown_steps=10, lr_floor=0.2, max_steps=20
    )
    factors = [rate_factor(config, step) for step in range(20)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[9] == pytest.approx(0.6)
    assert factors[14:] == pytest.approx([0.2] * 6)
    assert factors[4:15] == sorted(factors[4:15], reverse=True)
    assert Own().lr_factors(config, torch.device("cpu")).tolist() == factors
    assert Own().lr_factors(TrainConfig(), torch.device("cpu")) is None


def test_a_cosine_falls_slowly_at_both_ends_and_meets_the_line_halfway():
    config = TrainConfig(schedule="linear", lr_cooldown_steps=10, lr_floor=0.2)
    line = [rate_factor(config, step) for step in range(12)]
    config = dataclasses.replace(config, schedule="cosine")
    cosine = [rate_factor(config, step) for step in range(12)]
    assert (cosine[0], line[0]) == (1.0, 1.0)
    assert cosine[10:] == line[10:] == pytest.approx([0.2, 0.2])
    assert cosine[5] == pytest.approx(line[5])
    assert cosine[2] > line[2] and cosine[8] < line[8]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_a_scheduled_run_resumes_bit_for_bit(optimizer, tmp_path):
    config = dataclasses.replace(
        MUON, optimizer=optimizer, out=tmp_path, schedule="linear", lr_warmup_steps=3,
        lr_cooldown_steps=6, lr_floor=0.1,
    )  # fmt: skip
    whole = train(config)
    part = train(dataclasses.replace(config, max_steps=5))
    train(config, resume=part.run)
    assert table(part.run) == table(whole.run)
    assert results(part.run) == results(whole.run)
    constant = dataclasses.replace(
        config, schedule="constant", lr_warmup_steps=0, lr_cooldown_steps=0, lr_floor=0.0
    )
    assert table(train(constant).run) != table(whole.run)


def test_muon_learns_and_keeps_its_settings(tmp_path):
    config = dataclasses.replace(MUON, max_steps=40, out=tmp_path)
    summary = train(config)
    losses = [float(row["loss"]) for row in table(summary.run)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    with pytest.raises(UserError, match="optimizer muon -> adamw"):
        train(dataclasses.replace(config, optimizer="adamw"), resume=summary.run)


def test_compiled_steps_use_the_same_optimizer():
    resolved = SimpleNamespace(engine="graph", device=torch.device("cpu"), impl="auto")
    model = with_gradients(MUON)
    for engine in ("eager", "compile", "graph"):
        resolved.engine = engine
        assert isinstance(Own().make_optimizer(model, MUON, resolved), MuonAdamW)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optimizer": "lion"}, "optimizer is 'lion': take one of adamw, muon, sgd"),
        ({"muon_lr": 0}, "muon_lr is 0: give a positive learning rate"),
        ({"muon_momentum": 1}, "muon_momentum is 1.0: it must be below 1"),
        ({"lr_floor": 2, "schedule": "linear"}, "lr_floor is 2.0: it must be at most 1"),
        ({"lr_warmup_steps": 5}, "lr_warmup_steps is of schedule linear"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        TrainConfig(**fields)
