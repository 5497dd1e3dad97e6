"""Training with the fused backbone is training with the modules, but for rounding."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from dense_inputs import norms_of, odd_densenet

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch
from lion_fast.errors import UserError
from lion_fast.init import initialize_
from lion_fast.models import densenet_ds
from lion_fast.training import evaluate, train
from lion_fast.training.machine.doctor import doctor
from lion_fast.training.machine.resolve import fit_backbone, remarks, resolve
from lion_fast.training.step.step import TrainStep

CUDA = torch.cuda.is_available()
NUM_STEPS, BATCH_SIZE = 20, 4


def config_of(backbone, **settings):
    given = {"device": "cpu", "engine": "eager", "block_layers": 1, "batch_size": BATCH_SIZE}
    return TrainConfig(backbone=backbone, **given | settings)


def make_step(backbone, impl="torch", init="he", **settings):
    """Return a step of digits' size, initialised alike for every backbone."""
    config = config_of(backbone, impl=impl, **settings)
    model = densenet_ds(4, block_layers=1)
    initialize_(model, init, generator=torch.Generator().manual_seed(3))
    model.to(memory_format=torch.channels_last)
    return TrainStep(model, config, resolve(config))


def batches(permuted=None):
    """Yield learnable batches; `permuted` orders the images of each in another way."""
    generator = torch.Generator().manual_seed(4)
    order = torch.arange(BATCH_SIZE)
    if permuted is not None:
        order = torch.randperm(BATCH_SIZE, generator=torch.Generator().manual_seed(permuted))
    for _ in range(NUM_STEPS):
        labels = torch.randint(4, (BATCH_SIZE,), generator=generator)
        images = torch.randn(BATCH_SIZE, 3, 16, 16, generator=generator)
        images[:, 0] += labels[:, None, None]
        images = images[order].contiguous(memory_format=torch.channels_last)
        yield Batch(images, labels[order])


def take(step, these):
    """Return the loss of every step."""
    losses = []
    for batch in these:
        row = torch.zeros(7)
        step(batch, row)
        losses.append(row[0].item())
    return torch.tensor(losses)


@pytest.fixture(scope="module")
def by_modules():
    """Losses of the modules, and how far reordering the images of a batch moves them."""
    losses = take(make_step("modules"), batches())
    reordered = [take(make_step("modules"), batches(permuted)) for permuted in range(4)]
    return losses, max((other - losses).abs().max().item() for other in reordered)


def test_losses_stay_as_near_to_the_modules_as_their_own_reordering_does(by_modules):
    losses, spread = by_modules
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()
    assert 0 < spread < 1e-3
    assert (take(make_step("fused"), batches()) - losses).abs().max() <= spread


@pytest.mark.slow
@pytest.mark.skipif(CUDA, reason="runs the kernels in Triton's interpreter, on a CPU")
def test_kernels_train_alike_and_the_modules_go_on_where_they_stopped(by_modules):
    losses, spread = by_modules
    first, second = make_step("fused", "triton"), make_step("modules")
    these = list(batches())
    # Few of them: the interpreter takes seconds a step.
    assert (take(first, these[:3]) - losses[:3]).abs().max() <= spread
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert (take(second, these[3:]) - losses[3:]).abs().max() <= spread
    assert (take(first, these[3:4]) - losses[3:4]).abs().max() <= spread


def test_a_state_goes_from_one_backbone_to_the_other_and_back(by_modules):
    losses, spread = by_modules
    step, these = make_step("modules"), list(batches())
    found = [take(step, these[:3])]
    for i, backbone in enumerate(("fused", "modules", "fused")):
        state, step = copy.deepcopy(step.state_dict()), make_step(backbone, init="xavier")
        assert list(state["model"]) == list(step.state_dict()["model"])
        step.load_state_dict(state)
        found.append(take(step, these[3 * i + 3 : 3 * i + 6]))
    assert (torch.cat(found) - losses[:12]).abs().max() <= spread
    assert {int(norm.num_batches_tracked) for norm in norms_of(step.model)} == {12}


@pytest.mark.parametrize(
    "impl",
    [
        "torch",
        pytest.param(
            "triton",
            marks=[pytest.mark.slow, pytest.mark.skipif(CUDA, reason="interpreter on a CPU")],
        ),
    ],
)
def test_zeroed_heads_leave_the_fused_backbones_gradient_exactly_zero(impl, poisoned_memory):
    model = make_step("fused", init="lion_dg").model
    batch = next(batches())
    pooled = model.pooled_taps(batch.images[:2], impl=impl)
    losses = model.loss_from_pooled(pooled, batch.labels[:2], 0.3, impl="torch")
    assert (losses.per_head > 0).all()
    *d_aux, d_main = torch.autograd.grad(losses.loss, pooled, retain_graph=True)
    assert (d_main != 0).any()
    d_pooled = [*d_aux, torch.zeros_like(d_main)]
    for gradient in torch.autograd.grad(pooled, list(model.backbone_parameters()), d_pooled):
        assert (gradient == 0).all()


def test_pooled_taps_count_batches_as_the_modules_do_and_evaluate_through_them():
    model, images = odd_densenet(), torch.randn(2, 3, 16, 16)
    model.pooled_taps(images)
    assert {int(norm.num_batches_tracked) for norm in norms_of(model)} == {1}
    model.eval()
    pooled = model.pooled_taps(images)
    for found, tap in zip(pooled, model.taps(images), strict=True):
        torch.testing.assert_close(found, tap.mean((2, 3)))
    assert {int(norm.num_batches_tracked) for norm in norms_of(model)} == {1}


def frozen(norm):
    norm.eval()


def other_momentum(norm):
    norm.momentum = 0.5


def cumulative(norm):
    norm.momentum = None


@pytest.mark.parametrize("change", [frozen, other_momentum, cumulative])
def test_norms_that_differ_are_refused(change):
    model = odd_densenet()
    change(model.norm)
    with pytest.raises(UserError, match="differ in mode, momentum or eps: take backbone modules"):
        model.pooled_taps(torch.randn(2, 3, 16, 16))


def test_a_run_trains_fused_is_evaluated_and_resumes(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")  # where no kernel runs, the modules evaluate
    config = config_of("fused", impl="torch", out=tmp_path, max_steps=3, gradient_ratio_every=2)
    summary = train(config)
    assert summary.resolved["backbone"] == "fused"
    assert (evaluate(summary.run, device="cpu").accuracy) == summary.val_accuracy
    resumed = train(dataclasses.replace(config, max_steps=4), resume=summary.run)
    assert resumed.steps == 4


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that this machine has one GPU of the given compute capability."""

    def pretend(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        properties = SimpleNamespace(major=capability[0], minor=capability[1])
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)

    return pretend


@pytest.mark.parametrize(
    ("capability", "settings", "reason"),
    [
        ((7, 0), {}, "compute capability 7.0"),
        ((9, 0), {"precision": "fp32"}, "float32"),
        ((9, 0), {"growth_rate": 12}, "growth rate 12"),
        ((9, 0), {"arch": "resnet_ds"}, "it is densenet_ds's, and arch is resnet_ds"),
    ],
)
def test_fused_says_in_one_line_why_it_cannot_run(gpu, capability, settings, reason):
    gpu(capability)
    with pytest.raises(UserError, match="backbone fused cannot run here") as refusal:
        resolve(TrainConfig(backbone="fused", **settings))
    assert reason in str(refusal.value)
    assert str(refusal.value).endswith("take backbone modules")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_fused_is_resolved_on_gpus_that_its_kernels_are_for(gpu, capability):
    gpu(capability)
    resolved = resolve(TrainConfig(backbone="fused"))
    assert (resolved.backbone, resolved.reasons["backbone"]) == ("fused", "asked for")


def test_fused_without_a_gpu_names_the_reference(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match=r"it needs a CUDA device.*impl torch runs its reference"):
        resolve(TrainConfig(backbone="fused", device="cpu"))
    assert resolve(config_of("fused", impl="torch")).backbone == "fused"


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_own_networks_are_refused_before_a_run_folder_is_made(impl, tmp_path):
    from test_own import Plain

    config = config_of("fused", impl=impl, out=tmp_path / "runs")
    with pytest.raises(UserError, match="densenet_ds's, and the model is Plain"):
        train(config, model=lambda num_classes, size: Plain(num_classes))
    assert not (tmp_path / "runs").exists()


def test_images_that_the_kernels_do_not_take_are_refused(stripes, tmp_path):
    config = config_of("fused", impl="triton", dataset=str(stripes), out=tmp_path / "runs")
    with pytest.raises(UserError, match=r"images of 8x8: they take sides.*take backbone modules"):
        train(config)


def test_auto_takes_the_fused_backbone_where_it_was_measured_and_says_what_was_found(gpu):
    gpu((9, 0))
    resolved = resolve(TrainConfig())
    assert resolved.backbone == "fused"
    found = "1.21 ms a step with it, 2.54 with the modules, measured on an H200"
    assert remarks("auto", resolved) == [f"backbone fused: {found}"]
    assert remarks("modules", resolved) == []


@pytest.mark.parametrize(
    ("capability", "settings", "reason"),
    [
        ((8, 0), {}, "not measured on capability 8.0"),
        ((10, 0), {}, "not measured on capability 10.0"),
        ((9, 0), {"arch": "resnet_ds"}, "the fused backbone is densenet_ds's"),
        ((9, 0), {"engine": "eager"}, "not measured with engine eager"),
        ((9, 0), {"precision": "fp16"}, "not measured with precision fp16"),
        ((9, 0), {"impl": "torch"}, "not measured with impl torch"),
        ((9, 0), {"growth_rate": 12}, "cannot run: growth rate 12"),
        ((9, 0), {"device": "cpu"}, "its kernels need one"),
    ],
)
def test_auto_takes_the_modules_elsewhere_and_says_why(gpu, capability, settings, reason):
    gpu(capability)
    resolved = resolve(TrainConfig(**settings))
    assert resolved.backbone == "modules"
    assert reason in resolved.reasons["backbone"]


def test_auto_takes_the_modules_for_what_the_kernels_are_not_for(gpu):
    from test_own import Plain

    gpu((9, 0))
    config = TrainConfig()
    resolved = resolve(config)
    ours, own = densenet_ds(), Plain(10)
    assert fit_backbone("auto", resolved, ours, (32, 32), 128) is resolved
    for model, side, shares_norms, reason in (
        (ours, 28, False, "images of 28x28"),
        (own, 32, False, "the model is Plain"),
        (ours, 32, True, "shared among processes"),
    ):
        fitted = fit_backbone("auto", resolved, model, (side, side), 128, shares_norms=shares_norms)
        assert fitted.backbone == "modules"
        assert reason in fitted.reasons["backbone"] and reason in remarks("auto", fitted)[0]
    with pytest.raises(UserError, match=r"images of 28x28.*take backbone modules"):
        fit_backbone("fused", resolved, ours, (28, 28), 128)


def test_smaller_images_that_the_kernels_have_no_plan_for_train_by_the_modules(gpu):
    gpu((9, 0))
    for asked in ("auto", "fused"):
        resolved = resolve(TrainConfig(backbone=asked))
        fitted = fit_backbone(asked, resolved, densenet_ds(), (32, 32), 128, sides=[16, 24])
        assert fitted.backbone == "fused" and list(fitted.modules_at) == [24]
        assert (
            "backbone modules at 24 pixels: images of 24x24: they take sides of 16, 32 or 64"
            in (remarks(asked, fitted))
        )


def test_doctor_says_which_backbone_auto_takes_and_why():
    (line,) = [line for line in doctor() if line.strip().startswith("backbone")]
    assert line.split()[:2] == ["backbone", resolve(TrainConfig()).backbone]
    assert resolve(TrainConfig()).reasons["backbone"] in line


def test_the_op_and_the_modules_share_one_order_of_parameters():
    convs, norms = densenet_ds(block_layers=2).in_forward_order()
    assert [conv.out_channels for conv in convs] == [24, 8, 8, 20, 8, 8, 18, 8, 8]
    assert [norm.num_features for norm in norms] == [24, 32, 40, 20, 28, 36, 18, 26, 34]
