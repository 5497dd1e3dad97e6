"""LION-DG on heads of every shape: the output layer is found by running, or refused by name."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from odd_heads import REFUSED, RIGHT, Branches, Net, convolutions, pooled
from torch import nn

from lion_fast.errors import UserError
from lion_fast.init import lion_dg_, lion_dg_report


def images(size=4, side=8):
    return torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(0))


def zeroed(model):
    return {name for name, value in model.named_parameters() if not value.any()}


def losses(outputs, target):
    flat = [z for output in outputs for z in (output if isinstance(output, tuple) else (output,))]
    maps = [z.flatten(2).mean(2) if z.ndim == 4 else z for z in flat]
    return sum(F.cross_entropy(z, target) for z in maps)


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("tapped", [True, False], ids=["run in the model", "run alone"])
def test_the_output_layer_is_zeroed_and_has_the_defining_property(case, tapped):
    build, expected = RIGHT[case]
    torch.manual_seed(0)
    if case == "hand-written" and not tapped:
        with pytest.raises(UserError, match="cannot run head 'aux'.*pass example="):
            lion_dg_(Net(tapped, aux=build()))
        return
    model = Net(tapped, aux=build())
    assert lion_dg_(model) is model
    assert zeroed(model) - {"norm.bias"} == {f"aux.{name}" for name in expected}
    model.heads_run = ["aux"]
    loss = losses(model(images())["aux"], torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert loss.item() % torch.tensor(4.0).log().item() == pytest.approx(0, abs=1e-5)
    assert (model.stem.weight.grad == 0).all()
    for name in expected:
        assert model.get_parameter(f"aux.{name}").grad.abs().sum() > 0
    assert lion_dg_report(model).heads[0].zeroed


@pytest.mark.parametrize("case", RIGHT)
def test_a_zeroed_head_learns(case):
    """Gradients awaken: behind a few steps the head tells two classes apart."""
    torch.manual_seed(0)
    model = lion_dg_(Net(aux=RIGHT[case][0]()))
    labels = torch.arange(32) % 2
    x = images(32) + 2 * labels[:, None, None, None] * torch.tensor([1.0, -1, 1])[:, None, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    first = None
    for _ in range(60):
        optimizer.zero_grad()
        loss = losses(model(x)["aux"], labels)
        loss.backward()
        first = first or loss.item()
        optimizer.step()
    assert loss.item() < 0.3 * first
    assert model.stem.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("case", REFUSED)
def test_a_head_that_cannot_be_zeroed_is_refused_and_left_as_it_was(case):
    build, message = REFUSED[case]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = Net(aux1=pooled(nn.Linear(6, 4)), aux=build())
    before = [p if case in ("lazy", "meta") else p.clone() for p in model.parameters()]
    with pytest.raises(UserError, match=message):
        lion_dg_(model)
    if case not in ("lazy", "meta"):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def heads(count=2):
    return [pooled(nn.Linear(6, 4)) for _ in range(count)]


@pytest.mark.parametrize("name", [
    "aux", "aux_heads", "aux_head", "auxiliary_head", "auxiliary_heads", "AuxLogits",
    "aux_classifiers", "deep_supervision", "ds_heads",
])  # fmt: skip
@pytest.mark.parametrize("explicit", [True, False])
def test_every_member_of_a_container_is_zeroed_whether_named_or_found(name, explicit):
    for container in (nn.ModuleList(heads()), nn.ModuleDict(dict(zip("ab", heads(), strict=True)))):
        model = lion_dg_(Net(**{name: container}), name if explicit else None)
        assert zeroed(model) - {"norm.bias"} == {
            f"{name}.{member}.2.{key}"
            for member, _ in container.named_children()
            for key in ("weight", "bias")
        }


def test_numbered_heads_are_found_beyond_the_second():
    model = Net(**{f"aux{i}": head for i, head in enumerate(heads(12))})
    report = lion_dg_report(lion_dg_(model))
    assert [head.name for head in report.heads] == [f"aux{i}" for i in range(12)]
    assert all(head.zeroed for head in report.heads)


def test_a_main_head_in_a_container_of_heads_is_left_out():
    model = Net(aux_heads=nn.ModuleDict({"a": heads(1)[0], "main": heads(1)[0]}))
    assert [head.name for head in lion_dg_report(model).heads] == ["aux_heads.a"]


def test_a_head_tied_to_the_main_classifier_is_refused_by_both_names():
    for tie in ("module", "weight"):
        model = Net(aux=pooled(nn.Linear(6, 4)), aux2=pooled(nn.Linear(6, 4)))
        if tie == "module":
            model.aux[2] = model.fc
        else:
            model.aux[2].weight = model.fc.weight
        with pytest.raises(UserError, match="'aux' is tied to 'fc.weight'|also runs outside it"):
            lion_dg_(model)
        assert model.fc.weight.any()
        assert model.aux2[2].weight.any()


def test_a_head_tied_to_a_hidden_layer_of_another_is_refused():
    shared = nn.Linear(6, 6)
    model = Net(aux1=pooled(shared), aux2=pooled(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)))
    model.aux2[2].weight = shared.weight
    with pytest.raises(UserError, match="'aux1' is tied to 'aux2.2.weight'"):
        lion_dg_(model)


def test_auxiliary_heads_may_share_their_output_layer():
    shared = nn.Linear(6, 4)
    model = lion_dg_(Net(aux1=pooled(shared), aux2=pooled(shared)))
    assert zeroed(model) - {"norm.bias"} == {"aux1.2.weight", "aux1.2.bias"}


@pytest.mark.parametrize("name", ["fc", "stem"])
def test_the_main_path_is_refused_as_a_head(name):
    with pytest.raises(UserError, match=f"head '{name}' gives or feeds the model's main output"):
        lion_dg_(Net(aux=heads(1)[0]), name)


class Pieces(Net):
    """A ModuleList that is one head in pieces, not a list of heads."""

    def forward(self, x):
        x = self.stem(x)
        tap = x
        for piece in self.aux:
            tap = piece(tap)
        return {"out": self.fc(x.mean((2, 3))), "aux": tap}


def test_a_list_that_is_one_head_in_pieces_is_refused_and_its_last_piece_is_taken():
    model = Pieces(aux=nn.ModuleList(convolutions()))
    with pytest.raises(
        UserError, match="'aux.2' reads the output of 'aux.0'.*the piece that gives"
    ):
        lion_dg_(model)
    assert zeroed(lion_dg_(model, "aux.2")) - {"norm.bias"} == {"aux.2.weight", "aux.2.bias"}


class Shared(Net):
    """A backbone that runs through a head's layer."""

    def forward(self, x):
        return super().forward(x)["aux"][0] + self.aux[0](self.stem(x)).mean((2, 3))


def test_a_layer_that_also_runs_outside_its_head_is_refused():
    model = Shared(aux=nn.Sequential(nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(
        UserError, match="head 'aux' gives or feeds|'aux.0' of head 'aux' also runs"
    ):
        lion_dg_(model)


class TwoInputs(Net):
    def forward(self, x, scale):
        return super().forward(x * scale)


class Inferred(nn.Module):
    """A head whose input cannot be told from its layers."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(24, 4)

    def forward(self, x):
        assert x.ndim == 4
        return self.fc(x.flatten(2)[:, :, :4].flatten(1))


def test_an_example_runs_a_model_that_made_up_images_do_not():
    model = TwoInputs(aux=Inferred())
    with pytest.raises(UserError, match="cannot run head 'aux'.*pass example="):
        lion_dg_(model)
    report = lion_dg_report(model, example=(images(), torch.tensor(2.0)))
    assert report.heads[0].in_model
    with pytest.raises(UserError, match="TwoInputs does not run on the example"):
        lion_dg_(model, example=images())
    lion_dg_(model, example=(images(), torch.tensor(2.0)))
    assert zeroed(model) - {"norm.bias"} == {"aux.fc.weight", "aux.fc.bias"}


def test_a_report_says_what_is_and_what_will_be_zeroed():
    model = Net(aux=convolutions(), aux2=Branches())
    report = lion_dg_report(model)
    assert report.heads[0].layers == ("aux.2",)
    assert report.heads[1].layers == ("aux2.near", "aux2.far")
    assert str(report).splitlines()[0] == "aux: aux.2.weight, aux.2.bias not zero"
    assert model.aux[2].weight.any()
    assert "aux: aux.2.weight, aux.2.bias zero" in str(lion_dg_report(lion_dg_(model)))


def test_verification_leaves_no_trace():
    model = Net(
        aux=nn.Sequential(nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 4, 1)),
        aux2=pooled(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 4)),
    )
    model.aux.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad():
        lion_dg_(model)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    changed = {k for k, value in model.state_dict().items() if not torch.equal(value, before[k])}
    assert changed == {"aux.3.weight", "aux.3.bias", "aux2.3.weight", "aux2.3.bias"}


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_the_callers_gradient_mode_does_not_matter(context):
    model = Net(aux=convolutions())
    with context():
        lion_dg_(model)
    assert not model.aux[2].weight.any()


def test_a_stale_cast_of_the_old_weights_is_forgotten():
    model = Net(aux=convolutions())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images())["aux"][0].any()
        lion_dg_(model)
        assert not model(images())["aux"][0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_dtype_of_weights_is_verified(dtype):
    assert lion_dg_report(lion_dg_(Net(aux=convolutions()).to(dtype))).heads[0].zeroed


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compiled"])
@pytest.mark.parametrize("heads", [None, "aux", "module.aux"])
def test_wrappers_are_seen_through(wrap, heads):
    model = Net(aux=convolutions())
    wrapped = wrap(model)
    assert lion_dg_(wrapped, heads) is wrapped
    assert not model.aux[2].weight.any()
    assert model.aux[0].weight.any()


def test_a_compiled_head_is_run_uncompiled():
    model = Net(aux1=torch.compile(convolutions(), backend=no_backend), aux2=convolutions())
    model.aux2.compile(backend=no_backend)
    lion_dg_(model)
    assert not model.aux1._orig_mod[2].weight.any()
    assert not model.aux2[2].weight.any()


def no_backend(graph, inputs):
    raise AssertionError("compiled")
