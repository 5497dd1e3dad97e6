"""How strongly the auxiliary heads pull on the backbone, measured without touching the run."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from lion_fast.data.batches import Batch
from lion_fast.kernels import deep_supervision_loss
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

    def row(self) -> list[float]:
        """Return the fields as one row of probes.csv."""
        *scalars, norms = astuple(self)
        return [*scalars, *norms]

    @staticmethod
    def columns(num_aux: int) -> list[str]:
        """Header of probes.csv."""
        names = ["step", "gradient_ratio", "aux_gradient_norm", "main_gradient_norm"]
        return names + [f"aux_head{h}_weight_norm" for h in range(num_aux)]


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
    when it grows from 0. aux_weight: (), that of the coming step. loss: for its label smoothing.
    Batch-norm running statistics, parameters and their `.grad` are left as they were. Waits for the
    device.
    """
    parameters = list(model.backbone_parameters())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    linears = [head.linear for head in model.heads]
    with autocast(resolved):
        taps = model.taps(batch.images)
    main_only = torch.zeros(len(linears), device=aux_weight.device)
    main_only[-1] = 1.0
    norms = []
    for loss_weights in (main_only, aux_weight * (1.0 - main_only)):
        total = deep_supervision_loss(
            taps,
            [linear.weight for linear in linears],
            [linear.bias for linear in linears],
            batch.labels,
            loss_weights,
            label_smoothing=loss.label_smoothing,
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
        head_weight_norms=tuple(linear.weight.norm().item() for linear in linears[:-1]),
    )


def _norm(gradients: Sequence[Tensor | None]) -> float:
    """Euclidean norm over all tensors; a parameter that the loss does not reach counts as zero."""
    return torch.nn.utils.get_total_norm([g.float() for g in gradients if g is not None]).item()
