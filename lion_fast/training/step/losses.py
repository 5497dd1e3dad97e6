"""What is minimised: the main head's loss plus weighted auxiliary ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lion_fast.config import TrainConfig


@dataclass(frozen=True)
class LossOptions:
    """The training loss, L_main + alpha(s) * sum of L_aux, of smoothed cross-entropies.

    Of networks that give a class to every pixel, each with `dice` times the Dice loss.

    alpha(s) = aux_weight * min(1, s / aux_warmup_steps) at step s, counted from 0; without warm-up
    it is aux_weight throughout.
    """

    aux_weight: float = 0.3
    aux_warmup_steps: int = 0
    label_smoothing: float = 0.0
    dice: float = 0.0

    @classmethod
    def of(cls, config: TrainConfig) -> "LossOptions":
        """Return the loss that `config` asks for."""
        return cls(config.aux_weight, config.aux_warmup_steps, config.label_smoothing, config.dice)

    def aux_weight_schedule(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Return alpha(s) as a function from s () to () float32, both on `device`."""
        full = torch.full((), self.aux_weight, device=device)
        return lambda steps_done: self.aux_weight_at(steps_done, full)

    def aux_weight_at(self, steps_done: Tensor, full: Tensor) -> Tensor:
        """Return alpha(s) () of s () and of `full` (), the aux_weight on the same device."""
        if not self.aux_warmup_steps:
            return full
        return full * (steps_done / self.aux_warmup_steps).clamp(max=1.0)

    def of_logits(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return the loss () of every head's logits (B, K), main last, at the full weight.

        For initialisers that look at the loss of the coming run. labels: (B,) int64.
        """
        *aux, main = (
            F.cross_entropy(head, labels, label_smoothing=self.label_smoothing) for head in logits
        )
        return main + self.aux_weight * sum(aux, start=torch.zeros_like(main))
