"""Each balancing method of the benchmark has the defining property of its paper."""

import numpy as np
import pytest
import torch
from bench_balancing import (
    ALPHA,
    BALANCERS,
    FixedWeights,
    GradientSurgery,
    GradNorm,
    PCGrad,
    UncertaintyWeighting,
    WarmUp,
    cagrad,
    head_losses,
    last_shared_weight,
    make_step,
)

from lion_fast.init import initialize_
from lion_fast.models import densenet_ds, resnet_ds


def conflicting_gradients() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    a, noise = torch.randn(2, 50, dtype=torch.float64, generator=generator)
    return torch.stack([a, -0.5 * a + noise])


@pytest.fixture
def model():
    net = densenet_ds(growth_rate=4, block_layers=2, stem_channels=8)
    return initialize_(net, "he", generator=torch.Generator().manual_seed(0))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 8, 8, generator=generator), torch.randint(
        10, (6,), generator=generator
    )


def gradients_of(model, balancer, batch):
    model.zero_grad(set_to_none=True)
    balancer.backward(head_losses(model, *batch))
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_fixed_weights_give_the_gradient_of_the_training_loss(model, batch):
    ours = gradients_of(model, FixedWeights(model), batch)
    model.zero_grad()
    model.loss(*batch, ALPHA).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_warm_up_starts_without_auxiliary_gradient_and_ends_at_alpha(model, batch):
    balancer = WarmUp(model, warmup_steps=2)
    first, _, last = (gradients_of(model, balancer, batch) for _ in range(3))
    assert not first["heads.aux.0.linear.weight"].any()
    assert first["heads.main.linear.weight"].any()
    fixed = gradients_of(model, FixedWeights(model), batch)
    for name in fixed:
        torch.testing.assert_close(last[name], fixed[name])


def test_uncertainty_weighting_rests_where_the_variance_is_twice_the_loss(model, batch):
    balancer = UncertaintyWeighting(model)
    losses = head_losses(model, *batch)
    with torch.no_grad():
        balancer.log_variances.copy_(torch.log(2 * torch.stack(losses)))
    balancer.backward(losses)
    torch.testing.assert_close(balancer.log_variances.grad, torch.zeros(3), atol=1e-6, rtol=0)


def test_uncertainty_weighting_raises_the_variance_of_a_head_with_more_loss(model):
    balancer = UncertaintyWeighting(model)
    balancer.backward(torch.tensor([5.0, 0.1, 0.5]).unbind())
    assert balancer.log_variances.grad[0] < 0 < balancer.log_variances.grad[1]
    assert balancer.log_variances.grad[2] == 0


def test_gradnorm_lowers_the_weight_of_the_largest_gradient_and_keeps_their_sum(model):
    balancer = GradNorm(model)
    balancer.update_weights(torch.tensor([3.0, 1.0, 2.0]), torch.ones(3))
    low, high, _ = balancer.weights.tolist()
    assert low < 1 < high
    assert balancer.weights.sum().item() == pytest.approx(3)


def test_gradnorm_evens_out_the_gradient_norms(model):
    balancer = GradNorm(model)
    norms = torch.tensor([3.0, 1.0, 2.0])
    for _ in range(200):
        balancer.update_weights(norms, torch.ones(3))
    scaled = (balancer.weights * norms).detach()
    assert scaled.max() / scaled.min() < 1.3


def test_gradnorm_gives_a_head_that_learns_slowly_more_gradient(model):
    balancer = GradNorm(model)
    balancer.update_weights(torch.ones(3), torch.tensor([1.5, 0.75, 0.75]))
    slow, *quick = balancer.weights.tolist()
    assert all(slow > weight for weight in quick)


@pytest.mark.parametrize("build", [densenet_ds, lambda: resnet_ds(base_width=8)])
def test_gradnorm_measures_at_the_last_convolution_before_the_first_tap(build, batch):
    net = build()
    weight = last_shared_weight(net, head_losses(net, *batch))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert names[id(weight)] in ("blocks.0.layers.5.conv.weight", "stages.0.1.conv2.weight")


def test_pcgrad_leaves_no_gradient_that_opposes_another():
    gradients = conflicting_gradients()
    assert gradients[0] @ gradients[1] < 0
    combined = PCGrad()(gradients)
    a, b = gradients
    expected = (a - (a @ b) / (b @ b) * b) + (b - (a @ b) / (a @ a) * a)
    torch.testing.assert_close(combined, expected)
    assert (gradients @ combined >= -1e-9).all()


def test_pcgrad_is_the_plain_sum_without_conflict_and_ignores_zero_gradients():
    gradients = torch.stack([torch.ones(5), torch.arange(5.0), torch.zeros(5)])
    torch.testing.assert_close(PCGrad()(gradients), gradients.sum(0))


def test_cagrad_without_radius_is_the_mean_gradient():
    gradients = conflicting_gradients()
    torch.testing.assert_close(cagrad(gradients, radius=0.0), gradients.mean(0))


def test_cagrad_serves_the_worst_off_head_best_within_its_ball():
    gradients = conflicting_gradients()
    mean = gradients.mean(0)
    update = cagrad(gradients, radius=0.4)
    reach = 0.4 * mean.norm()
    assert (update - mean).norm() == pytest.approx(float(reach), rel=1e-3)
    worst = (gradients @ update).min()
    generator = torch.Generator().manual_seed(1)
    for share in np.linspace(0, 1, 101):
        direction = share * gradients[0] + (1 - share) * gradients[1]
        candidate = mean + reach * direction / direction.norm()
        assert (gradients @ candidate).min() <= worst * (1 + 1e-3)
    for _ in range(100):
        direction = torch.randn(50, dtype=torch.float64, generator=generator)
        candidate = mean + reach * direction / direction.norm()
        assert (gradients @ candidate).min() <= worst * (1 + 1e-3)


def test_surgery_that_sums_is_the_gradient_of_the_weighted_loss(model, batch):
    plain = gradients_of(model, FixedWeights(model), batch)
    summed = gradients_of(model, GradientSurgery(model, lambda rows: rows.sum(0)), batch)
    for name in plain:
        torch.testing.assert_close(summed[name], plain[name], atol=1e-6, rtol=1e-4)


def test_surgery_hands_on_gradients_in_their_parameters_strides(model, batch):
    model.to(memory_format=torch.channels_last)
    GradientSurgery(model, PCGrad()).backward(head_losses(model, *batch))
    strides = {name: (p.stride(), p.grad.stride()) for name, p in model.named_parameters()}
    assert any(not p.is_contiguous() for p in model.parameters())
    assert all(own == gradient for own, gradient in strides.values()), strides


@pytest.mark.parametrize("method", BALANCERS)
def test_a_step_under_every_method_trains_the_whole_network(model, batch, method):
    balancer = BALANCERS[method](model)
    step = make_step(model, balancer, *batch)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = []
    for _ in range(12):
        losses.append(head_losses(model, *batch)[-1].item())
        step()
    unmoved = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert unmoved == []
    assert losses[-1] < losses[0]
