"""LION-DG on networks of every kind: heads by what a model returns, and never the main one."""

import copy

import pytest
import torch
from odd_outputs import REFUSED, RIGHT, FocalPrior, Stages, TwoPlaces, image
from torch import nn

from lion_fast.errors import UserError
from lion_fast.init import he_, initialize_, lion_dg_, lion_dg_report, lion_lsuv_, lsuv_


def run(model, case):
    """Return every tensor with a gradient that a training step sees, by dotted path."""
    example = image(getattr(model, "dims", 2)) if case.example is None else case.example
    if isinstance(example, dict):
        return flat(model(**example))
    return flat(model(*(example if isinstance(example, tuple) else (example,))))


def flat(tree, path=""):
    if isinstance(tree, torch.Tensor):
        return {path: tree} if tree.requires_grad else {}
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    elif not isinstance(tree, (dict, list, tuple)):
        tree = vars(tree) if hasattr(tree, "__dict__") else {}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = {}
    for key, value in items:
        found |= flat(value, f"{path}.{key}" if path else str(key))
    return found


def changed(model, before):
    return {n for n, p in model.state_dict().items() if not torch.equal(p, before[n])}


def arguments(case):
    return case.arguments | ({} if case.example is None else {"example": case.example})


@pytest.mark.parametrize("name", RIGHT)
def test_the_auxiliary_heads_alone_are_zeroed_and_their_gradient_goes_nowhere_else(name):
    case = RIGHT[name]
    torch.manual_seed(0)
    model = case.build()
    before = copy.deepcopy(model.state_dict())
    outputs = run(model, case)
    model.load_state_dict(before)
    assert lion_dg_(model, **arguments(case)) is model
    zeroed = {n for n, p in model.named_parameters() if not p.any()}
    layers = {n.rpartition(".")[0].removesuffix(".parametrizations.weight") for n in zeroed}
    assert {layer.removeprefix("again.inner.") for layer in layers} - {
        f"stages.{i}.1" for i in range(3)
    } == case.zeroed
    assert all(n in zeroed or n.startswith("again") for n in changed(model, before))
    assert outputs.keys() == run(model, case).keys()
    check_by_itself(model, case, zeroed, outputs)


def check_by_itself(model, case, zeroed, before):
    """Check without the package: main output as before, the others constant, their gradient."""
    after = run(model, case)
    if case.key:
        assert torch.equal(after[case.key], before[case.key])
    parameters = dict(model.named_parameters())
    awake = set()
    for path, value in auxiliary(after, case).items():
        weight = torch.randn_like(value) if value.ndim else torch.ones(())
        loss = (value * weight).sum()
        gradients = torch.autograd.grad(
            loss, list(parameters.values()), allow_unused=True, retain_graph=True
        )
        for key, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and (gradient != 0).any():
                awake.add(key)
                assert key in zeroed, f"{path} has a gradient in {key}"
    if auxiliary(after, case):
        # The heads' own weights move; batch norms' betas are 0 at the start.
        assert awake == {n for n in zeroed if not n.startswith("stages")}


def auxiliary(outputs, case):
    """Return outputs beside the main one; a stacked tensor's levels beside the first."""
    if not case.key:
        (whole,) = outputs.values()
        if whole.ndim == 5:
            return {"1": whole[:, 1], "2": whole[:, 2]}
        return {"rest": whole[:, 3:]}
    mixed = ("loss", "decode.loss_dice", "probabilities", "features")
    found = {k: v for k, v in outputs.items() if k != case.key and k not in mixed}
    mains = case.arguments.get("main")
    mains = [str(m) for m in mains] if isinstance(mains, list) else [str(mains)]
    return {
        k: v for k, v in found.items() if not any(k.startswith(f"{m}.") or k == m for m in mains)
    }


@pytest.mark.parametrize("name", REFUSED)
def test_a_doubt_is_refused_with_what_to_pass_and_nothing_is_touched(name):
    case = REFUSED[name]
    torch.manual_seed(0)
    model = case.build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=case.message):
        lion_dg_(model, **arguments(case))
    assert changed(model, before) == set()
    assert all(p.requires_grad for p in model.parameters())


def test_a_kept_prior_stays_and_the_gradient_to_the_backbone_is_0():
    model = lion_dg_(FocalPrior(), main=0, bias="keep")
    main, *others = model(image())
    assert all((z == -4.6).all() for z in others)
    sum(z.square().sum() for z in others).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.stages.parameters())
    assert model.seg[1].weight.grad.any()
    assert model.seg[1].bias.any() and not model.seg[1].weight.any()
    report = lion_dg_report(model, main=0, bias="keep")
    assert str(report).splitlines()[0] == "seg.1: seg.1.weight zero; seg.1.bias not zeroed"


def test_log_frequencies_become_the_logits():
    prior = torch.tensor([0.9, 0.05, 0.05]).log()
    model = lion_dg_(Stages(), main=0, bias=prior)
    for logits in model(image())[1:]:
        assert torch.equal(logits, prior[None, :, None, None].expand_as(logits))


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ("none", "bias='none' is unknown: pass 'zero', 'keep'"),
        (torch.zeros(4), "bias has 4 values, but 'seg.1'.* gives 3"),
        (torch.zeros(3, 1), r"shape \(3, 1\)"),
        (torch.tensor([0.0, float("-inf"), 0]), "finite"),
    ],
)
def test_a_bias_that_does_not_fit_is_refused(bias, message):
    with pytest.raises(UserError, match=message):
        lion_dg_(Stages(), main=0, bias=bias)


def test_a_report_leaves_nothing_behind_in_lists_attributes_or_the_random_state():
    model = TwoPlaces()
    outputs, first = model.outputs, model.outputs[0]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    lion_dg_report(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.outputs is outputs and model.outputs[0] is first
    assert not hasattr(model, "last")
    assert "forward" not in vars(model.seg[0])
    copy.deepcopy(model)


def test_frozen_parameters_stay_frozen_and_a_frozen_main_path_is_still_told():
    model = Stages()
    model.stages.requires_grad_(False)
    model.seg[0].requires_grad_(False)
    lion_dg_(model, main=0)
    assert [p.requires_grad for p in model.seg.parameters()] == [False] * 2 + [True] * 4
    with pytest.raises(UserError, match="'seg.0' gives or feeds"):
        lion_dg_(model, ["seg.0", "seg.1"], main=0)


def test_a_large_example_is_checked_on_a_small_one_and_used_where_that_does_not_run():
    seen = []

    class Sized(Stages):
        def forward(self, x):
            seen.append(tuple(x.shape))
            if self.fixed and x.shape[-1] != 256:
                raise ValueError("256 pixels")
            return super().forward(x)

    for fixed in (False, True):
        sized = Sized()
        sized.fixed = fixed
        lion_dg_(sized, main=0, example=torch.randn(4, 3, 256, 256))
    assert seen[0] == (2, 3, 32, 32) and seen[-1] == (4, 3, 256, 256)


def test_the_hybrid_refuses_before_it_touches_a_weight_and_takes_any_tree():
    model = Stages()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match="main=0"):
        lion_lsuv_(model, image(), heads="seg")
    assert changed(model, before) == set()
    lion_lsuv_(model, image(), main=0)
    assert not model.seg[1].weight.any() and model.seg[0].weight.any()

    case = RIGHT["dict input"]
    model = lion_lsuv_(case.build(), case.example)
    assert not model.seg[1].weight.any()
    kept = FocalPrior()
    lion_lsuv_(kept, (image(),), main=0, bias="keep")
    assert (kept.seg[1].bias == torch.tensor(-4.6)).all()
    tree = lsuv_(case.build(), case.example)
    assert tree(**case.example)["logits"].var(correction=0).item() == pytest.approx(1, abs=0.02)


def test_initialize_passes_on_what_a_method_takes_and_refuses_the_rest():
    model = initialize_(Stages(), "lion_lsuv", image(), main=0, bias="keep")
    assert not model.seg[2].weight.any()
    with pytest.raises(UserError, match="he takes no main=: it is for lion_dg, lion_lsuv"):
        initialize_(Stages(), "he", main=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_he_gives_transposed_convolutions_output_variance_2(dims):
    layer = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2](64, 32, 2, 2)
    he_(layer, torch.Generator().manual_seed(0))
    x = torch.randn(8, 64, *[4] * dims, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert layer(x).var().item() == pytest.approx(2, rel=0.1)
