"""LION-DG on models as training holds them: distributed, and with activations recomputed."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from lion_fast.errors import UserError
from lion_fast.init import lion_dg_, lion_dg_report


class Stages(nn.Module):
    """Three stages under `recompute`, each read by a head; the outputs are listed main first."""

    def __init__(self, recompute):
        super().__init__()
        self.recompute = recompute
        widths = (3, 8, 8, 8)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.Dropout(0.5), nn.ReLU(True)
            )
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.heads = nn.ModuleList(nn.Conv2d(8, 5, 1) for _ in range(3))

    def forward(self, x):
        outputs = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = self.recompute(stage, x)
            outputs.append(self.recompute(head, x))
        return outputs[::-1]


def plainly(module, x):
    return module(x)


def without_reentering(module, x):
    return checkpoint(module, x, use_reentrant=False)


def in_segments(module, x):
    layers = module if isinstance(module, nn.Sequential) else [module]
    return checkpoint_sequential(layers, 1, x, use_reentrant=False)


def reentrant(module, x):
    # Without an input that has a gradient, reentrant checkpoints give none.
    return checkpoint(module, x.requires_grad_() if x.is_leaf else x, use_reentrant=True)


def seeded(recompute):
    torch.manual_seed(0)
    return Stages(recompute)


def check_auxiliary_heads_start_at_zero(model, network):
    main, *auxiliary = model(torch.randn(2, 3, 16, 16))
    assert main.any() and len(auxiliary) == 2 and not any(logits.any() for logits in auxiliary)
    sum((logits * torch.randn_like(logits)).sum() for logits in auxiliary).backward()
    awake = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert awake == {f"heads.{i}.{name}" for i in range(2) for name in ("weight", "bias")}


@pytest.mark.parametrize("recompute", [without_reentering, in_segments])
def test_a_network_that_recomputes_activations_gets_the_same_zeros(recompute):
    model, plain = seeded(recompute), seeded(plainly)
    report = lion_dg_report(model, main=0)
    assert str(report) == str(lion_dg_report(plain, main=0))
    lion_dg_(model, main=0)
    lion_dg_(plain, main=0)
    for (name, parameter), expected in zip(
        model.named_parameters(), plain.parameters(), strict=True
    ):
        assert torch.equal(parameter, expected), name
    assert all(norm[1].num_batches_tracked == 0 for norm in model.stages)
    check_auxiliary_heads_start_at_zero(model, model)


def test_reentrant_checkpoints_are_refused_with_what_to_pass_and_nothing_is_touched():
    model = seeded(reentrant)
    before = copy.deepcopy(model.state_dict())
    for arguments in ({"main": 0}, {"heads": "heads.1", "main": 0}, {}):
        with pytest.raises(UserError, match="Stages recomputes.*use_reentrant=False"):
            lion_dg_(model, **arguments)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture
def one_rank(tmp_path):
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("recompute", [plainly, without_reentering])
@pytest.mark.usefixtures("one_rank")
def test_a_network_inside_distributed_data_parallel_is_zeroed_and_trains_on(recompute):
    network = seeded(recompute)
    model = nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert lion_dg_(model, main=0) is model
    assert "heads.0.weight" in str(lion_dg_report(model, main=0))
    check_auxiliary_heads_start_at_zero(model, network)
    optimizer.step()
    assert all(parameter.any() for parameter in network.heads.parameters())
