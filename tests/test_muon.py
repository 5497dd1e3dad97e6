"""muon_update_ against the textbook's Muon in fp64."""

import math
from functools import partial

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings, strategies as st
from triton.runtime import interpreter

from lion_fast.kernels import muon_update_, muon_update_ref_
from lion_fast.kernels.muon.halves import _halves, _product
from lion_fast.kernels.muon.launch import MAX_ROWS, muon_launch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
IMPLS = ("torch", "triton")
DENSE_LAYERS = [(8, channels, 3, 3) for channels in (24, 36, 42, 82)]
SHAPES = [*DENSE_LAYERS, (24, 3, 3, 3), (36, 72, 1, 1), (64, 3, 3, 3), (64, 8, 3, 3), (5, 7)]
LARGE = [(65, 9, 3, 3), (80, 66), (66, 80)]


def make(shapes, seed=0):
    """Weights, gradients and averages."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes] for _ in range(3)
    ]


def copied(tensors, dtype=None):
    return [[t.clone().to(dtype or t.dtype) for t in group] for group in tensors]


def rate(value=0.02, dtype=torch.float32):
    return torch.tensor(value, dtype=dtype, device=DEVICE)


def truth(tensors, lr=0.02, **options):
    exact = copied(tensors, torch.float64)
    muon_update_ref_(*exact, rate(lr, torch.float64), **options)
    return exact


def assert_close(ours, exact, lr, slack):
    """Averages to a rounding; X_5 = step / lr to `slack`, beside the rounding of the weight."""
    for weight, expected in zip(ours[0], exact[0], strict=True):
        rounding = torch.finfo(weight.dtype).eps * (1 + expected.abs().max())
        assert (weight - expected).abs().max() <= lr * slack + rounding
    for average, expected in zip(ours[2], exact[2], strict=True):
        rounding = torch.finfo(average.dtype).eps * expected.abs().max()
        assert (average - expected).abs().max() <= 2 * rounding


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("momentum, weight_decay", [(0.95, 0.0), (0.0, 0.1)])
def test_equals_the_textbook_in_fp64(impl, momentum, weight_decay):
    tensors = make([*SHAPES, *LARGE])
    options = {"momentum": momentum, "weight_decay": weight_decay}
    exact = truth(tensors, lr=1.0, **options)
    muon_update_(*tensors, rate(1.0), impl=impl, **options)
    assert_close(tensors, exact, 1.0, slack=2e-5)


@pytest.mark.parametrize("tensor_cores", [False, True])
def test_both_ways_through_the_kernel_give_the_textbook_s_numbers(tensor_cores):
    matrices = make([(8, 216), (24, 27), (42, 84), (64, 9), (9, 64)])
    exact = truth(matrices, lr=1.0)
    muon_launch(*matrices, rate(1.0), 0.95, 0.0, tensor_cores).run(device_of=matrices[0][0])
    assert_close(matrices, exact, 1.0, slack=2e-5)


@pytest.mark.parametrize("size", [1e-7, 1e10])
def test_gradients_of_any_size_are_orthogonalised_alike(size):
    tensors = make([(8, 24, 3, 3), (42, 84, 1, 1)])
    for tensor in tensors[1] + tensors[2]:
        tensor.mul_(size)
    exact = truth(tensors, lr=1.0)
    muon_update_(*tensors, rate(1.0), impl="triton")
    assert_close(tensors, exact, 1.0, slack=2e-5)


@triton.jit
def product_kernel(a, b, out, N: tl.constexpr, SCALE: tl.constexpr):
    n = tl.arange(0, N)
    cell = n[:, None] * N + n[None, :]
    a_high, a_low = _halves(tl.load(a + cell), SCALE)
    b_high, b_low = _halves(tl.load(b + cell), SCALE)
    product = _product(a_high, a_low, b_high, b_low)
    tl.store(out + cell, product * (1.0 / (SCALE * SCALE)))


@pytest.mark.parametrize("smallest", [1.0, 1e-3])
def test_a_product_of_halves_has_the_error_of_fp32(smallest):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 64, 64, generator=generator).to(DEVICE)
    a *= torch.logspace(math.log10(smallest), 0, 64, device=DEVICE)[:, None]
    out = torch.empty_like(a)
    product_kernel[(1,)](a, b, out, 64, 64.0, num_warps=4)
    exact = a.double() @ b.double()
    size = a.double().abs() @ b.double().abs()
    assert ((out - exact).abs() <= 2**-22 * size + 64 * 2**-31 * b.abs().max()).all()


def test_in_fp64_the_gram_matrix_gives_the_textbook_s_numbers():
    tensors = copied(make([*SHAPES, *LARGE]), torch.float64)
    exact = truth(tensors, lr=1.0)
    muon_update_(*tensors, rate(1.0, torch.float64))
    assert_close(tensors, exact, 1.0, slack=1e-10)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_of_low_rank_stay_within_a_thousandth(impl):
    tensors = make([(8, 24, 3, 3), (24, 27), (64, 200)])
    for grad, average in zip(tensors[1], tensors[2], strict=True):
        rows = grad.flatten(1)
        rows[2:] = rows[:1] * 1e-3 + 1e-5 * rows[2:]
        average.zero_()
    exact = truth(tensors, lr=1.0)
    muon_update_(*tensors, rate(1.0), impl=impl)
    assert_close(tensors, exact, 1.0, slack=1e-3)


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_takes_any_shape(impl, shapes, seed):
    tensors = make(shapes, seed)
    exact = truth(tensors, lr=1.0)
    muon_update_(*tensors, rate(1.0), impl=impl)
    assert_close(tensors, exact, 1.0, slack=1e-3)


def test_the_textbook_makes_singular_values_about_one():
    tensors = make([(16, 100)])
    tensors[0][0].zero_()
    muon_update_ref_(*tensors, rate(1.0))
    singular = torch.linalg.svdvals(tensors[0][0])
    assert 0.6 < singular.min() and singular.max() < 1.3


def test_tall_weights_step_further_by_the_root_of_their_ratio():
    tensors = make([(64, 16)])
    tensors[0][0].zero_()
    muon_update_(*tensors, rate(1.0))
    singular = torch.linalg.svdvals(tensors[0][0])
    assert 2 * 0.6 < singular.min() and singular.max() < 2 * 1.3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_is_pytorch_s_muon_but_for_its_bfloat16():
    tensors = make([(24, 200), (200, 24)])
    theirs = [torch.nn.Parameter(w.clone()) for w in tensors[0]]
    optimizer = torch.optim.Muon(theirs, lr=0.5, weight_decay=0.1, momentum=0.95, nesterov=True)
    for average in tensors[2]:
        average.zero_()
    for _ in range(3):
        for parameter, grad in zip(theirs, tensors[1], strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
        muon_update_(*tensors, rate(0.5), weight_decay=0.1)
    for weight, parameter in zip(tensors[0], theirs, strict=True):
        assert (weight - parameter).norm() <= 0.02 * (weight.norm() + 1)


@pytest.mark.parametrize("impl", IMPLS)
def test_channels_last_weights_take_the_same_step(impl):
    tensors = make(SHAPES[:6])
    exact = truth(tensors)
    last = [[t.contiguous(memory_format=torch.channels_last) for t in group] for group in tensors]
    last[1] = tensors[1]  # gradients may lie otherwise: they are copied
    muon_update_(*last, rate(), impl=impl)
    assert_close(last, exact, 0.02, slack=2e-5)
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in last[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_expanded_and_sliced_gradients_are_read_as_they_are(impl):
    tensors = make([(8, 24, 3, 3), (12, 40)])
    tensors[1] = [
        tensors[1][0][:, :1].expand(8, 24, 3, 3),
        torch.cat([tensors[1][1]] * 2, 1)[:, ::2],
    ]
    exact = truth(tensors)
    muon_update_(*tensors, rate(), impl=impl)
    assert_close(tensors, exact, 0.02, slack=1e-3)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_gradient_of_zero_only_decays(impl):
    tensors = make([(8, 24, 3, 3)])
    before = tensors[0][0].clone()
    for tensor in (tensors[1][0], tensors[2][0]):
        tensor.zero_()
    muon_update_(*tensors, rate(0.5), weight_decay=0.1, impl=impl)
    torch.testing.assert_close(tensors[0][0], before * 0.95)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_same_step_gives_the_same_bits(impl):
    first, second = make(SHAPES), make(SHAPES)
    for tensors in (first, second):
        muon_update_(*tensors, rate(), impl=impl)
    assert all(map(torch.equal, first[0] + first[2], second[0] + second[2]))


def test_parameters_are_updated_and_the_rate_is_read_where_it_lies():
    tensors = make([(8, 24, 3, 3)])
    weight = torch.nn.Parameter(tensors[0][0])
    before, lr = weight.detach().clone(), rate(0.0)
    for impl in IMPLS:
        muon_update_([weight], *tensors[1:], lr, impl=impl)
        assert torch.equal(weight, before)
        lr.fill_(0.1)
        muon_update_([weight], *tensors[1:], lr, impl=impl)
        assert not torch.equal(weight, before)
        weight.detach().copy_(before)
        lr.zero_()


@pytest.mark.skipif(CUDA, reason="watches Triton's interpreter, which a machine with a GPU skips")
def test_all_small_weights_are_one_launch(monkeypatch):
    grids = []
    run = interpreter.GridExecutor.__call__

    def recorded(self, *args, **kwargs):
        grids.append(self.grid)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", recorded)
    shapes = [*SHAPES, *LARGE]
    muon_update_(*make(shapes), rate(), impl="triton")
    small = [shape for shape in shapes if min(shape[0], math.prod(shape[1:])) <= MAX_ROWS]
    assert grids == [(len(small),)] and 1 < len(small) < len(shapes)


@pytest.mark.parametrize("impl", IMPLS)
def test_compiles_without_a_graph_break(impl):
    tensors, lr = make(SHAPES[:3]), rate()
    eager = copied(tensors)
    muon_update_(*eager, lr, impl=impl)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(weights, grads, averages, lr):
        muon_update_(weights, grads, averages, lr, impl=impl)

    step(*tensors, lr)
    for weight, expected in zip(tensors[0], eager[0], strict=True):
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("impl", [*IMPLS, "reference"])
def test_autocast_changes_no_bit(impl):
    step = muon_update_ref_ if impl == "reference" else partial(muon_update_, impl=impl)
    inside, outside = make(SHAPES), make(SHAPES)
    step(*outside, rate())
    with torch.autocast(DEVICE.type, torch.bfloat16):
        step(*inside, rate())
    assert all(map(torch.equal, inside[0] + inside[2], outside[0] + outside[2]))


def test_opcheck_passes():
    matrices = make([(8, 20), (24, 9)])
    torch.library.opcheck(torch.ops.lion_fast.muon_update_, (*matrices, rate(), 0.95, 0.1))


@pytest.mark.parametrize("impl", [*IMPLS, "reference"])
def test_names_what_does_not_fit(impl):
    weights, grads, averages = make([(8, 24, 3, 3), (5, 7)])

    def error(weights=weights, grads=grads, averages=averages, lr=None, **options):
        step = muon_update_ref_ if impl == "reference" else muon_update_
        if impl != "reference":
            options["impl"] = impl
        with pytest.raises(ValueError) as caught:
            step(weights, grads, averages, rate() if lr is None else lr, **options)
        (line,) = str(caught.value).splitlines()
        return line

    assert "2 weights, 1 grads, 2 averages" in error(grads=grads[:1])
    assert "lr is 0.02: give a 0-D" in error(lr=0.02)
    assert "momentum is 1.0" in error(momentum=1.0)
    assert "weight_decay is -0.1" in error(weight_decay=-0.1)
    assert "weights[1] is (7,)" in error(weights=[weights[0], weights[1][0]])
    assert "weights[1] is (5, 7) torch.float16" in error(weights=[weights[0], weights[1].half()])
    assert "weights[1] is (5, 4)" in error(weights=[weights[0], weights[1][:, ::2]])
    assert "grads[0] is (8, 24, 3, 3) torch.float64" in error(grads=[grads[0].double(), grads[1]])
    last = averages[0].contiguous(memory_format=torch.channels_last)
    assert "averages[0] has another memory layout" in error(averages=[last, averages[1]])
    assert "several devices" in error(lr=rate().to("meta"))
