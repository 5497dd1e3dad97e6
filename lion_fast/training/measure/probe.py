"""How strongly the auxiliary heads pull on the backbone, measured without touching the run."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from lion_fast.data.batches import Batch
from lion_fast.models import DeeplySupervised
from lion_fast.training.machine.resolve import Resolved
from lion_fast.training.step.losses import LossOptions
from lion_fast.training.step.step import autocast


@dataclass(frozen=True)
class GradientProbe:
    """One measurement, before the update of `step`."""

    step: int
    gradient_ratio: float
    """norm of d(sum alpha * L_aux)/d backbone over norm of d L_main/d backbone"""
    aux_gradient_norm: float
    main_gradient_norm: float
    head_weight_norms: tuple[float, ...]
    """Frobenius norm of each auxiliary head's weight, in tap order."""
    head_ranks: tuple[float, ...]
    """Effective rank of each auxiliary head's weight; see `effective_rank`."""

    def row(self) -> list[float]:
        """Return the fields as one row of probes.csv."""
        *scalars, norms, ranks = astuple(self)
        return [*scalars, *norms, *ranks]

    @staticmethod
    def columns(num_aux: int) -> list[str]:
        """Header of probes.csv."""
        names = ["step", "gradient_ratio", "aux_gradient_norm", "main_gradient_norm"]
        of_heads = ("weight_norm", "effective_rank")
        return names + [f"aux_head{h}_{what}" for what in of_heads for h in range(num_aux)]


def probe_gradients(
    model: DeeplySupervised,
    batch: Batch,
    aux_weight: Tensor,
    *,
    step: int,
    loss: LossOptions,
    resolved: Resolved,
) -> GradientProbe:
    """Measure |d(sum of aux_weight * L_aux)/d backbone| / |d L_main/d backbone| on `batch`.

    This is the ratio that LION-DG's paper (arXiv 2601.02105, section 5.3) calls gradient awakening
    when it grows from 0. aux_weight: (), that of the coming step. loss: for its label smoothing and
    Dice. Batch-norm running statistics, parameters and their `.grad` are left as they were. Waits
    for the device.
    """
    parameters = list(model.backbone_parameters())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights, _ = model.heads.weights_and_biases()
    with autocast(resolved):
        taps = model.taps(batch.images)
    main_only = torch.zeros(len(taps), device=aux_weight.device)
    main_only[-1] = 1.0
    norms = []
    for loss_weights in (main_only, model.loss_weights(aux_weight) * (1.0 - main_only)):
        total = model.heads.loss(
            taps,
            batch.labels,
            loss_weights,
            label_smoothing=loss.label_smoothing,
            dice=loss.dice,
            impl=resolved.impl,
        ).loss
        norms.append(
            _norm(torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True))
        )
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    main_norm, aux_norm = norms
    return GradientProbe(
        step=step,
        gradient_ratio=aux_norm / main_norm if main_norm else float("nan"),
        aux_gradient_norm=aux_norm,
        main_gradient_norm=main_norm,
        head_weight_norms=tuple(weight.norm().item() for weight in weights[:-1]),
        head_ranks=tuple(effective_rank(weight.detach()) for weight in weights[:-1]),
    )


def effective_rank(weight: Tensor) -> float:
    """Return exp of the entropy of the squared singular values' shares; 0 of a weight of zeros.

    weight: (K, ...). It is 1 where all rows are multiples of one, and as large as the rank where
    all singular values are equal (Roy and Vetterli 2007, of squares).
    """
    # On the host: a GPU's solver would take memory and time to set up for a matrix this small.
    squares = torch.linalg.svdvals(weight.flatten(1).cpu().double()).square()
    total = squares.sum()
    if not total:
        return 0.0
    shares = squares / total
    return torch.special.entr(shares).sum().exp().item()


def _norm(gradients: Sequence[Tensor | None]) -> float:
    """Euclidean norm over all tensors; a parameter that the loss does not reach counts as zero."""
    return torch.nn.utils.get_total_norm([g.float() for g in gradients if g is not None]).item()
