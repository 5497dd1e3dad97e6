"""GradInit (Zhu et al. 2021): one learnt scale per tensor, for the lowest loss after one step."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lion_fast.errors import UserError
from lion_fast.init.calibration import batch_statistics, full_precision, unwrapped
from lion_fast.init.outputs import Main, main_logits_last
from lion_fast.init.state import untouched
from lion_fast.init.variance import he_

Parameters = dict[str, Tensor]
HeadLoss = Callable[[Sequence[Tensor], Tensor], Tensor]
"""() of the logits (B, K) of every head, the main one's last, and the labels (B,)."""


def default_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Compute the paper's loss: main + 0.3 * auxiliary cross-entropies."""
    *aux, main = (F.cross_entropy(head, labels) for head in logits)
    return main + 0.3 * sum(aux, start=torch.zeros_like(main))


def gradinit_(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    iterations: int = 390,
    lr: float = 1e-3,
    min_scale: float = 0.01,
    grad_clip: float = 1.0,
    eta: float = 0.1,
    gamma: float = 1.0,
    algorithm: Literal["sgd", "adam"] = "sgd",
    batch_size: int = 128,
    loss: HeadLoss | None = None,
    main: Main = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """He-initialise, then learn scales m of all parameter tensors W (GradInit's algorithm 1).

    Each iteration takes g, the gradient of the loss at m * W on a batch. If |g| > gamma, it
    descends on |g| (which differentiates twice). Otherwise it descends on the loss at m * W - eta *
    A(g) on a batch that shares half its images with the first, A(g) held constant as in the
    reference code. A(g) is g / |g| with the 2-norm for "sgd", sign(g) with the 1-norm for "adam".
    Steps are Adam's, each scale's gradient clipped to +-grad_clip, and no scale falls below
    min_scale. Tensors that start at 0 stay there.

    loss: the training loss () of the logits of all heads, the main one's last, and of the labels,
    in operations that can be differentiated twice; by default `default_loss`. main: the index
    or dotted key of the main logits in what the model returns, where nothing tells it. images:
    (N, 3, height, width) normalised floats, labels: (N,) int64, both sampled with replacement.
    Batch norm normalises by the batch and its running statistics stay untouched.

    Defaults are the reference code's (zhuchen03/gradinit), with gamma = 1 and the normalised
    gradient of its CIFAR recipes. For DenseNet-100 it takes 780 iterations at lr 1e-2 and batches
    of 64; for "adam" eta = 1e-3 and no bound (gamma = inf). An iteration is a forward and
    a backward pass, then another of both, or a backward pass through the backward pass.

    Raises UserError if images and labels differ in number, the gradient is not finite, or the main
    output is not known or not one.
    """
    if len(images) != len(labels) or len(images) == 0:
        raise UserError(
            f"gradinit got {len(images)} images and {len(labels)} labels: give as many, at least 1"
        )
    network = unwrapped(model)
    device = next(network.parameters()).device
    images, labels = images.to(device), labels.to(device)
    with full_precision(network), untouched(network), batch_statistics(network):
        # Asked first, so that a model whose main output is not known is left as it was.
        now = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
        main_logits_last(network, functional_call(network, now, (images[:2],)), main)
    he_(network, generator)
    initial = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    scales = torch.ones(len(initial), device=device, requires_grad=True)
    head_loss = loss or default_loss
    # Separate moments: the two objectives' gradients differ in size by orders of magnitude.
    of_loss, of_norm = (torch.optim.Adam([scales], lr=lr) for _ in range(2))

    def loss_at(parameters: Parameters, index: Tensor) -> Tensor:
        output = functional_call(network, parameters, (images[index],))
        return head_loss(main_logits_last(network, output, main), labels[index])

    with full_precision(network), batch_statistics(network):
        for _ in range(iterations):
            index, index_ahead = _overlapping_batches(len(images), batch_size, generator, device)
            parameters = _scaled(initial, scales)
            here = loss_at(parameters, index)
            # A parameter that the loss does not use, such as an auxiliary head's, keeps its scale.
            gradients = torch.autograd.grad(
                here, list(parameters.values()), create_graph=True, materialize_grads=True
            )
            norm = _norm(gradients, algorithm)
            if not norm.isfinite():
                raise UserError(
                    f"gradinit's gradient norm is {norm.item()}: "
                    f"give finite images, or lower lr ({lr}) or eta ({eta})"
                )
            if norm > gamma:
                _descend(of_norm, scales, norm, grad_clip, min_scale)
                continue
            stepped = {
                name: parameter - eta * _direction(gradient.detach(), norm.detach(), algorithm)
                for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
            }
            _descend(of_loss, scales, loss_at(stepped, index_ahead) / eta, grad_clip, min_scale)
    with torch.no_grad():
        for parameter, value in zip(
            network.parameters(), _scaled(initial, scales).values(), strict=True
        ):
            parameter.copy_(value)
    return model


def _scaled(initial: Parameters, scales: Tensor) -> Parameters:
    return {
        name: scale * weight
        for (name, weight), scale in zip(initial.items(), scales.unbind(), strict=True)
    }


def _overlapping_batches(
    num_images: int, batch_size: int, generator: torch.Generator | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the indices of two batches whose one's second half is the other's first."""
    half = max(1, batch_size // 2)
    where = device if generator is None else generator.device
    drawn = torch.randint(num_images, (3 * half,), generator=generator, device=where).to(device)
    return drawn[: 2 * half], drawn[half:]


def _norm(gradients: tuple[Tensor, ...], algorithm: str) -> Tensor:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    return flat.norm(p=1 if algorithm == "adam" else 2)


def _direction(gradient: Tensor, norm: Tensor, algorithm: str) -> Tensor:
    return gradient.sign() if algorithm == "adam" else gradient / norm


def _descend(
    optimizer: torch.optim.Optimizer,
    scales: Tensor,
    objective: Tensor,
    grad_clip: float,
    min_scale: float,
) -> None:
    (gradient,) = torch.autograd.grad(objective, [scales])
    scales.grad = gradient.clamp(-grad_clip, grad_clip)
    optimizer.step()
    with torch.no_grad():
        scales.clamp_(min=min_scale)
