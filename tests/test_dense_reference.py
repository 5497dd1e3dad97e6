"""Dense blocks that share batch statistics compute what DenseNet-DS's modules compute."""

import copy

import pytest
import torch
import torch.nn.functional as F
from dense_inputs import arguments, by_modules, errors, layers_of, odd_densenet, outcome

from lion_fast.kernels import dense_backbone_ref, dense_block_ref


def by_reference(model, images):
    return dense_backbone_ref(images, *arguments(model), **layers_of(model))


def problem(model, size=(3, 16, 16), dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    batch, height, width = size
    images = torch.randn(batch, 3, height, width, generator=generator).to(dtype)
    channels = [head.linear.in_features for head in model.heads]
    return images, [torch.randn(batch, c, generator=generator) for c in channels]


def double(model):
    return copy.deepcopy(model).double()


@pytest.mark.parametrize(
    ("growth_rate", "block_layers", "stem_channels", "size"),
    [(8, 2, 24, (3, 16, 16)), (3, 1, 5, (2, 9, 14)), (1, 4, 1, (1, 8, 8))],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_in_fp64_every_output_gradient_and_running_statistic_is_the_modules(
    growth_rate, block_layers, stem_channels, size, memory_format, poisoned_memory
):
    model = odd_densenet(growth_rate, block_layers, stem_channels, torch.float64)
    model.to(memory_format=memory_format)
    images, d_pooled = problem(model, size)
    images = images.contiguous(memory_format=memory_format)
    truth = outcome(model, by_modules, images, d_pooled)
    found = errors(outcome(model, by_reference, images, d_pooled), truth)
    assert max(found.values()) < 1e-12, found


def test_in_fp32_it_is_as_near_to_the_truth_as_the_modules_are():
    model = odd_densenet(block_layers=2)
    images, d_pooled = problem(model, dtype=torch.float32)
    truth = outcome(double(model), by_modules, images.double(), d_pooled)
    modules = errors(outcome(model, by_modules, images, d_pooled), truth)
    found = errors(outcome(model, by_reference, images, d_pooled), truth)
    # Both round differently; what one network's worst gradient has, another's may.
    assert max(found.values()) <= 2 * max(modules.values()), (found, modules)


def test_in_bf16_it_is_as_near_to_the_truth_as_autocast_modules_are():
    model = odd_densenet(block_layers=2)
    images, d_pooled = problem(model, (8, 16, 16), dtype=torch.bfloat16)

    def autocast(backbone):
        def run(model, images):
            with torch.autocast("cpu", torch.bfloat16):
                return [taps.float() for taps in backbone(model, images)]

        return run

    truth = outcome(double(model), by_modules, images.double(), d_pooled)
    modules = errors(outcome(model, autocast(by_modules), images, d_pooled), truth)
    ours = outcome(model, autocast(by_reference), images, d_pooled)
    found = errors(ours, truth)
    assert all(value.dtype == torch.float32 for value in ours.values())
    # They round alike but for running sums; the hundredth is theirs.
    assert sum(found.values()) <= 1.01 * sum(modules.values()), (found, modules)
    plain = outcome(model, by_reference, images, d_pooled)
    assert all(torch.equal(plain[name], value) for name, value in ours.items())


def make_block(num_layers=2, k=3, c=4):
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    channels = [c + u * k for u in range(num_layers + 1)]
    convs = [draw(k, width, 3, 3) for width in channels[:-1]]
    x = draw(2, c, 6, 7)
    return x, convs, [draw(width) for width in channels], [draw(width) for width in channels]


def stock_block(x, convs, gammas, betas):
    def active(maps, gamma, beta):
        return F.relu(F.batch_norm(maps, None, None, gamma, beta, True))

    for conv, gamma, beta in zip(convs, gammas, betas, strict=False):
        x = torch.cat([x, F.conv2d(active(x, gamma, beta), conv, padding=1)], 1)
    return x, active(x, gammas[-1], betas[-1])


@pytest.mark.parametrize("used", ["maps", "active", "both"])
@pytest.mark.parametrize("handed", ["dense", "transposed", "expanded"])
def test_a_block_takes_gradients_however_they_lie(used, handed):
    inputs = make_block()
    leaves = [inputs[0], *inputs[1], *inputs[2], *inputs[3]]

    def gradient(like):
        values = torch.arange(float(like.numel()), dtype=like.dtype).reshape(like.shape).sin()
        if handed == "transposed":
            return values.transpose(2, 3).contiguous().transpose(2, 3)
        return values[:, :, :1, :1].expand_as(like) if handed == "expanded" else values

    def grads(outputs):
        outputs = {"maps": outputs[:1], "active": outputs[1:2], "both": outputs[:2]}[used]
        return torch.autograd.grad(outputs, leaves, [*map(gradient, outputs)], allow_unused=True)

    for found, truth in zip(
        grads(dense_block_ref(*inputs)), grads(stock_block(*inputs)), strict=True
    ):
        # Of a norm that nothing reads, ours says zero.
        torch.testing.assert_close(found, torch.zeros_like(found) if truth is None else truth)


def test_a_second_derivative_is_refused_rather_than_wrong():
    inputs = make_block()
    loss = dense_block_ref(*inputs).active.square().sum()
    (d_x,) = torch.autograd.grad(loss, inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d_x.sum().backward()


def test_one_position_is_refused_as_batch_norm_refuses_it():
    model = odd_densenet()
    with pytest.raises(ValueError, match="more than one position"):
        by_reference(model, torch.randn(1, 3, 4, 4))


@pytest.mark.skipif(
    torch.__version__ < "2.14",
    reason="Dynamo of torch 2.11 compiles it to wrong gradients, so that resolve refuses it there",
)
def test_it_compiles_whole():
    model = odd_densenet(4, 1, 8)
    images, d_pooled = problem(model, (2, 8, 8), torch.float32)
    compiled = torch.compile(by_reference, backend="aot_eager", fullgraph=True)
    eager = outcome(model, by_reference, images, d_pooled)
    found = outcome(model, compiled, images, d_pooled)
    for name, value in eager.items():
        torch.testing.assert_close(found[name], value)
