"""Training by the persistent backbone, emulated, is training by the modules but for rounding."""

import contextlib
import copy
import re
from types import SimpleNamespace

import emulator
import pytest
import torch
from dense_inputs import arguments, layers_of, norms_of, odd_densenet
from emulator.backbone import H100, How, emulate

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch
from lion_fast.data.plan import BatchPlan
from lion_fast.errors import UserError
from lion_fast.init import initialize_
from lion_fast.kernels.dense.plan import Plan
from lion_fast.kernels.persistent import (
    compile as compilation,
    op,
    persistent_backbone,
    persistent_obstacle,
)
from lion_fast.kernels.persistent.plan import fitted
from lion_fast.models import densenet_ds
from lion_fast.training.machine.resolve import remarks, resolve
from lion_fast.training.step.ahead import prepare_kernels
from lion_fast.training.step.step import TrainStep

LAYERS = 2
CHECKED = How(is_checked=True)
STEPS, BATCH_SIZE = 3, 2


def config_of(backbone, precision="bf16", **settings):
    return TrainConfig(
        backbone=backbone, device="cpu", engine="eager", block_layers=LAYERS, precision=precision,
        batch_size=BATCH_SIZE, **settings,
    )  # fmt: skip


def make_step(backbone, precision="bf16"):
    config = config_of(backbone, precision)
    model = densenet_ds(4, block_layers=LAYERS)
    initialize_(model, "he", generator=torch.Generator().manual_seed(3))
    return TrainStep(model.to(memory_format=torch.channels_last), config, resolve(config))


def take(step, dtype=torch.bfloat16):
    """Return the loss of every step, on batches that can be learnt."""
    generator = torch.Generator().manual_seed(4)
    losses = []
    for _ in range(STEPS):
        labels = torch.randint(4, (BATCH_SIZE,), generator=generator)
        images = torch.randn(BATCH_SIZE, 3, 16, 16, generator=generator)
        images[:, 0] += labels[:, None, None]
        row = torch.zeros(7)
        step(Batch(images.to(dtype).contiguous(memory_format=torch.channels_last), labels), row)
        losses.append(row[0].item())
    return torch.tensor(losses)


@emulator.needs_compiler
def test_three_steps_train_as_the_modules_do(monkeypatch):
    launched = emulate(monkeypatch, CHECKED)
    ours, modules, exact = (
        make_step("persistent"),
        make_step("modules"),
        make_step("modules", "fp32"),
    )
    losses, stock, right = take(ours), take(modules), take(exact, torch.float32)
    assert launched.count("dense_persistent_forward") == STEPS
    assert launched.count("dense_persistent_backward") == STEPS
    # Of the same size as what rounding to bf16 does to the modules' own losses.
    assert (losses - right).abs().max() <= 2 * (stock - right).abs().max() + 0.02
    assert losses[0] == pytest.approx(stock[0].item(), abs=0.02)
    state, theirs = ours.model.state_dict(), modules.model.state_dict()
    for name, value in state.items():
        if "running" in name:
            torch.testing.assert_close(value, theirs[name], rtol=0.1, atol=0.05)
        if "num_batches" in name:
            assert value == STEPS
    modules.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert torch.isfinite(take(modules)).all()


@emulator.needs_compiler
def test_gradients_are_views_of_one_tensor_in_the_weights_format(monkeypatch):
    emulate(monkeypatch, CHECKED)
    model = odd_densenet(block_layers=LAYERS).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 16, 16).bfloat16()
    pooled = persistent_backbone(images, *arguments(model), **layers_of(model))
    sum(tap.sum() for tap in pooled[:1] + pooled[2:]).backward()  # expanded, and one that is none
    parameters = list(model.backbone_parameters())
    (storage,) = {p.grad.untyped_storage().data_ptr() for p in parameters}
    assert storage == model.stem.weight.grad.data_ptr()
    assert all(p.grad.stride() == p.stride() for p in parameters)
    assert all(p.grad.isfinite().all() for p in parameters)
    # Running statistics moved from where they were, by a tenth of the way.
    assert (norms_of(model)[0].running_mean != 0).all()


@emulator.needs_compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck_passes(monkeypatch):
    emulate(monkeypatch, CHECKED)
    model = odd_densenet(block_layers=LAYERS)
    convs, gammas, betas, _, _ = arguments(model)
    images = torch.randn(2, 3, 16, 16).bfloat16().contiguous(memory_format=torch.channels_last)
    ops = torch.ops.lion_fast
    static = ("test_schema", "test_autograd_registration", "test_faketensor")
    given = (images, convs, gammas, betas, LAYERS, 1e-5)
    torch.library.opcheck(ops.persistent_backbone, given, test_utils=static)
    saved = [t.detach() for t in ops.persistent_backbone(*given)]
    d_pooled = [torch.randn_like(p) for p in saved[:3]]
    given = (d_pooled, images, saved, 24, 8, LAYERS, 1e-5, False)
    torch.library.opcheck(ops.persistent_backbone_backward, given, test_utils=static)


@emulator.needs_compiler
def test_compiles_without_a_graph_break(monkeypatch):
    emulate(monkeypatch, CHECKED)
    images = torch.randn(2, 3, 16, 16).bfloat16()
    results = []
    for compiler in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        model = odd_densenet(block_layers=LAYERS)

        def step(images, model=model):
            taps = persistent_backbone(images, *arguments(model), **layers_of(model))
            return torch.cat(taps, 1).square().sum()

        compiler(step)(images).backward()
        results.append([p.grad for p in model.backbone_parameters()])
    assert all(map(torch.equal, *results))


PAPER = Plan(128, 32, 32, 24, 8, 6)
REFUSED = {
    "capability": (PAPER, {"capability": (7, 0)}, "compute capability 7.0: they need 8.0"),
    "dtype": (PAPER, {"dtype": torch.float32}, "maps of torch.float32: they take bfloat16"),
    "sides": (PAPER._replace(height=16), {}, "images of 16x32: they take squares of 16, 24 or 32"),
    "growth": (PAPER._replace(growth_rate=12), {}, "growth rate 12: they take 8 or 16"),
    "layers": (PAPER._replace(block_layers=13), {}, "13 layers a block: they take 1 to 12"),
    "channels": (PAPER._replace(stem_channels=352), {}, "block 1 has 400 channels: they take 384"),
    "12 layers": (
        PAPER._replace(block_layers=12), {"shared_bytes": 99 * 1024},
        "a program takes 118528 bytes of shared memory, and one of this GPU has 101376",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_run_is_refused_with_what_would_fit(case):
    plan, change, reason = case
    given = {"dtype": torch.bfloat16, **H100} | change
    assert reason in persistent_obstacle(plan, given.pop("dtype"), **given)


@pytest.mark.parametrize(
    "plan",
    [PAPER, PAPER._replace(batch=1), Plan(132, 16, 16, 24, 8, 12), Plan(128, 24, 24, 24, 8, 6),
     Plan(128, 32, 32, 24, 16, 3), Plan(64, 16, 16, 24, 16, 6)],
    ids=str,
)  # fmt: skip
def test_networks_that_fit_an_h100_are_taken_an_image_a_program(plan):
    assert persistent_obstacle(plan, torch.bfloat16, **H100) is None
    assert persistent_obstacle(plan, torch.float16, **H100) is None
    sizes = fitted(plan, processors=132, shared_bytes=H100["shared_bytes"])
    assert sizes.is_resident and sizes.programs == plan.batch


A100 = {"capability": (8, 0), "processors": 108, "shared_bytes": 163 * 1024}


@pytest.mark.parametrize(
    ("plan", "gpu", "programs"),
    [
        (PAPER._replace(batch=133), H100, 132), (PAPER._replace(batch=2048), H100, 132),
        (PAPER._replace(block_layers=12), H100, 128), (PAPER, A100, 108),
        (PAPER._replace(batch=64), A100, 64), (Plan(128, 32, 32, 24, 16, 12), A100, 108),
    ],
    ids=str,
)  # fmt: skip
def test_larger_batches_and_images_are_taken_in_turn(plan, gpu, programs):
    assert persistent_obstacle(plan, torch.bfloat16, **gpu) is None
    sizes = fitted(plan, processors=gpu["processors"], shared_bytes=gpu["shared_bytes"])
    assert not sizes.is_resident and sizes.programs == programs


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "they need a CUDA GPU, and the device is cpu"),
        ({"impl": "torch"}, "impl torch runs no kernel, and it has no other form (fused has)"),
        ({"arch": "resnet_ds"}, "it is densenet_ds's, and arch is resnet_ds"),
    ],
)
def test_persistent_says_in_one_line_why_it_cannot_run(settings, reason):
    with pytest.raises(UserError) as refusal:
        resolve(config_of("persistent", **settings))
    expected = f"backbone persistent cannot run here: {reason}; take backbone fused or modules"
    assert str(refusal.value) == expected


def test_the_op_refuses_a_cpu_without_an_emulator():
    model = odd_densenet()
    with pytest.raises(ValueError, match="cannot run here: they need a CUDA GPU"):
        persistent_backbone(torch.randn(2, 3, 16, 16), *arguments(model), **layers_of(model))


@pytest.fixture
def h100(monkeypatch):
    """Pretend that this machine has one H100."""
    properties = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, shared_memory_per_block_optin=227 * 1024
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)


def with_driver(monkeypatch, version):
    """Let the driver be of a CUDA version; skip where nothing can be compiled at all."""
    if reason := compilation.compiler_obstacle():
        pytest.skip(reason)
    from cuda.bindings import driver

    monkeypatch.setattr(driver, "cuDriverGetVersion", lambda: (0, version))
    return compilation._nvrtc_version()[0]


def test_a_driver_older_than_nvrtc_goes_on_with_fused_and_says_so_in_one_line(h100, monkeypatch):
    major = with_driver(monkeypatch, 11040)
    resolved = resolve(TrainConfig(backbone="persistent"))
    assert resolved.backbone == "fused"
    (line,) = remarks("persistent", resolved)
    expected = (
        "backbone fused: the persistent kernels do not fit this machine: the driver runs CUDA"
    )
    assert line.startswith(f"{expected} 11.4, and NVRTC is of CUDA {major}.")
    with pytest.raises(UserError, match=r"backbone fused cannot run here: growth rate 12"):
        resolve(TrainConfig(backbone="persistent", growth_rate=12))


def test_a_driver_that_fits_is_taken_with_no_remark(h100, monkeypatch):
    major = with_driver(monkeypatch, 12080)
    monkeypatch.setattr(compilation, "_nvrtc_version", lambda: (12, 8))
    assert major >= 12
    resolved = resolve(TrainConfig(backbone="persistent"))
    assert resolved.backbone == "persistent" and remarks("persistent", resolved) == []


def test_a_gpu_that_nvrtc_does_not_know_is_named(monkeypatch):
    with_driver(monkeypatch, 99000)
    assert re.match(
        r"NVRTC \d+\.\d+ compiles nothing for sm_35", compilation.compiler_obstacle((3, 5))
    )


def test_a_cold_process_says_that_it_compiles_and_a_warm_one_nothing(h100, monkeypatch):
    on_disk, said = set(), []
    monkeypatch.setattr(op, "missing", lambda *job: [] if str(job) in on_disk else ["forward.cu"])
    monkeypatch.setattr(op, "compiled", lambda *job: on_disk.add(str(job)))

    @contextlib.contextmanager
    def stage(text):
        said.append(text)
        yield

    step = SimpleNamespace(model=densenet_ds(10), sharing=None)
    loader = SimpleNamespace(plan=BatchPlan(1000, 128, 0))
    resolved = SimpleNamespace(
        device=torch.device("cuda"), impl="triton", backbone="persistent",
        compute_dtype=torch.bfloat16, modules_at=(),
    )  # fmt: skip
    for _ in range(2):
        assert prepare_kernels(step, loader, resolved, (32, 32), [None], stage) == []
    assert said == ["compiling the persistent backbone's kernels"]
    assert len(on_disk) == 1
