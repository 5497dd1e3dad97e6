"""What the op costs and how PyTorch sees it: launches, memory traffic, strides, autograd,
torch.compile."""

import numpy as np
import pytest
import torch
from gpu_waits import waits_refused
from heads_inputs import DEVICE, THREE_HEADS, make_inputs, outputs_and_gradients
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from lion_fast.kernels import deep_supervision_loss
from lion_fast.kernels.heads.launch import empty_forward, forward_launches
from support.harness import side_stream

interpreted = pytest.mark.skipif(
    DEVICE.type == "cuda", reason="watches Triton's interpreter, which a machine with a GPU skips"
)
needs_gpu = pytest.mark.skipif(
    DEVICE.type != "cuda", reason="needs a CUDA GPU: graph capture and synchronisation"
)
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# cuDNN convolves in TF32, where one unit in the last place of fp32 may round to another number
CONVOLUTION = {"rtol": 1e-2, "atol": 1e-3} if DEVICE.type == "cuda" else {}


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels launched since the test began."""
    names = []
    run = interpreter.GridExecutor.__call__

    def recorded(self, *args, **kwargs):
        names.append(self.fn.__name__)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", recorded)
    return names


@pytest.fixture
def traffic(monkeypatch):
    """Addresses of every element that kernels loaded ("load") and stored ("store"), in order."""
    addresses = {"load": [], "store": []}
    builder = interpreter.interpreter_builder

    def recorded(kind, method, mask_position):
        def call(pointers, *args, **kwargs):
            mask = args[mask_position].data.astype(bool)
            addresses[kind].append(np.broadcast_to(pointers.data, mask.shape)[mask])
            return method(pointers, *args, **kwargs)

        return call

    load, store = builder.create_masked_load, builder.create_masked_store
    monkeypatch.setattr(builder, "create_masked_load", recorded("load", load, 0))
    monkeypatch.setattr(builder, "create_masked_store", recorded("store", store, 1))
    return addresses


@interpreted
def test_forward_is_two_launches_and_backward_one(launches):
    inputs = make_inputs(3, 5, THREE_HEADS)
    loss = inputs.loss("triton").loss
    assert launches == [
        "_deep_supervision_loss_pool_kernel",
        "_deep_supervision_loss_classify_kernel",
    ]
    loss.backward()
    assert launches[2:] == ["_deep_supervision_loss_bwd_kernel"]


@interpreted
@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_every_tap_element_is_read_exactly_once_and_nothing_of_a_taps_size_written(
    traffic, memory_format
):
    inputs = make_inputs(3, 5, [(6, 32, 32), (7, 5, 3)])
    inputs = inputs.map_features(lambda f: f.contiguous(memory_format=memory_format))
    inputs.loss("triton").loss.backward()
    loads = np.concatenate(traffic["load"])
    for feature in inputs.features:
        first, size = feature.data_ptr(), feature.element_size()
        inside = loads[(loads >= first) & (loads < first + feature.numel() * size)]
        expected = np.arange(first, first + feature.numel() * size, size, dtype=np.uint64)
        assert np.array_equal(np.sort(inside), expected)
    num_stored = sum(len(stored) for stored in traffic["store"])
    assert num_stored < inputs.features[0].numel() / 20


@interpreted
def test_no_load_or_store_leaves_its_tensor(traffic):
    inputs = make_inputs(3, 5, [(6, 5, 3)])
    storage = torch.zeros(64 + 90 * 3 + 64)
    inside = storage[64:-64].view(3, 6, 5, 3)
    inside.copy_(inputs.features[0].detach())
    storage[:64] = storage[-64:] = torch.nan
    inputs.features = [inside.requires_grad_()]
    inputs.target[0] = 2**40
    inputs.loss("triton").loss.backward()
    loads = np.concatenate(traffic["load"])
    first = inside.data_ptr()
    beside = (loads >= first - 256) & (loads < first + 4 * (inside.numel() + 64))
    assert beside.sum() == inside.numel()


class Recorder(TorchDispatchMode):
    """Names of the PyTorch operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_launching_runs_no_pytorch_operator_but_allocations(memory_format):
    inputs = make_inputs(3, 5, THREE_HEADS)
    inputs = inputs.map_features(lambda f: f.contiguous(memory_format=memory_format))
    with torch.no_grad(), Recorder() as recorder:
        out = empty_forward(inputs.weights, inputs.target)
        forward_launches(out, **vars(inputs), label_smoothing=0.0)
    assert set(recorder.names) <= {"aten::empty", "aten::new_empty"}


def test_tap_gradients_are_expanded_not_materialised():
    inputs = make_inputs(3, 5, [(12, 8, 8), (14, 4, 6)])
    gradients = torch.autograd.grad(inputs.loss("triton").loss, inputs.features)
    for gradient in gradients:
        assert gradient.stride()[2:] == (0, 0)
        assert gradient.untyped_storage().nbytes() == 3 * (12 + 14) * 4


@pytest.mark.parametrize(
    "frozen",
    [
        ("features",),
        ("weights", "biases"),
        ("weights",),
        ("biases",),
        ("features", "weights"),
    ],
    ids=" and ".join,
)
def test_what_is_frozen_gets_no_gradient_and_the_rest_is_unchanged(frozen):
    inputs = make_inputs(3, 5, THREE_HEADS)
    expected = outputs_and_gradients(inputs, "triton")
    for name in frozen:
        for tensor in vars(inputs)[name]:
            tensor.requires_grad_(False)
    inputs.loss("triton").loss.backward()
    for kind, name in (("features", "tap"), ("weights", "weight"), ("biases", "bias")):
        for h, tensor in enumerate(vars(inputs)[kind]):
            if kind in frozen:
                assert tensor.grad is None
            else:
                assert torch.equal(tensor.grad, expected[f"d_{name}[{h}]"])


def test_one_frozen_head_leaves_the_others_learning():
    inputs = make_inputs(3, 5, THREE_HEADS)
    expected = outputs_and_gradients(inputs, "triton")
    for frozen in (inputs.features[0], inputs.weights[1], inputs.biases[1], inputs.weights[2]):
        frozen.requires_grad_(False)
    inputs.loss("triton").loss.backward()
    gradients = [t.grad for t in inputs.differentiable]
    names = [name for name in expected if name.startswith("d_")]
    for name, gradient in zip(names, gradients, strict=True):
        if name in ("d_tap[0]", "d_weight[1]", "d_bias[1]", "d_weight[2]"):
            assert gradient is None
        else:
            assert torch.equal(gradient, expected[name])


def test_only_the_loss_has_a_gradient_and_only_a_first_one():
    inputs = make_inputs(3, 5, [(4, 2, 2)])
    losses = inputs.loss("triton")
    assert losses.loss.requires_grad
    assert not losses.per_head.requires_grad and not losses.correct.requires_grad
    (gradient,) = torch.autograd.grad(losses.loss, inputs.weights, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered|not require grad"):
        gradient.sum().backward()


def test_backward_runs_twice_over_a_retained_graph():
    inputs = make_inputs(3, 5, THREE_HEADS)
    loss = inputs.loss("triton").loss
    first = torch.autograd.grad(loss, inputs.differentiable, retain_graph=True)
    second = torch.autograd.grad(loss, inputs.differentiable)
    assert all(map(torch.equal, first, second))


# opcheck itself looks at `.grad` of the copies it makes
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_passes(layout):
    inputs = make_inputs(3, 5, [(4, 3, 2), (2, 1, 1)])
    features = [
        feature.detach().contiguous(memory_format=layout).requires_grad_()
        for feature in inputs.features
    ]
    arguments = (
        features, inputs.weights, inputs.biases, inputs.target, inputs.loss_weights, 0.1
    )  # fmt: skip
    torch.library.opcheck(torch.ops.lion_fast.deep_supervision_loss, arguments)
    out = torch.ops.lion_fast.deep_supervision_loss(*arguments)
    saved = [t.detach() for t in (out[0], *out[3:])]
    for needs_linear, needs_taps in (([True, False], True), ([True, True], False)):
        torch.library.opcheck(
            torch.ops.lion_fast.deep_supervision_loss_backward,
            (*saved, [4, 2], needs_linear, needs_taps, torch.float16, torch.float32),
        )


class Network(nn.Module):
    """Taps that a transition of batch norm, ReLU and convolution also reads, as in DenseNet-DS."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.end = nn.BatchNorm2d(6)
        self.heads = nn.ModuleList([nn.Linear(4, 5), nn.Linear(6, 5)])

    def taps(self, images):
        first = self.stem(images)
        return [first, self.end(self.body(self.norm(first).relu())).relu()]

    def loss(self, taps, target, loss_weights, impl):
        return deep_supervision_loss(
            taps,
            [head.weight for head in self.heads],
            [head.bias for head in self.heads],
            target,
            loss_weights,
            impl=impl,
        ).loss


def network_gradients(impl, memory_format, compile_taps=None, compile_whole=None):
    torch.manual_seed(0)
    network = Network().to(DEVICE, memory_format=memory_format)
    images = torch.randn(4, 3, 8, 8, device=DEVICE).contiguous(memory_format=memory_format)
    target = torch.tensor([0, 1, 4, 2], device=DEVICE)
    loss_weights = torch.tensor([0.3, 1.0], device=DEVICE)
    taps = compile_taps(network.taps) if compile_taps else network.taps

    def step():
        return network.loss(taps(images), target, loss_weights, impl)

    loss = (compile_whole(step) if compile_whole else step)()
    return torch.autograd.grad(loss, list(network.parameters()))


def aot_eager(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def inductor(function):
    return torch.compile(function, fullgraph=True)


@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_convolution_and_batch_norm_take_the_expanded_gradient(memory_format):
    expected = network_gradients("torch", memory_format)
    gradients = network_gradients("triton", memory_format)
    torch.testing.assert_close(gradients, expected, **CONVOLUTION)


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("compiler", [aot_eager, pytest.param(inductor, marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(compiler, impl):
    expected = network_gradients("torch", torch.channels_last)
    compiled = network_gradients(impl, torch.channels_last, compile_whole=compiler)
    torch.testing.assert_close(compiled, expected, **CONVOLUTION)


@pytest.mark.parametrize("compiler", [aot_eager, pytest.param(inductor, marks=pytest.mark.slow)])
@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_a_backbone_compiled_alone_takes_the_expanded_gradient(compiler, memory_format):
    expected = network_gradients("torch", memory_format)
    compiled = network_gradients("triton", memory_format, compile_taps=compiler)
    torch.testing.assert_close(compiled, expected, **CONVOLUTION)


@needs_gpu
def test_forward_and_backward_are_captured_in_a_graph_and_never_wait():
    inputs = make_inputs(128, 10, [(72, 32, 32), (84, 16, 16), (90, 8, 8)], torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with side_stream(torch.device("cuda")):  # autograd keeps the stream that it first ran on
        expected = outputs_and_gradients(inputs, "triton")
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()), waits_refused():
            captured = outputs_and_gradients(inputs, "triton")
    graph.replay()
    torch.cuda.synchronize()
    for name, value in expected.items():
        assert torch.equal(captured[name], value), name
