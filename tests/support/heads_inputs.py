"""Inputs of deep_supervision_loss, its outputs and gradients by name, and the three-way
comparison."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lion_fast.kernels import deep_supervision_loss

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 in Triton's interpreter is wrong without a word.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])
THREE_HEADS = ((12, 8, 8), (14, 4, 4), (9, 2, 2))


@dataclass
class Inputs:
    features: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]
    target: Tensor
    loss_weights: Tensor

    @property
    def differentiable(self) -> list[Tensor]:
        return [*self.features, *self.weights, *self.biases]

    def map_features(self, change) -> "Inputs":
        features = [change(f).detach().requires_grad_() for f in self.features]
        return replace(self, features=features)

    def double(self) -> "Inputs":
        features, weights, biases = (
            [t.detach().double().requires_grad_() for t in tensors]
            for tensors in (self.features, self.weights, self.biases)
        )
        return Inputs(features, weights, biases, self.target, self.loss_weights.double())

    def loss(self, impl, label_smoothing=0.0):
        return deep_supervision_loss(
            self.features, self.weights, self.biases, self.target, self.loss_weights,
            label_smoothing=label_smoothing, impl=impl,
        )  # fmt: skip


def make_inputs(
    batch_size, num_classes, taps, dtype=torch.float32, linear_dtype=torch.float32, seed=0
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, dtype):
        values = torch.randn(shape, generator=generator).to(DEVICE, dtype)
        return values.requires_grad_()

    target = torch.randint(num_classes, (batch_size,), generator=generator).to(DEVICE)
    loss_weights = torch.tensor([0.3] * (len(taps) - 1) + [1.0], device=DEVICE)
    return Inputs(
        [normal(batch_size, *tap, dtype=dtype) for tap in taps],
        [normal(num_classes, tap[0], dtype=linear_dtype) for tap in taps],
        [normal(num_classes, dtype=linear_dtype) for _ in taps],
        target,
        loss_weights,
    )


def outputs_and_gradients(inputs, impl, label_smoothing=0.0, grad=1.0) -> dict[str, Tensor]:
    losses = inputs.loss(impl, label_smoothing)
    gradients = torch.autograd.grad(losses.loss * grad, inputs.differentiable)
    num_heads = len(inputs.features)
    names = [f"d_{name}[{h}]" for name in ("tap", "weight", "bias") for h in range(num_heads)]
    return dict(losses._asdict()) | dict(zip(names, gradients, strict=True))


def assert_as_exact_as_torch(inputs, label_smoothing=0.0, grad=1.0) -> None:
    """Compare with fp64: the largest error of ours may pass that of the fp32 reference by what one
    rounding makes.

    A logit rounded to fp32 moves the loss by eps * |logit|, and the softmax by as much of itself;
    gradients sum terms that may cancel, so their scale is that of the terms. Gradients come in each
    input's dtype, so both errors hold that rounding too."""
    exact = inputs.double()
    truth = outputs_and_gradients(exact, "torch", label_smoothing, grad)
    stock = outputs_and_gradients(inputs, "torch", label_smoothing, grad)
    ours = outputs_and_gradients(inputs, "triton", label_smoothing, grad)
    scale = {"loss": 1.0, "per_head": 1.0}
    largest_logit = 0.0
    for h, (feature, weight, bias) in enumerate(
        zip(exact.features, exact.weights, exact.biases, strict=True)
    ):
        pooled = feature.mean((2, 3))
        largest_logit = max(largest_logit, (pooled @ weight.T + bias).abs().max().item())
        share = abs(grad) * inputs.loss_weights[h].item()
        scale[f"d_bias[{h}]"] = share
        scale[f"d_weight[{h}]"] = share * pooled.abs().max().item()
        scale[f"d_tap[{h}]"] = (
            share * weight.abs().max().item() * feature.shape[1] / feature.numel()
        )
    rounding = torch.finfo(torch.float32).eps * (1 + largest_logit)
    assert torch.equal(ours.pop("correct"), truth.pop("correct"))
    for name, value in truth.items():
        assert ours[name].dtype == stock[name].dtype, name
        assert ours[name].shape == value.shape, name
        error = (ours[name].double() - value).abs().max()
        allowed = (stock[name].double() - value).abs().max()
        assert error <= allowed + rounding * scale[name], (name, error, allowed)
