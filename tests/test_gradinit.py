"""GradInit: what its scales are, and what they achieve."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lion_fast.cli import main
from lion_fast.errors import UserError
from lion_fast.init import gradinit_, he_, initialize_
from lion_fast.models import densenet_ds, resnet_ds
from lion_fast.training.step.losses import LossOptions

MODELS = {
    "densenet": lambda: densenet_ds(growth_rate=4, block_layers=1),
    "resnet": lambda: resnet_ds(base_width=8),
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


class MainFirst(nn.Module):
    """The same network with its main logits first, in the containers that others use."""

    def __init__(self, pack):
        super().__init__()
        self.inner, self.pack = MODELS["densenet"](), pack

    def forward(self, images):
        *aux, main = self.inner(images)
        return self.pack(main, aux)


class Outputs(NamedTuple):
    logits: torch.Tensor
    aux_logits1: torch.Tensor | None
    aux_logits2: torch.Tensor | None


def learnt(model, **arguments):
    gradinit_(model, *learnable(), iterations=3, lr=0.1, generator=seeded(), **arguments)
    return list(model.parameters())


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "pack",
    [
        lambda main, aux: Outputs(main, *aux),
        lambda main, aux: {"out": main, "aux1": aux[0], "aux2": aux[1]},
    ],
)
def test_main_logits_that_come_first_are_not_taken_for_auxiliary_ones(pack):
    assert same(learnt(MainFirst(pack)), learnt(MODELS["densenet"]()))


def test_an_unknown_order_of_logits_is_asked_for():
    def first(main, aux):
        return (main, *aux)

    with pytest.raises(UserError, match="which output of MainFirst is the main one.*pass main="):
        learnt(MainFirst(first))
    expected = learnt(MODELS["densenet"]())
    for said in (0, -3, "0", [0]):
        assert same(learnt(MainFirst(first), main=said), expected)
    assert same(learnt(MainFirst(lambda main, aux: (*aux, main)), main=-1), expected)


@pytest.mark.parametrize("main", ["out", "out.0", 3, -4, [0, 1]])
def test_a_main_output_that_is_none_is_refused_before_a_weight_is_touched(main):
    model = MainFirst(lambda main, aux: (main, *aux))
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match=r"main=.* is no output of MainFirst.*'0' \(2, 10\), '1'"):
        initialize_(model, "gradinit", *learnable(), main=main)
    assert same(model.parameters(), before)


def test_the_main_output_may_be_named_by_its_key():
    def keyed(main, aux):
        return {"a": aux[0], "scores": main, "b": aux[1]}

    expected = learnt(MODELS["densenet"]())
    assert same(learnt(MainFirst(keyed), main="scores"), expected)


def test_heads_that_a_model_does_not_return_keep_hes_weights():
    def alone(main, aux):
        return main

    hes = he_(MainFirst(alone), seeded()).inner.heads.aux
    model = MainFirst(alone)
    assert same(learnt(model, main=0), learnt(MainFirst(alone)))
    assert same(model.inner.heads.aux.parameters(), hes.parameters())


def test_the_runs_own_loss_decides():
    default = learnt(MODELS["densenet"]())
    assert same(learnt(MODELS["densenet"](), loss=LossOptions(0.3).of_logits), default)
    assert not same(learnt(MODELS["densenet"](), loss=LossOptions(0.5).of_logits), default)
    assert not same(
        learnt(MODELS["densenet"](), loss=LossOptions(label_smoothing=0.1).of_logits), default
    )


def test_a_loss_of_the_main_head_alone_leaves_auxiliary_scales_at_one():
    def main_alone(logits, labels):
        return F.cross_entropy(logits[-1], labels) + 0 * sum(z.sum() for z in logits)

    model, he = MODELS["densenet"](), he_(MODELS["densenet"](), seeded())
    gradinit_(model, *learnable(), iterations=3, lr=0.1, generator=seeded(), loss=main_alone)
    assert same(model.aux_parameters(), he.aux_parameters())
    assert not same(model.backbone_parameters(), he.backbone_parameters())


def test_autocast_does_not_change_what_gradinit_does():
    expected = learnt(MODELS["densenet"]())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(learnt(MODELS["densenet"]()), expected)


def start_of_a_run(monkeypatch, dataset, out, *options):
    """Return the weights with which a run of the command line starts, after two iterations."""
    starts = []

    def short(*arguments, **keywords):
        model = gradinit_(*arguments, **keywords, iterations=2, lr=0.1)
        starts.append([parameter.detach().clone() for parameter in model.parameters()])
        return model

    monkeypatch.setattr("lion_fast.init.gradinit_", short)
    arguments = f"train --dataset {dataset} --out {out} --init gradinit --max-steps 1 --window 1"
    small = "--growth-rate 2 --block-layers 1 --batch-size 32 --device cpu"
    assert main([*arguments.split(), *small.split(), *options]) == 0
    return starts[0]


def test_a_runs_aux_weight_and_label_smoothing_reach_gradinit(stripes, tmp_path, monkeypatch):
    def start(*options):
        return start_of_a_run(monkeypatch, stripes, tmp_path, *options)

    default = start()
    assert same(start("--aux-weight", "0.3"), default)
    assert not same(start("--aux-weight", "0.5"), default)
    assert not same(start("--label-smoothing", "0.2"), default)
