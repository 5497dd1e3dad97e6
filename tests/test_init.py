"""He, Xavier, Fixup, ReZero, and what all initialisers have in common."""

import warnings
from typing import get_args

import pytest
import torch
from torch import nn

from lion_fast.config import Init
from lion_fast.errors import UserError
from lion_fast.init import METHODS, fixup_, gradinit_, he_, initialize_, rezero_, xavier_
from lion_fast.models import densenet_ds, resnet_ds

SMALL = {
    "densenet": lambda: densenet_ds(growth_rate=4, block_layers=1),
    "resnet": lambda: resnet_ds(base_width=8),
}
both = pytest.mark.parametrize("build", SMALL.values(), ids=list(SMALL))
every_method = pytest.mark.parametrize("method", METHODS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(size=32, side=8):
    generator = seeded(1)
    images = torch.randn(size, 3, side, side, generator=generator)
    return images, torch.randint(10, (size,), generator=generator)


def initialized(build, method, seed=0, **layout):
    """Return a fresh network after `method`, GradInit cut to two iterations."""
    model = build().to(**layout)
    if method == "gradinit":
        return gradinit_(model, *batch(), iterations=2, generator=seeded(seed))
    return initialize_(model, method, *batch(), generator=seeded(seed))


def layers(model):
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def test_the_table_has_a_row_for_every_choice_of_the_config():
    assert tuple(METHODS) == get_args(Init)


def drawn(init_, fan):
    """Return the largest distance of a layer's variance from init_'s law, in standard errors."""
    distances = []
    for layer in layers(init_(densenet_ds(100), seeded())):
        weight = layer.weight.detach().double()
        expected = fan(layer)
        fourth_moment = 3 if init_ is he_ else 1.8
        error = expected * ((fourth_moment - 1) / weight.numel()) ** 0.5
        distances.append(abs(weight.square().mean().item() - expected) / error)
        assert layer.bias is None or not layer.bias.any()
    return max(distances)


def fans(layer):
    return nn.init._calculate_fan_in_and_fan_out(layer.weight)


def test_he_weights_have_variance_2_over_fan_in():
    assert drawn(he_, lambda layer: 2 / fans(layer)[0]) < 4


def test_xavier_weights_have_variance_2_over_the_sum_of_fans_and_a_bound():
    assert drawn(xavier_, lambda layer: 2 / sum(fans(layer))) < 4
    for layer in layers(xavier_(densenet_ds())):
        assert layer.weight.abs().max() <= (6 / sum(fans(layer))) ** 0.5


@both
@every_method
def test_a_seed_gives_the_same_weights_in_any_memory_format(build, method):
    model, again = (initialized(build, method) for _ in range(2))
    channels_last = initialized(build, method, memory_format=torch.channels_last)
    for a, b, c in zip(
        model.parameters(), again.parameters(), channels_last.parameters(), strict=True
    ):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-5)
    assert model.stem.weight.any()
    assert not torch.equal(model.stem.weight, initialized(build, method, seed=1).stem.weight)


@both
@every_method
def test_nothing_of_the_old_weights_remains(build, method):
    model, poisoned = initialized(build, method), build()
    for parameter in poisoned.parameters():
        parameter.detach().fill_(float("nan"))
    if method == "gradinit":
        gradinit_(poisoned, *batch(), iterations=2, generator=seeded())
    else:
        initialize_(poisoned, method, *batch(), generator=seeded())
    for a, b in zip(model.parameters(), poisoned.parameters(), strict=True):
        assert torch.equal(a, b)


@both
@every_method
@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_modes_and_gradients_stay_untouched(build, method, training):
    fresh = build().train(training)
    fresh.norm.eval()
    buffers = {name: value.clone() for name, value in fresh.named_buffers()}
    modes = [module.training for module in fresh.modules()]
    model = initialized(lambda: fresh, method)
    assert model is fresh
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert [module.training for module in model.modules()] == modes
    assert all(
        module.track_running_stats
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
    )
    assert all(p.grad is None and p.requires_grad and p.is_leaf for p in model.parameters())


@both
@every_method
def test_every_method_leaves_a_network_that_trains(build, method):
    model = initialized(build, method)
    images, target = batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model.loss(images, target, 0.3).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("init_", [fixup_, rezero_])
def test_residual_branches_add_exactly_nothing(init_):
    model = init_(SMALL["resnet"](), seeded())
    outputs = []
    for branch in model.residual_branches():
        branch[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(batch()[0])
    assert len(outputs) == 8
    assert all((output == 0.0).all() for output in outputs)


def test_fixup_scales_branches_by_l_and_m_and_zeroes_the_rest():
    he, fixup = he_(SMALL["resnet"](), seeded()), fixup_(SMALL["resnet"](), seeded())
    expected = {name: value.clone() for name, value in he.named_parameters()}
    for name in expected:
        if name.endswith("conv1.weight"):
            expected[name] *= 8 ** (-1 / 2)
        if name.endswith("conv2.weight") or name.startswith("heads.main."):
            expected[name].zero_()
    torch.testing.assert_close(dict(fixup.named_parameters()), expected)


def test_rezero_is_he_but_for_the_last_gamma_of_every_branch():
    he, rezero = he_(SMALL["resnet"](), seeded()), rezero_(SMALL["resnet"](), seeded())
    changed = {
        name
        for (name, a), b in zip(he.named_parameters(), rezero.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert len(changed) == 8
    assert all(name.endswith(".norm2.weight") for name in changed)


def test_without_residual_branches_rezero_is_he_and_fixup_is_he_with_a_zero_main_head():
    he, rezero, fixup = (init_(SMALL["densenet"](), seeded()) for init_ in (he_, rezero_, fixup_))
    for name, value in he.named_parameters():
        assert torch.equal(rezero.get_parameter(name), value)
        if name.startswith("heads.main."):
            assert not fixup.get_parameter(name).any()
        else:
            assert torch.equal(fixup.get_parameter(name), value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lion-dg"], "unknown initialisation 'lion-dg': did you mean 'lion_dg'"),
        (["orthogonal"], "unknown initialisation 'orthogonal'.*he, xavier"),
        (["lsuv"], "lsuv looks at data: pass 256 training images"),
        (["gradinit", batch()[0]], "pass the labels"),
        (["gradinit", batch()[0], batch()[1][:3]], "32 images and 3 labels"),
    ],
)
def test_bad_requests_are_refused_before_a_weight_changes(arguments, message):
    model = SMALL["densenet"]()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match=message):
        initialize_(model, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("init_", [fixup_, rezero_])
@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_residual_methods_refuse_models_that_do_not_name_their_branches(init_, wrap):
    with pytest.raises(UserError, match="^Linear is no DeeplySupervised network.*residual_branch"):
        init_(wrap(nn.Linear(2, 2)))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "gradinit"])
def test_a_wrapped_network_is_initialised_as_the_bare_one(method):
    bare, wrapped = SMALL["resnet"](), nn.DataParallel(SMALL["resnet"]())
    initialize_(bare, method, *batch(), generator=seeded())
    assert initialize_(wrapped, method, *batch(), generator=seeded()) is wrapped
    for a, b in zip(bare.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(a, b)


@both
@every_method
def test_models_without_values_are_refused(build, method):
    with pytest.raises(UserError, match="'stem.weight' is on the meta device.*to_empty"):
        initialize_(build().to("meta"), method, *batch())
    lazy = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        lazy.heads.main.linear = nn.LazyLinear(10)
    with pytest.raises(UserError, match="'heads.main.linear.weight'.*lazy.*run one batch first"):
        initialize_(lazy, method, *batch())
    assert lazy.stem.weight.isfinite().all()


def test_a_cast_of_the_old_weights_is_forgotten():
    model, (images, _) = SMALL["densenet"](), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(images)
        he_(model, seeded())
        inside = model(images)[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(images)[-1], inside)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: compares devices")
@both
@every_method
def test_a_cpu_generator_gives_the_same_weights_on_a_gpu(build, method):
    on_cpu, on_gpu = initialized(build, method), initialized(build, method, device="cuda")
    for a, b in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=2e-2, atol=1e-4)
