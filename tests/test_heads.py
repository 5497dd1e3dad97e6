from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from heads_inputs import (
    DEVICE,
    DTYPES,
    THREE_HEADS,
    assert_as_exact_as_torch,
    make_inputs,
    outputs_and_gradients,
)
from hypothesis import given, settings, strategies as st

from lion_fast.kernels import deep_supervision_loss, deep_supervision_loss_ref
from lion_fast.kernels.heads.aot import DENSENET_TAPS

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    # the fixture's price on a GPU, where the reference calls cuBLAS
    pytest.mark.filterwarnings("ignore:Deterministic behavior was enabled"),
]

FIVE_HEADS = ((1, 32, 32), (24, 7, 5), (7, 1, 1), (5, 2, 2), (3, 1, 9))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "batch_size, num_classes, taps, label_smoothing",
    [
        (1, 2, [(1, 1, 1)], 0.0),
        (3, 2, [(507, 1, 3), (5, 33, 32)], 0.1),
        (3, 100, THREE_HEADS[1:], 0.0),
        (3, 10, FIVE_HEADS, 0.1),
    ],
)
def test_is_as_exact_as_torch(batch_size, num_classes, taps, label_smoothing, memory_format, dtype):
    inputs = make_inputs(batch_size, num_classes, taps, dtype)
    inputs = inputs.map_features(lambda f: f.contiguous(memory_format=memory_format))
    assert_as_exact_as_torch(inputs, label_smoothing)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "batch_size, num_classes, taps",
    [
        (127, 10, [(24, 7, 5), (18, 8, 8)]),
        (2, 1000, [(24, 7, 5)]),
        (5, 10, [(72, 32, 32), (84, 16, 16), (90, 8, 8)]),
    ],
)
def test_is_as_exact_as_torch_at_large_sizes(batch_size, num_classes, taps, memory_format, dtype):
    inputs = make_inputs(batch_size, num_classes, taps, dtype)
    inputs = inputs.map_features(lambda f: f.contiguous(memory_format=memory_format))
    assert_as_exact_as_torch(inputs, 0.1)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    batch_size=st.integers(1, 6),
    num_classes=st.integers(2, 12),
    taps=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3
    ),
    channels_last=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_is_as_exact_as_torch_at_any_shape(batch_size, num_classes, taps, channels_last, dtype):
    inputs = make_inputs(batch_size, num_classes, taps, dtype)
    if channels_last:
        inputs = inputs.map_features(lambda f: f.contiguous(memory_format=torch.channels_last))
    assert_as_exact_as_torch(inputs)


LAYOUTS = {
    "some channels of a concatenation": lambda f: torch.cat([f, f, f], 1)[:, 2 : 2 + f.shape[1]],
    "some channels of a channels_last concatenation": lambda f: torch.cat([f, f], 1).contiguous(
        memory_format=torch.channels_last
    )[:, 1 : 1 + f.shape[1]],
    "every second image": lambda f: torch.cat([f, f])[::2],
    "one image for all": lambda f: f[:1].expand_as(f),
    "one value for a map": lambda f: f[:, :, :1, :1].expand_as(f),
    "one channel for all": lambda f: f[:, :1].expand_as(f),
    "height and width swapped": lambda f: f.mT,
    "images innermost": lambda f: f.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "a crop, copied first": lambda f: F.pad(f, (1, 2, 3, 0))[:, :, 3:, 1:-2],
    "a map of every second column": lambda f: f.repeat_interleave(2, 3)[:, :, :, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_any_layout(layout):
    inputs = make_inputs(4, 3, [(5, 6, 4), (2, 1, 3)])
    assert_as_exact_as_torch(inputs.map_features(LAYOUTS[layout]))


def test_takes_linear_layers_in_any_layout():
    inputs = make_inputs(4, 6, [(5, 3, 3)])
    inputs.weights = [w.detach().t().contiguous().t().requires_grad_() for w in inputs.weights]
    inputs.biases = [b.detach()[:1].expand(6).requires_grad_() for b in inputs.biases]
    inputs.target = inputs.target.repeat_interleave(2)[::2]
    inputs.loss_weights = torch.ones(1, device=DEVICE).expand(1)
    assert_as_exact_as_torch(inputs)


def test_mixes_half_precision_maps_with_fp32_weights_and_keeps_each_dtype():
    inputs = make_inputs(4, 10, THREE_HEADS, torch.float16, linear_dtype=torch.float32)
    assert_as_exact_as_torch(inputs)
    half = make_inputs(4, 10, THREE_HEADS, torch.float16, linear_dtype=torch.float16)
    assert_as_exact_as_torch(half)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        under_autocast = outputs_and_gradients(inputs, "triton")
        reference_under_autocast = inputs.loss("torch")
    for name, value in outputs_and_gradients(inputs, "triton").items():
        assert torch.equal(value, under_autocast[name]), name
    assert torch.equal(reference_under_autocast.loss, inputs.loss("torch").loss)


@pytest.mark.parametrize("grad", [-2.5, 0.0, 65536.0])
def test_scales_with_the_incoming_gradient(grad):
    assert_as_exact_as_torch(make_inputs(3, 5, [(4, 3, 3), (2, 2, 2)]), grad=grad)


def test_takes_an_expanded_incoming_gradient():
    inputs = make_inputs(3, 5, [(4, 3, 3)])
    for impl in ("torch", "triton"):
        loss = inputs.loss(impl).loss
        gradients = torch.autograd.grad(loss.expand(2, 4).sum() + loss, inputs.differentiable)
        expected = torch.autograd.grad(inputs.loss("torch").loss * 9, inputs.differentiable)
        torch.testing.assert_close(gradients, expected)


def test_is_exact_at_logits_of_ten_thousand():
    inputs = make_inputs(4, 5, [(3, 2, 2)])
    bias = torch.tensor([1e4, -1e4, 1e4 - 1, 0.0, 9999.5], device=DEVICE)
    inputs.biases = [bias.requires_grad_()]
    assert torch.isfinite(inputs.loss("triton").loss)
    assert_as_exact_as_torch(inputs, 0.1)


def test_zero_heads_give_exactly_zero_tap_gradients():
    inputs = make_inputs(5, 10, THREE_HEADS)
    for weight in inputs.weights[:-1]:
        weight.detach().zero_()
    results = outputs_and_gradients(inputs, "triton")
    assert not results["d_tap[0]"].any() and not results["d_tap[1]"].any()
    assert results["d_tap[2]"].any() and results["d_weight[0]"].any()


def test_a_head_of_weight_zero_learns_nothing():
    inputs = make_inputs(5, 10, THREE_HEADS)
    inputs.loss_weights = torch.tensor([0.0, 1.0, 0.0], device=DEVICE)
    results = outputs_and_gradients(inputs, "triton")
    for h, learns in enumerate((False, True, False)):
        for name in ("tap", "weight", "bias"):
            assert results[f"d_{name}[{h}]"].any() == learns


def test_the_first_of_equal_logits_is_the_prediction():
    inputs = make_inputs(6, 4, [(2, 2, 2)])
    inputs.weights[0].detach().zero_()
    inputs.biases[0].detach().copy_(torch.tensor([0.0, 7.0, 7.0, 1.0]))
    inputs.target = torch.tensor([0, 1, 2, 1, 3, 1], device=DEVICE)
    assert inputs.loss("triton").correct.tolist() == inputs.loss("torch").correct.tolist() == [3]


BAD_TARGETS = [4, -1, -100, 2**62, -(2**63)]


@pytest.mark.parametrize("bad", BAD_TARGETS)
def test_kernels_make_the_loss_of_a_target_out_of_range_nan(bad):
    inputs = make_inputs(6, 4, [(2, 2, 2), (3, 1, 1)])
    inputs.target[2] = bad
    results = outputs_and_gradients(inputs, "triton")
    assert results["loss"].isnan() and results["per_head"].isnan().all()
    assert results["d_tap[0]"][2].isnan().all()
    assert results["d_tap[0]"][[0, 1, 3, 4, 5]].isfinite().all()
    assert (results["correct"] <= 5).all()


@pytest.mark.skipif(DEVICE.type == "cuda", reason="on a GPU it trips a device assertion instead")
@pytest.mark.parametrize("bad", BAD_TARGETS[:-1])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_reference_names_a_target_out_of_range(bad, label_smoothing):
    inputs = make_inputs(6, 4, [(2, 2, 2)])
    inputs.target[:] = torch.tensor([0, 1, 2, 3, bad, 0])
    with pytest.raises(ValueError, match=f"{bad}.*labels of 4 classes run from 0 to 3"):
        inputs.loss("torch", label_smoothing)


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_rejects_label_smoothing_out_of_range(impl, label_smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        make_inputs(2, 3, [(2, 2, 2)]).loss(impl, label_smoothing)


LOSSES = {
    "kernels": partial(deep_supervision_loss, impl="triton"),
    "cpu": partial(deep_supervision_loss, impl="torch"),
    "reference": deep_supervision_loss_ref,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_path_refuses_the_same_inputs_and_names_the_one_that_does_not_fit(loss):
    inputs = make_inputs(3, 5, [(4, 2, 2), (6, 2, 2)])

    def error(**changed):
        with pytest.raises(ValueError) as caught:
            loss(**{**vars(inputs), **changed})
        (line,) = str(caught.value).splitlines()
        return line

    features, weights, biases = inputs.features, inputs.weights, inputs.biases
    scales, target = inputs.loss_weights, inputs.target
    assert "2 features, 1 weights, 2 biases" in error(weights=weights[:1])
    assert "2 features, 2 weights, 1 biases" in error(biases=biases[:1])
    assert "features is empty" in error(features=[])
    assert "features is a Tensor: give a list" in error(features=features[0])
    assert "biases is a NoneType: give a list" in error(biases=None)
    assert "weights[1] is (5, 4)" in error(weights=[weights[0], weights[0]])
    assert "weights[1] is (4, 6)" in error(weights=[weights[0], weights[1][:4]])
    assert "weights[1] is a list: give a tensor" in error(weights=[weights[0], [1.0]])
    assert "torch.int64 on" in error(weights=[w.long() for w in weights])
    assert "torch.float64 on" in error(weights=[w.double() for w in weights])
    assert "biases[1] is (4,)" in error(biases=[biases[0], biases[1][:4]])
    assert "biases[1] is (5,) torch.float16" in error(biases=[biases[0], biases[1].half()])
    assert "features[1] is (2, 6, 2, 2)" in error(features=[features[0], features[1][:2]])
    assert "features[0] is (3, 4, 2)" in error(features=[features[0][..., 0], features[1]])
    assert "features[1] is (3, 6): give (B, C, h" in error(
        features=[features[0], features[1].mean((2, 3))]
    )
    assert "features[0] is (3, 4, 0, 2)" in error(features=[features[0][:, :, :0], features[1]])
    assert "features[1] is" in error(features=[features[0], features[1].half()])
    assert "torch.int32" in error(target=target.int())
    assert "target is (3, 1)" in error(target=target[:, None])
    assert "target is a list" in error(target=[0, 1, 2])
    assert "target is empty" in error(features=[f[:0] for f in features], target=target[:0])
    assert "loss_weights is (2, 1)" in error(loss_weights=scales[:, None])
    assert "loss_weights is (3,)" in error(loss_weights=torch.ones(3, device=DEVICE))
    assert "loss_weights is a list: give a tensor" in error(loss_weights=[0.3, 1.0])
    assert "on meta" in error(loss_weights=scales.to("meta"))


def test_more_classes_than_a_program_holds_are_left_to_the_reference():
    inputs = make_inputs(1, 4097, [(1, 1, 1)])
    with pytest.raises(ValueError, match="4097 classes .*take impl='torch'"):
        inputs.loss("triton")
    assert inputs.loss("torch").loss.isfinite()


def test_more_rows_than_the_kernels_count_in_32_bits_are_refused():
    inputs = make_inputs(1, 2, [(2, 1, 1)])
    features = [inputs.features[0].expand(2**30, 2, 1, 1)]
    with pytest.raises(ValueError, match="1073741824 images .*take a smaller batch"):
        replace(inputs, features=features, target=inputs.target.expand(2**30)).loss("triton")


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_a_head_without_a_bias_is_one_with_a_bias_of_zero(impl):
    inputs = make_inputs(3, 5, THREE_HEADS)
    inputs.biases[1] = torch.zeros(5, device=DEVICE, requires_grad=True)
    expected = outputs_and_gradients(inputs, impl)
    without = replace(inputs, biases=[inputs.biases[0], None, inputs.biases[2]])
    loss = without.loss(impl)
    assert torch.equal(loss.loss, expected["loss"])
    loss.loss.backward()
    for h in range(3):
        assert torch.equal(without.features[h].grad, expected[f"d_tap[{h}]"])
        assert torch.equal(without.weights[h].grad, expected[f"d_weight[{h}]"])
    assert torch.equal(without.biases[2].grad, expected["d_bias[2]"])


def test_reference_passes_gradcheck():
    inputs = make_inputs(3, 4, [(2, 3, 2), (3, 1, 1)]).double()

    def loss(*tensors):
        return deep_supervision_loss_ref(
            tensors[:2], tensors[2:4], tensors[4:6], inputs.target, tensors[6], label_smoothing=0.1
        ).loss

    loss_weights = inputs.loss_weights.requires_grad_()
    assert torch.autograd.gradcheck(loss, [*inputs.differentiable, loss_weights])


def test_loss_weights_have_the_reference_gradient():
    inputs = make_inputs(3, 4, [(2, 3, 2), (3, 1, 1)])
    inputs.loss_weights.requires_grad_()
    gradients = [
        torch.autograd.grad(inputs.loss(impl).loss * 3, inputs.loss_weights)[0]
        for impl in ("torch", "triton")
    ]
    torch.testing.assert_close(*gradients)


def test_same_inputs_give_the_same_bits():
    inputs = make_inputs(67, 10, [(6, 4, 4), (7, 3, 3)])
    first, second = (outputs_and_gradients(inputs, "triton") for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA GPU: programs meet in any order")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [10, 100, 1000])
@pytest.mark.parametrize("batch_size", [67, 128, 2048])
def test_at_the_sizes_of_a_run_thirty_runs_are_exact_and_the_same_bits(
    batch_size, num_classes, dtype
):
    inputs = make_inputs(batch_size, num_classes, DENSENET_TAPS, dtype)
    assert_as_exact_as_torch(inputs)
    first = outputs_and_gradients(inputs, "triton")
    for i in range(29):
        again = outputs_and_gradients(inputs, "triton")
        assert all(torch.equal(first[name], again[name]) for name in first), i
