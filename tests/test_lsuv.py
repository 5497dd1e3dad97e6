"""LSUV: unit variance where it is claimed, and nowhere else a change."""

import copy

import pytest
import torch
from photographs import photographs, seeded
from torch import nn

from lion_fast.errors import UserError
from lion_fast.init import initialize_, lion_lsuv_, lsuv_
from lion_fast.models import densenet_ds, resnet_ds

MODELS = {
    "densenet": lambda: densenet_ds(growth_rate=4, block_layers=3),
    "side_tap": lambda: resnet_ds(base_width=8),
    "residual": lambda: resnet_ds(placement="residual", base_width=8),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=list(MODELS))


def first_output_variances(model, images):
    """Return the variance of each layer's output, in plain training mode, when it first runs."""
    model, variances = copy.deepcopy(model).train(), {}

    def measure(module, inputs, output):
        variances.setdefault(module, output.double().var(correction=0).item())

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(measure)
    with torch.no_grad():
        model(images)
    return list(variances.values())


@every_model
@pytest.mark.parametrize("target", [1.0, 0.25])
def test_every_layer_has_the_target_variance_on_256_images(build, target):
    images = photographs()
    model = lsuv_(build(), images, target_variance=target, generator=seeded())
    variances = first_output_variances(model, images)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(variances) == len(layers)
    assert all(abs(variance - target) <= 0.01 for variance in variances)


@every_model
def test_weights_are_scaled_orthonormal_matrices(build):
    model = lsuv_(build(), photographs(), generator=seeded())
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            matrix = module.weight.detach().flatten(1)
            matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
            gram = matrix @ matrix.t()
            scale = gram.diagonal().mean()
            torch.testing.assert_close(gram / scale, torch.eye(len(gram)), atol=1e-4, rtol=0)


def test_only_the_first_256_images_count():
    images = photographs(300)
    model = lsuv_(MODELS["densenet"](), images, generator=seeded())
    again = lsuv_(MODELS["densenet"](), images[:256], generator=seeded())
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("iterations", [0, 1])
def test_one_correction_does_and_none_leaves_the_weights_orthonormal(iterations):
    images = photographs()
    model = lsuv_(
        MODELS["densenet"](), images, tolerance=1e-3, max_iterations=iterations, generator=seeded()
    )
    variances = first_output_variances(model, images)
    assert all(abs(variance - 1) < 1e-3 for variance in variances) == (iterations == 1)


@every_model
def test_lion_lsuv_is_lsuv_with_heads_exactly_zero(build):
    images = photographs()
    lsuv = initialize_(build(), "lsuv", images, generator=seeded())
    hybrid = initialize_(build(), "lion_lsuv", images, generator=seeded())
    for name, value in hybrid.named_parameters():
        if name.startswith("heads.aux."):
            assert (value == 0.0).all()
        else:
            assert torch.equal(value, lsuv.get_parameter(name))


def test_a_hybrid_after_a_zeroed_model_has_no_trace_of_the_zeros():
    images = photographs()
    once = lion_lsuv_(MODELS["densenet"](), images, generator=seeded())
    twice = lion_lsuv_(copy.deepcopy(once), images, generator=seeded())
    assert all(
        torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True)
    )


def test_dropout_does_not_disturb_the_measurement():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5))
    images = photographs()
    lsuv_(model, images, generator=seeded())
    with torch.no_grad():
        assert model.eval()(images).var(correction=0).item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_images_without_variance_are_refused_by_layer(value):
    model = MODELS["densenet"]()
    with pytest.raises(UserError, match="layer 'stem' has output variance"):
        lsuv_(model, torch.full((16, 3, 8, 8), value), generator=seeded())
    assert not any(module._forward_hooks for module in model.modules())


@every_model
def test_autocast_does_not_change_what_lsuv_does(build):
    images, labels = photographs(64), torch.arange(64) % 10
    expected = lsuv_(build(), images, generator=seeded())
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(images)
        lsuv_(model, images, generator=seeded())
        loss = model.loss(images, labels, 0.3).loss
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
    truth = expected.loss(images, labels, 0.3).loss
    assert loss.item() == pytest.approx(truth.item(), rel=0.05)
