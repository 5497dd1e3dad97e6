"""dense_backbone's kernels against the network's own modules, in Triton's interpreter."""

import statistics

import pytest
import torch
import triton
import triton.language as tl
from dense_runs import (
    DEVICE,
    Setting,
    kernels_on,
    kernels_run,
    make_d_pooled,
    make_images,
    make_model,
    modules_run,
    parameters_of,
    relative_errors,
    run_kernels,
    scaled_errors,
)

from lion_fast.kernels.dense import plan
from lion_fast.kernels.dense.statistics import _statistics

interpreted = pytest.mark.skipif(
    DEVICE.type == "cuda", reason="needs Triton's interpreter: on a GPU maps are two bytes wide"
)
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: tensor cores, at the sizes of a run"
)
pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings("ignore:Deterministic behavior was enabled"),
]

SMALL = Setting()
TINY = Setting(batch=1, stem_channels=8)
OF_A_RUN = Setting(batch=128, height=32, width=32, block_layers=6, channels_last=True)
SETTINGS = {
    "one layer": SMALL,
    "two layers, padded stem, channels_last": Setting(
        stem_channels=20, block_layers=2, channels_last=True
    ),
    "growth rate 16, odd batch": Setting(batch=1, growth_rate=16, stem_channels=40),
    "wide images": Setting(batch=1, width=64, stem_channels=8),
}
# Orders of sums differ and norms pass rounding on: eight units in the last place.
SLACK = 8 * torch.finfo(torch.float32).eps


@interpreted
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_taps_and_every_gradient_are_as_exact_as_torch(setting):
    truth = modules_run(setting, torch.float64)
    stock = modules_run(setting, torch.float32)
    ours = kernels_run(setting)
    for value, reference, exact in (
        (ours.pooled, stock.pooled, truth.pooled),
        (ours.grads, stock.grads, truth.grads),
    ):
        errors, allowed = scaled_errors(value, exact), scaled_errors(reference, exact)
        assert all(e <= a + SLACK for e, a in zip(errors, allowed, strict=True)), (errors, allowed)


@interpreted
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_running_statistics_move_as_those_of_batch_norm(setting):
    truth = modules_run(setting, torch.float64)
    for value, exact in zip(kernels_run(setting).running, truth.running, strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)


@interpreted
def test_programs_of_several_tiles_are_as_exact(monkeypatch):
    monkeypatch.setattr(plan, "_MAX_PROGRAMS", (1, 1, 1))
    monkeypatch.setattr(plan, "_WEIGHT_PROGRAMS", 2)
    block = plan.Plan(2, 16, 16, 24, 8, 1).blocks[0]
    assert block.num_tiles == 4 and block.programs == 1 and block.walk_rows == 16
    truth, alone, ours = modules_run(SMALL, torch.float64), kernels_run(SMALL), run_kernels(SMALL)
    for name in ("pooled", "grads", "running"):
        exact = getattr(truth, name)
        errors = scaled_errors(getattr(ours, name), exact)
        allowed = scaled_errors(getattr(alone, name), exact)
        assert all(e <= a + SLACK for e, a in zip(errors, allowed, strict=True)), name


def test_fp16_maps_lose_no_more_than_autocast():
    setting = Setting(dtype=torch.float16)
    truth = modules_run(setting, torch.float64)
    stock = relative_errors(modules_run(setting, torch.float16).grads, truth.grads)
    ours = relative_errors(kernels_run(setting).grads, truth.grads)
    # Two ways to round the same maps: equal on average, 1.2 what a few images leave to chance.
    assert max(ours) <= 1.2 * max(stock) and statistics.median(ours) <= statistics.median(stock)
    assert max(relative_errors(kernels_run(setting).pooled, truth.pooled)) < 2e-3
    assert all(g.dtype == torch.float32 for g in kernels_run(setting).grads)


@interpreted
def test_the_same_inputs_give_the_same_bits():
    first, second = kernels_run(SMALL), run_kernels(SMALL)
    for a, b in zip(first, second, strict=True):
        assert all(map(torch.equal, a, b))


@interpreted
def test_a_tap_without_gradient_adds_exactly_nothing():
    model = make_model(TINY)
    pooled = kernels_on(model, make_images(TINY), TINY.block_layers)
    parameters = parameters_of(model)
    main = make_d_pooled(pooled)[-1]
    alone = torch.autograd.grad(pooled[-1], parameters.learned, main, retain_graph=True)
    zeros = [torch.zeros_like(p) for p in pooled[:-1]]
    beside = torch.autograd.grad(pooled, parameters.learned, [*zeros, main], retain_graph=True)
    assert all(map(torch.equal, alone, beside))
    # The first tap alone, through a sum, whose gradient is expanded: nothing past block 1 moves.
    first = torch.autograd.grad(pooled[0].sum(), parameters.learned)
    by_name = [first[:6], first[6:12], first[12:]]
    for grads in by_name:
        moved = [bool(g.any()) for g in grads]
        # Convolutions are stem, layer, transition, ...; norms layer, transition, layer, ...
        expected = [True, True, *[False] * 4] if grads is by_name[0] else [True, *[False] * 5]
        assert moved == expected


@interpreted
def test_gradients_are_views_of_one_tensor_in_the_weights_format_and_become_grad_uncopied():
    setting = Setting(batch=1, stem_channels=8, channels_last=True)
    model = make_model(setting)
    images = make_images(setting).contiguous(memory_format=torch.channels_last).requires_grad_()
    sum(tap.sum() for tap in kernels_on(model, images, setting.block_layers)).backward()
    parameters = parameters_of(model)
    (storage,) = {p.grad.untyped_storage().data_ptr() for p in parameters.learned}
    size = sum(p.numel() for p in parameters.learned)
    assert parameters.convs[0].grad.untyped_storage().nbytes() == 4 * size
    assert storage == parameters.convs[0].grad.data_ptr()
    assert all(p.grad.stride() == p.stride() for p in parameters.learned)
    assert images.grad is None


@interpreted
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck_passes():
    p = parameters_of(make_model(TINY))
    images = make_images(TINY).contiguous(memory_format=torch.channels_last)
    arguments = (images, p.convs, p.gammas, p.betas, 1, 1e-5)
    ops = torch.ops.lion_fast
    # Not with symbolic sizes: a batch's tiles are cut beforehand.
    static = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.dense_backbone, arguments, test_utils=static)
    saved = [t.detach() for t in ops.dense_backbone(*arguments)]
    sizes = (1, 16, 16, 8, 8, 1)
    d_pooled = make_d_pooled(saved[:3])
    arguments = (d_pooled, images, saved, *sizes[3:], 1e-5, False)
    torch.library.opcheck(ops.dense_backbone_backward, arguments, test_utils=static)
    arguments = (p.running_means, p.running_vars, saved[4], list(sizes), 0.1)
    torch.library.opcheck(ops.dense_running_statistics_, arguments, test_utils=static)


@interpreted
def test_compiles_without_a_graph_break():
    def step(images):
        return torch.cat(kernels_on(model, images, TINY.block_layers), 1).square().sum()

    results = []
    for compiler in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        model = make_model(TINY)
        compiler(step)(make_images(TINY)).backward()
        parameters = parameters_of(model)
        results.append([*(p.grad for p in parameters.learned), *parameters.running_vars])
    assert all(map(torch.equal, *results))


@triton.jit
def _combining_kernel(statistics, partials, out, PARTS: tl.constexpr, EACH: tl.constexpr):
    c = tl.arange(0, 32)
    mean, variance = _statistics(c, statistics, partials, True, 32, 20, 8, PARTS, EACH)
    tl.store(out + c, mean)
    tl.store(out + 32 + c, variance)


@pytest.mark.parametrize("parts", [1, 7, 300])
def test_statistics_keep_their_digits_where_the_mean_is_a_thousand_deviations(parts):
    values = torch.randn(parts, 64, 8, device=DEVICE, dtype=torch.float64) + 1000
    values = values.float()
    mean = values.double().mean(1)
    spread = (values.double() - mean[:, None]).square().sum(1)
    partials = torch.stack([mean, spread]).float()
    known = torch.full((2, 32), 5.0, device=DEVICE)
    known[:, 20:] = torch.nan
    out = torch.empty(2, 32, device=DEVICE)
    _combining_kernel[(1,)](known, partials, out, parts, 64)
    exact = values.double().flatten(0, 1)
    torch.testing.assert_close(out[0, 20:28].double(), exact.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        out[1, 20:28].double(), exact.var(0, unbiased=False), rtol=1e-4, atol=0
    )
    assert torch.equal(known[:, 20:28], out[:, 20:28]) and (out[:, :20] == 5.0).all()


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_at_the_sizes_of_a_run_gradients_lie_no_farther_from_fp64_than_autocast_s(dtype):
    setting = OF_A_RUN._replace(dtype=dtype)
    truth, stock = modules_run(setting, torch.float64), modules_run(setting, dtype)
    ours = kernels_run(setting)
    assert max(relative_errors(ours.pooled, truth.pooled)) < 5e-3
    errors = relative_errors(ours.grads, truth.grads)
    allowed = relative_errors(stock.grads, truth.grads)
    # Two ways to round: equal on average, and for the worst of 61 parameters the chance of one.
    assert statistics.median(errors) <= statistics.median(allowed)
    assert max(errors) <= 1.1 * max(allowed)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_beside_a_busy_stream_forty_runs_give_the_same_bits(dtype):
    """Programs then meet in another order, which no sum may depend on."""
    setting = OF_A_RUN._replace(dtype=dtype)
    first, side = kernels_run(setting), torch.cuda.Stream()
    noise = torch.randn(4096, 4096, device=DEVICE)
    for i in range(40):
        if i >= 20:
            with torch.cuda.stream(side):
                noise @ noise
        for a, b in zip(first, run_kernels(setting), strict=True):
            assert all(map(torch.equal, a, b)), i
