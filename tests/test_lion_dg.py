"""LION-DG's own propositions, and its reach into other people's models."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import googlenet, inception_v3
from torchvision.models.segmentation import deeplabv3_resnet50, fcn_resnet50

from lion_fast.errors import UserError
from lion_fast.init import he_, initialize_, lion_dg_, lion_dg_report
from lion_fast.models import densenet_ds, resnet_ds

ARCHITECTURES = {
    "densenet": densenet_ds,
    "resnet": lambda num_classes: resnet_ds(num_classes, base_width=16),
}
both = pytest.mark.parametrize("build", ARCHITECTURES.values(), ids=list(ARCHITECTURES))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(num_classes=10, size=8, side=8):
    generator = seeded(1)
    images = torch.randn(size, 3, side, side, generator=generator)
    return images, torch.randint(num_classes, (size,), generator=generator)


def aux_loss(model, images, target):
    return sum(F.cross_entropy(logits, target) for logits in model(images)[:-1])


@both
@pytest.mark.parametrize("num_classes", [10, 100])
def test_zeroed_heads_leave_backbone_gradient_zero(build, num_classes):
    model = initialize_(build(num_classes), "lion_dg", generator=seeded())
    aux_loss(model, *batch(num_classes)).backward()
    reached = [p.grad for p in model.backbone_parameters() if p.grad is not None]
    assert len(reached) > 20
    assert all((grad == 0.0).all() for grad in reached)
    for head in model.heads.aux:
        assert head.linear.weight.grad.norm() > 1e-3
        assert head.linear.bias.grad.norm() > 1e-3


@both
def test_he_heads_disturb_the_backbone(build):
    model = he_(build(10), seeded())
    aux_loss(model, *batch()).backward()
    assert all(p.grad.norm() > 0 for p in model.backbone_parameters() if p.grad is not None)


@both
def test_at_step_0_the_backbone_sees_the_main_loss_alone(build):
    model = initialize_(build(10), "lion_dg", generator=seeded())
    backbone = list(model.backbone_parameters())
    with_aux, without = (
        torch.autograd.grad(model.loss(*batch(), aux_weight).loss, backbone)
        for aux_weight in (0.3, 0.0)
    )
    assert all(torch.equal(a, b) for a, b in zip(with_aux, without, strict=True))


@both
def test_head_weights_grow_linearly_at_the_predicted_rate(build):
    lr, alpha, steps = 1e-3, 0.3, 10
    model = initialize_(build(10), "lion_dg", generator=seeded())
    images, target = batch(size=32)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    weights = [head.linear.weight for head in model.heads.aux]
    slopes = [
        lr * alpha * grad.norm()
        for grad in torch.autograd.grad(aux_loss(model, images, target), weights)
    ]
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model.loss(images, target, alpha).loss.backward()
        optimizer.step()
        for weight, slope in zip(weights, slopes, strict=True):
            assert weight.norm().item() == pytest.approx(step * slope.item(), rel=0.05)


@both
def test_lion_dg_is_he_to_the_bit_but_for_the_heads(build):
    he = initialize_(build(10), "he", generator=seeded(5)).state_dict()
    lion = initialize_(build(10), "lion_dg", generator=seeded(5)).state_dict()
    for name, value in lion.items():
        if name.startswith("heads.aux."):
            assert (value == 0).all()
        else:
            assert torch.equal(value, he[name])


def tapped_branch_gradients(model):
    """Return the loss's gradients on the residual branches that end at an auxiliary tap."""
    branches = model.residual_branches()[1:6:2]
    parameters = [p for branch in branches for layer in branch for p in layer.parameters()]
    return torch.autograd.grad(model.loss(*batch(), 0.3).loss, parameters)


def test_zeroed_heads_in_the_path_kill_the_branch_and_side_taps_do_not():
    residual = initialize_(resnet_ds(10, "residual", 8), "lion_dg", generator=seeded())
    side_tap = initialize_(resnet_ds(10, "side_tap", 8), "lion_dg", generator=seeded())
    he = initialize_(resnet_ds(10, "residual", 8), "he", generator=seeded())
    assert all((grad == 0.0).all() for grad in tapped_branch_gradients(residual))
    assert all(grad.norm() > 1e-6 for grad in tapped_branch_gradients(side_tap))
    assert all(grad.norm() > 1e-6 for grad in tapped_branch_gradients(he))


def test_zeroed_heads_in_the_path_make_the_block_its_shortcut():
    model = initialize_(resnet_ds(10, "residual", 8), "lion_dg", generator=seeded())
    seen = {}
    for stage in (0, 1):
        block = model.stages[stage][0]
        block.register_forward_hook(
            lambda module, inputs, output, stage=stage: seen.update({stage: (inputs[0], output)})
        )
    model(batch()[0])
    assert torch.equal(seen[1][0], seen[0][1])


@pytest.mark.parametrize(
    ("build", "zeroed"),
    [
        (
            lambda: googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=10),
            {"aux1.fc2.weight", "aux1.fc2.bias", "aux2.fc2.weight", "aux2.fc2.bias"},
        ),
        (
            lambda: inception_v3(weights=None, aux_logits=True, init_weights=False, num_classes=10),
            {"AuxLogits.fc.weight", "AuxLogits.fc.bias"},
        ),
        (
            lambda: fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True),
            {"aux_classifier.4.weight", "aux_classifier.4.bias"},
        ),
        (
            lambda: deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True),
            {"aux_classifier.4.weight", "aux_classifier.4.bias"},
        ),
    ],
    ids=["googlenet", "inception_v3", "fcn", "deeplabv3"],
)
def test_torchvision_heads_are_found_and_nothing_else_is_touched(build, zeroed):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = lion_dg_report(model)
    assert all(head.in_model and not head.zeroed for head in report.heads)
    assert {name for head in report.heads for name in head.parameters} == zeroed
    assert lion_dg_(model) is model
    for name, value in model.state_dict().items():
        if name in zeroed:
            assert before[name].any()
            assert not value.any()
        else:
            assert torch.equal(value, before[name])


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.exit_early = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        self.exit_mask = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 3))
        self.final = nn.Linear(4, 2)


@pytest.mark.parametrize(
    "heads",
    [
        lambda model: ["exit_early", model.exit_mask],
        lambda model: (head for head in (model.exit_early, "exit_mask")),
    ],
)
def test_heads_are_named_by_module_or_dotted_name(heads):
    model = Foreign()
    lion_dg_(model, heads(model))
    zeroed = {name for name, value in model.named_parameters() if not value.any()}
    assert zeroed == {"exit_early.2.weight", "exit_early.2.bias"} | {
        "exit_mask.1.weight",
        "exit_mask.1.bias",
    }


def test_a_single_head_needs_no_list():
    model = lion_dg_(Foreign(), "exit_early")
    assert not model.exit_early[2].weight.any()
    assert model.exit_early[0].weight.any()


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (None, "no auxiliary heads found.*exit_early.2, exit_mask.0, exit_mask.1, final"),
        ("exit_erly", "no module 'exit_erly': did you mean 'exit_early'"),
        ("zzz", "no module 'zzz'.*exit_early.0"),
        (nn.Linear(2, 2), "Linear is not part of the model"),
        (["exit_early", "exit_early.1"], "head 'exit_early.1' has no parameters"),
        ([], "heads is empty"),
    ],
)
def test_heads_that_cannot_be_zeroed_are_refused_with_candidates(heads, message):
    model = Foreign()
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(UserError, match=message):
        lion_dg_(model, heads)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_torchvisions_main_classifier_is_refused_as_a_head():
    model = googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=10)
    with pytest.raises(UserError, match="head 'fc' gives or feeds the model's main output"):
        lion_dg_(model, ["aux1", "fc"])
    assert model.aux1.fc2.weight.any()


@pytest.mark.parametrize("heads", [None, "heads", "heads.aux", ["heads.aux.0", "heads.aux.1"]])
def test_this_packages_heads_are_found_without_the_main_one(heads):
    report = lion_dg_report(densenet_ds(growth_rate=2, block_layers=1), heads)
    assert [head.layers for head in report.heads] == [
        ("heads.aux.0.linear",),
        ("heads.aux.1.linear",),
    ]
    assert all(head.in_model for head in report.heads)


def test_initialize_does_not_set_a_foreign_backbone_anew():
    model = googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=10)
    before = [value.clone() for value in model.parameters()]
    for wrapped in (model, nn.DataParallel(model)):
        with pytest.raises(UserError, match=r"whole GoogLeNet anew: call lion_dg_\(model\)"):
            initialize_(wrapped, "lion_dg")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
