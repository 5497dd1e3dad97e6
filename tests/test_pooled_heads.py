"""pooled_supervision_loss: the heads of features that their producer has pooled already."""

import pytest
import torch
from heads_inputs import DEVICE, DTYPES, THREE_HEADS, make_inputs

from lion_fast.kernels import (
    deep_supervision_loss,
    pooled_supervision_loss,
    pooled_supervision_loss_ref,
)
from lion_fast.kernels.heads.launch import empty_forward, forward_launches

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    # the fixture's price on a GPU, where the reference calls cuBLAS
    pytest.mark.filterwarnings("ignore:Deterministic behavior was enabled"),
]

NAMES = ("pooled", "weights", "biases")


def make_pooled(batch_size, num_classes, taps, dtype=torch.float32, linear_dtype=torch.float32):
    """Arguments by name, of maps that are one position large."""
    inputs = make_inputs(
        batch_size, num_classes, [(c, 1, 1) for c, *_ in taps], dtype, linear_dtype
    )
    pooled = [f.detach()[:, :, 0, 0].clone().requires_grad_() for f in inputs.features]
    arguments = vars(inputs)
    del arguments["features"]
    return {"pooled": pooled, **arguments}


def results(arguments, loss=pooled_supervision_loss, grad=1.0, **options):
    losses = loss(**arguments, **options)
    tensors = [t for name in NAMES for t in arguments[name]]
    return [*losses, *torch.autograd.grad(losses.loss * grad, tensors)]


def doubled(arguments):
    exact = {k: [t.detach().double().requires_grad_() for t in arguments[k]] for k in NAMES}
    loss_weights = arguments["loss_weights"].double()
    return {**arguments, **exact, "loss_weights": loss_weights}


def assert_exact(arguments, label_smoothing=0.0):
    """Ours against fp64: no further than the reference plus one rounding of a logit of 10."""
    truth = results(doubled(arguments), label_smoothing=label_smoothing)
    stock = results(arguments, impl="torch", label_smoothing=label_smoothing)
    ours = results(arguments, impl="triton", label_smoothing=label_smoothing)
    slack = 10 * torch.finfo(torch.float32).eps
    for value, reference, exact in zip(ours, stock, truth, strict=True):
        assert value.dtype == reference.dtype and value.shape == exact.shape
        allowed = (reference.double() - exact).abs().max()
        assert (value.double() - exact).abs().max() <= allowed + slack * (1 + exact.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "batch_size, num_classes, taps, label_smoothing",
    [(1, 2, [(1,)], 0.0), (3, 10, THREE_HEADS, 0.1), (67, 3, [(507,), (5,)], 0.0)],
)
def test_is_as_exact_as_torch(batch_size, num_classes, taps, label_smoothing, dtype):
    assert_exact(make_pooled(batch_size, num_classes, taps, dtype), label_smoothing)


def test_mixes_half_precision_features_with_fp32_weights():
    assert_exact(make_pooled(4, 10, THREE_HEADS, torch.float16, torch.float32))


LAYOUTS = {
    "columns of one buffer": lambda f: torch.cat([f, f, f], 1)[:, 2 : 2 + f.shape[1]],
    "channels apart": lambda f: f.t().contiguous().t(),
    "every second image": lambda f: f.repeat_interleave(2, 0)[::2],
    "one image for all": lambda f: f[:1].expand_as(f),
    "one channel for all": lambda f: f[:, :1].expand_as(f),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_any_layout(layout):
    arguments = make_pooled(5, 4, THREE_HEADS)
    change = LAYOUTS[layout]
    arguments["pooled"] = [change(f.detach()).requires_grad_() for f in arguments["pooled"]]
    assert_exact(arguments)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_is_deep_supervision_loss_of_means_made_elsewhere(impl):
    inputs = make_inputs(5, 10, THREE_HEADS)
    expected = deep_supervision_loss(**vars(inputs), label_smoothing=0.1, impl=impl)
    expected_gradients = torch.autograd.grad(expected.loss, inputs.differentiable)
    pooled = [f.mean((2, 3)) for f in inputs.features]
    losses = pooled_supervision_loss(
        pooled, inputs.weights, inputs.biases, inputs.target, inputs.loss_weights,
        label_smoothing=0.1, impl=impl,
    )  # fmt: skip
    torch.testing.assert_close(tuple(losses), tuple(expected))
    gradients = torch.autograd.grad(losses.loss, inputs.differentiable)
    torch.testing.assert_close(gradients, expected_gradients)


def test_one_launch_and_no_pool():
    arguments = make_pooled(5, 4, THREE_HEADS)
    out = empty_forward(arguments["weights"], arguments["target"])
    launches = forward_launches(out, *arguments.values(), label_smoothing=0.0)
    assert [launch.kernel.fn.__name__ for launch in launches] == [
        "_deep_supervision_loss_classify_kernel"
    ]


def test_columns_of_one_buffer_are_read_where_they_lie():
    buffer = torch.randn(5, 35, device=DEVICE)
    arguments = make_pooled(5, 4, THREE_HEADS)
    arguments["pooled"] = list(buffer.split([12, 14, 9], 1))
    out = empty_forward(arguments["weights"], arguments["target"])
    (launch,) = forward_launches(out, *arguments.values(), label_smoothing=0.0)
    assert [t.data_ptr() for t in launch.args["sources"]] == [
        t.data_ptr() for t in arguments["pooled"]
    ]


def test_gradients_of_fp32_features_are_fp32_columns_of_one_buffer():
    arguments = make_pooled(5, 4, THREE_HEADS, linear_dtype=torch.float16)
    losses = pooled_supervision_loss(**arguments, impl="triton")
    gradients = torch.autograd.grad(losses.loss, arguments["pooled"])
    assert {g.dtype for g in gradients} == {torch.float32}
    assert [g.shape for g in gradients] == [f.shape for f in arguments["pooled"]]
    assert {g.untyped_storage().data_ptr() for g in gradients} == {
        gradients[0].untyped_storage().data_ptr()
    }


def test_zero_heads_give_exactly_zero_pooled_gradients_and_learn_themselves():
    arguments = make_pooled(5, 10, THREE_HEADS)
    for weight in arguments["weights"][:-1]:
        weight.detach().zero_()
    _, _, _, *gradients = results(arguments, impl="triton")
    assert not gradients[0].any() and not gradients[1].any() and gradients[2].any()
    assert gradients[3].any() and gradients[4].any()


def test_takes_expanded_and_non_contiguous_gradients():
    arguments = make_pooled(3, 5, [(4,)])
    for impl in ("torch", "triton"):
        loss = pooled_supervision_loss(**arguments, impl=impl).loss
        wide = loss.expand(2, 4).t().sum() + loss
        (gradient,) = torch.autograd.grad(wide, arguments["pooled"])
        expected = results(arguments, impl="torch", grad=9.0)[3]
        torch.testing.assert_close(gradient, expected)


def test_the_producer_gets_gradients_in_whatever_layout_it_pools():
    maps = torch.randn(3, 6, 4, 4, device=DEVICE, requires_grad=True)
    linear = make_pooled(3, 5, [(2,), (4,)])

    def gradient(impl):
        arguments = {**linear, "pooled": list(maps.mean((2, 3)).split([2, 4], 1))}
        loss = pooled_supervision_loss(**arguments, impl=impl).loss
        return torch.autograd.grad(loss, maps)[0]

    torch.testing.assert_close(gradient("triton"), gradient("torch"))


def test_same_inputs_give_the_same_bits():
    arguments = make_pooled(67, 10, THREE_HEADS)
    first, second = (results(arguments, impl="triton") for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("frozen", NAMES)
def test_what_is_frozen_gets_no_gradient_and_the_rest_is_unchanged(frozen):
    arguments = make_pooled(3, 5, THREE_HEADS)
    expected = iter(results(arguments, impl="triton")[3:])
    for tensor in arguments[frozen]:
        tensor.requires_grad_(False)
    pooled_supervision_loss(**arguments, impl="triton").loss.backward()
    for name in NAMES:
        for tensor in arguments[name]:
            gradient = next(expected)
            assert tensor.grad is None if name == frozen else torch.equal(tensor.grad, gradient)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck_passes():
    arguments = make_pooled(3, 5, [(4,), (2,)])
    torch.library.opcheck(torch.ops.lion_fast.deep_supervision_loss, (*arguments.values(), 0.1))


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(backend, impl):
    maps = torch.randn(3, 6, 4, 4, device=DEVICE, requires_grad=True)
    linear = make_pooled(3, 5, [(2,), (4,)])
    linear["biases"][0] = None

    def step(maps):
        pooled = list(maps.relu().mean((2, 3)).split([2, 4], 1))
        return pooled_supervision_loss(**{**linear, "pooled": pooled}, impl=impl).loss

    expected = torch.autograd.grad(step(maps), maps)
    compiled = torch.compile(step, fullgraph=True, backend=backend)(maps)
    torch.testing.assert_close(torch.autograd.grad(compiled, maps), expected)


@pytest.mark.parametrize("impl", ["torch", "triton", "reference"])
def test_names_pooled_features_that_do_not_fit(impl):
    arguments = make_pooled(3, 5, THREE_HEADS)

    def error(**changed):
        with pytest.raises(ValueError) as caught:
            if impl == "reference":
                pooled_supervision_loss_ref(**{**arguments, **changed})
            else:
                pooled_supervision_loss(**{**arguments, **changed}, impl=impl)
        return str(caught.value)

    maps = [f[:, :, None, None] for f in arguments["pooled"]]
    assert "pooled[0] is (3, 12, 1, 1): give (B, C)" in error(pooled=maps)
    assert "pooled[0] is (2, 12)" in error(pooled=[f[:2] for f in arguments["pooled"]])
    assert "2 pooled, 3 weights" in error(pooled=arguments["pooled"][:2])
    assert "loss_weights is (3, 1)" in error(loss_weights=arguments["loss_weights"][:, None])
