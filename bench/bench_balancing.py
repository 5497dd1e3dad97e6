"""One training step under the run-time balancing methods that LION-DG does without.

Each method turns the (H,) losses of the heads into the gradient of every parameter, on the same
network, batch and optimizer. All of them take their losses from `head_losses`, so that a ratio is
the method's own price. In gradients (H, P), P counts the backbone's parameters, which all heads
share in whole or in part.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from lion_fast.init import initialize_
from lion_fast.models import DeeplySupervised, densenet_ds, resnet_ds

BENCHMARK = {
    "title": "Run-time balancing",
    "order": 30,
    "stage": "overhead",
    "ours": ("lion_dg",),
}

ALPHA = 0.3
ARCHITECTURES: dict[str, Callable[[], DeeplySupervised]] = {
    "densenet_ds": densenet_ds,
    "resnet_ds": resnet_ds,
}


class Balancer(Protocol):
    """A way to turn the heads' losses into gradients."""

    parameters: Sequence[nn.Parameter]
    """What the method itself trains with the network's optimizer."""

    def backward(self, losses: list[Tensor]) -> None:
        """Set `.grad` of every parameter from the H losses (), the main head's last."""


def head_losses(model: DeeplySupervised, images: Tensor, target: Tensor) -> list[Tensor]:
    """Return the mean cross-entropy of every head.

    They stay apart: the backward pass of one head out of a stack would run through all of them.
    """
    return [F.cross_entropy(logits, target) for logits in model(images)]


class FixedWeights:
    """L_main + alpha * sum of L_aux: what He-init and LION-DG train with."""

    parameters: Sequence[nn.Parameter] = ()

    def __init__(self, model: DeeplySupervised) -> None:
        self.weights = model.loss_weights(ALPHA)

    def backward(self, losses: list[Tensor]) -> None:
        """Back-propagate the weighted sum."""
        torch.dot(self.weights, torch.stack(losses)).backward()


class WarmUp:
    """Ramp alpha linearly from 0 over the first steps (Lee et al. 2015)."""

    parameters: Sequence[nn.Parameter] = ()

    def __init__(self, model: DeeplySupervised, warmup_steps: int = 500) -> None:
        self.model = model
        self.warmup_steps = warmup_steps
        self.steps_done = torch.zeros((), device=model.heads.main.output_layer.weight.device)

    def backward(self, losses: list[Tensor]) -> None:
        """Back-propagate the weighted sum and advance the schedule."""
        ramp = (self.steps_done / self.warmup_steps).clamp(max=1.0)
        torch.dot(self.model.loss_weights(ALPHA * ramp), torch.stack(losses)).backward()
        self.steps_done.add_(1)


class UncertaintyWeighting:
    """Learn a log variance s per head: sum of exp(-s) L + s / 2 (Kendall et al. 2018, eq. 10)."""

    parameters: Sequence[nn.Parameter]

    def __init__(self, model: DeeplySupervised) -> None:
        self.log_variances = nn.Parameter(torch.zeros_like(model.loss_weights(ALPHA)))
        self.parameters = [self.log_variances]

    def backward(self, losses: list[Tensor]) -> None:
        """Back-propagate into network and log variances."""
        precisions = torch.exp(-self.log_variances)
        (precisions * torch.stack(losses) + self.log_variances / 2).sum().backward()


class GradNorm:
    """Learn loss weights that even out gradient norms (Chen et al. 2018, eq. 2 and algorithm 1).

    G_h = w_h |dL_h/dW| is linear in w_h, so its derivative needs no second backward pass. W is the
    last convolution that all heads share.
    """

    parameters: Sequence[nn.Parameter] = ()

    def __init__(self, model: DeeplySupervised, asymmetry: float = 1.5, lr: float = 0.025) -> None:
        self.model = model
        self.asymmetry = asymmetry
        self.weights = torch.ones_like(model.loss_weights(ALPHA)).requires_grad_()
        self.optimizer = torch.optim.Adam([self.weights], lr)
        self.first_losses: Tensor | None = None
        self.shared_weight: nn.Parameter | None = None

    def backward(self, losses: list[Tensor]) -> None:
        """Back-propagate the weighted sum, then move the weights."""
        if self.first_losses is None or self.shared_weight is None:
            self.first_losses = torch.stack(losses).detach()
            self.shared_weight = last_shared_weight(self.model, losses)
        norms = torch.stack(
            [
                torch.autograd.grad(loss, self.shared_weight, retain_graph=True)[0].norm()
                for loss in losses
            ]
        )
        stacked = torch.stack(losses)
        torch.dot(self.weights.detach(), stacked).backward()
        progress = stacked.detach() / self.first_losses
        self.update_weights(norms, progress / progress.mean())

    def update_weights(self, norms: Tensor, relative_rates: Tensor) -> None:
        """Step on sum |G - mean(G) r^asymmetry| with its target held fixed; renormalise to H."""
        scaled = self.weights * norms
        goal = (scaled.mean() * relative_rates**self.asymmetry).detach()
        self.weights.grad = torch.autograd.grad((scaled - goal).abs().sum(), self.weights)[0]
        self.optimizer.step()
        with torch.no_grad():
            self.weights.mul_(self.weights.numel() / self.weights.sum())


def last_shared_weight(model: DeeplySupervised, losses: list[Tensor]) -> nn.Parameter:
    """Return the last convolution's weight that the first head's loss, hence every one, reaches."""
    convolutions = [p for p in model.backbone_parameters() if p.ndim == 4]
    gradients = torch.autograd.grad(losses[0], convolutions, retain_graph=True, allow_unused=True)
    return [p for p, g in zip(convolutions, gradients, strict=True) if g is not None][-1]


class GradientSurgery:
    """Combine one backbone gradient per head; every head keeps its own gradient."""

    parameters: Sequence[nn.Parameter] = ()

    def __init__(self, model: DeeplySupervised, combine: Callable[[Tensor], Tensor]) -> None:
        self.heads = [list(head.parameters()) for head in model.heads]
        self.shared = list(model.backbone_parameters())
        self.weights = model.loss_weights(ALPHA)
        self.combine = combine

    def backward(self, losses: list[Tensor]) -> None:
        """Run one backward pass per head, then set the combined gradient."""
        rows = []
        for weight, loss, head in zip(self.weights, losses, self.heads, strict=True):
            gradients = torch.autograd.grad(
                weight * loss, [*self.shared, *head], retain_graph=True, materialize_grads=True
            )
            rows.append(torch.cat([g.flatten() for g in gradients[: len(self.shared)]]))
            for parameter, gradient in zip(head, gradients[len(self.shared) :], strict=True):
                parameter.grad = gradient
        combined = self.combine(torch.stack(rows)).split([p.numel() for p in self.shared])
        for parameter, gradient in zip(self.shared, combined, strict=True):
            # In the parameter's strides: fused AdamW takes no others on a GPU.
            parameter.grad = torch.empty_like(parameter).copy_(gradient.view_as(parameter))


class PCGrad:
    """Take from each gradient what opposes another's (Yu et al. 2020, algorithm 1)."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)

    def __call__(self, gradients: Tensor) -> Tensor:
        """Return (P,), the sum of the projected rows of gradients (H, P)."""
        squared_norms = gradients.square().sum(1)
        projected = []
        for i, row in enumerate(gradients):
            for j in self.generator.permutation(len(gradients)):
                if j != i:
                    # A clamp and no branch: the sign of a product must not stop the host.
                    opposition = torch.dot(row, gradients[j]).clamp(max=0.0)
                    row = row - opposition / squared_norms[j].clamp(min=1e-30) * gradients[j]
            projected.append(row)
        return torch.stack(projected).sum(0)


def cagrad(gradients: Tensor, radius: float = 0.4) -> Tensor:
    """Return (P,), the update that best serves the worst-off head (Liu et al. 2021, algorithm 1).

    With g0 the mean row of gradients (H, P) and g_w = w . gradients, w minimises
    g_w . g0 + c |g0| |g_w| over the simplex, and the update is g0 + c |g0| g_w / |g_w|. As in the
    authors' code the minimisation runs on the host, on the Gram matrix.
    """
    gram = (gradients @ gradients.t()).double().cpu().numpy()
    num_heads = len(gram)
    mean_products = gram.mean(0)
    ball = radius * np.sqrt(mean_products.mean())

    def objective(w: np.ndarray) -> float:
        return w @ mean_products + ball * np.sqrt(w @ gram @ w + 1e-12)

    uniform = np.full(num_heads, 1 / num_heads)
    w = minimize(
        objective,
        uniform,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * num_heads,
        constraints={"type": "eq", "fun": lambda w: 1 - w.sum()},
    ).x
    coefficients = uniform + ball / np.sqrt(w @ gram @ w + 1e-12) * w
    return gradients.new_tensor(coefficients) @ gradients


BALANCERS: dict[str, Callable[[DeeplySupervised], Balancer]] = {
    "lion_dg": FixedWeights,
    "he": FixedWeights,
    "warmup": WarmUp,
    "uncertainty": UncertaintyWeighting,
    "gradnorm": GradNorm,
    "pcgrad": lambda model: GradientSurgery(model, PCGrad()),
    "cagrad": lambda model: GradientSurgery(model, cagrad),
}


def make_step(
    model: DeeplySupervised, balancer: Balancer, images: Tensor, target: Tensor
) -> Callable[[], None]:
    """Return one training step of the model on the batch under a balancing method."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    if balancer.parameters:
        optimizer.add_param_group({"params": balancer.parameters, "weight_decay": 0.0})

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        balancer.backward(head_losses(model, images, target))
        optimizer.step()

    return step


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_step_price_of_balancing(bench, arch: str) -> None:
    """Compare a step under every method with the plain He-init step."""
    on_cpu = bench.device.type == "cpu"
    if arch == "resnet_ds" and on_cpu and not bench.quick:
        pytest.skip("resnet_ds under seven methods takes minutes on the CPU")
    batch_size = 8 if bench.quick else 128
    generator = torch.Generator(bench.device).manual_seed(0)
    images = torch.randn(batch_size, 3, 32, 32, device=bench.device, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    target = torch.randint(10, (batch_size,), device=bench.device, generator=generator)

    def build(method: str) -> Callable[[], None]:
        init = "lion_dg" if method == "lion_dg" else "he"
        model = ARCHITECTURES[arch]()
        initialize_(model, init, generator=torch.Generator().manual_seed(0))
        model = model.to(bench.device).to(memory_format=torch.channels_last)
        return make_step(model, BALANCERS[method](model), images, target)

    samples = bench.compare(
        {method: build(method) for method in BALANCERS},
        rounds=8 if on_cpu else 40,
        op="balancing_step",
        impl="eager",
        shape=f"{arch} B{batch_size}x3x32x32",
        dtype="float32",
        mode="step",
        arch=arch,
        batch="random normal images",
    )
    for method in BALANCERS:
        if method != "he":
            bench.record_ratio(samples, method, "he")
