"""GradInit: what its scales are, and what they achieve."""

import pytest
import torch
import torch.nn.functional as F

from lion_fast.errors import UserError
from lion_fast.init import gradinit_, he_
from lion_fast.models import densenet_ds, resnet_ds

MODELS = {
    "densenet": lambda: densenet_ds(growth_rate=4, block_layers=1),
    "resnet": lambda: resnet_ds(base_width=4),
}
both = pytest.mark.parametrize("build", MODELS.values(), ids=list(MODELS))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def learnable(size=64):
    """Return images whose class shows as a pattern under noise."""
    generator = seeded(1)
    patterns = torch.randn(10, 3, 8, 8, generator=generator)
    labels = torch.randint(10, (size,), generator=generator)
    return patterns[labels] + 0.5 * torch.randn(size, 3, 8, 8, generator=generator), labels


def loss_and_gradients(model, images, labels):
    *aux, main = model.train()(images)
    loss = F.cross_entropy(main, labels) + 0.3 * sum(F.cross_entropy(z, labels) for z in aux)
    return loss, torch.autograd.grad(loss, list(model.parameters()))


def gradient_norm(model, p=2):
    _, gradients = loss_and_gradients(model, *learnable())
    return torch.cat([gradient.flatten() for gradient in gradients]).norm(p).item()


def loss_one_step_ahead(model, eta, algorithm="sgd"):
    """Return the loss after the step that GradInit looks ahead, on all images."""
    _, gradients = loss_and_gradients(model, *learnable())
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            direction = gradient.sign() if algorithm == "adam" else gradient / norm
            parameter.sub_(eta * direction)
    return loss_and_gradients(model, *learnable())[0].item()


@both
@pytest.mark.parametrize(("algorithm", "eta"), [("sgd", 0.1), ("adam", 1e-3)])
def test_the_loss_one_step_ahead_is_lower_than_hes(build, algorithm, eta):
    learnt = gradinit_(
        build(), *learnable(), iterations=25, lr=3e-2, eta=eta, gamma=float("inf"),
        algorithm=algorithm, batch_size=64, generator=seeded(),
    )  # fmt: skip
    he = loss_one_step_ahead(he_(build(), seeded()), eta, algorithm)
    assert loss_one_step_ahead(learnt, eta, algorithm) < 0.95 * he


@both
@pytest.mark.parametrize(("algorithm", "p"), [("sgd", 2), ("adam", 1)])
def test_the_constraint_lowers_the_gradient_norm(build, algorithm, p):
    constrained = gradinit_(
        build(), *learnable(), iterations=20, lr=1e-2, gamma=0.0,
        algorithm=algorithm, batch_size=64, generator=seeded(),
    )  # fmt: skip
    assert gradient_norm(constrained, p) < 0.9 * gradient_norm(he_(build(), seeded()), p)


@both
def test_a_tensor_is_hes_times_one_scale_not_below_the_least(build):
    arguments = {"iterations": 15, "lr": 0.1, "min_scale": 0.5, "generator": seeded(3)}
    learnt = gradinit_(build(), *learnable(), **arguments)
    he, scales = he_(build(), seeded(3)), []
    for a, b in zip(learnt.parameters(), he.parameters(), strict=True):
        if not b.any():
            assert not a.any()
            continue
        largest = b.abs().argmax()
        scales.append((a.flatten()[largest] / b.flatten()[largest]).item())
        torch.testing.assert_close(a, scales[-1] * b)
    assert min(scales) == pytest.approx(0.5)
    assert max(scales) > 1


def test_no_iteration_is_he():
    learnt = gradinit_(MODELS["densenet"](), *learnable(), iterations=0, generator=seeded())
    he = he_(MODELS["densenet"](), seeded())
    assert all(torch.equal(a, b) for a, b in zip(learnt.parameters(), he.parameters(), strict=True))


def test_images_that_are_not_finite_are_refused():
    images, labels = learnable()
    images[:] = float("nan")
    with pytest.raises(UserError, match="gradient norm is nan"):
        gradinit_(MODELS["densenet"](), images, labels, iterations=1)


@pytest.mark.parametrize("count", [0, 3])
def test_images_and_labels_must_agree(count):
    images, labels = learnable()
    with pytest.raises(UserError, match=f"{count} images and"):
        gradinit_(MODELS["densenet"](), images[:count], labels[: 2 * count])
