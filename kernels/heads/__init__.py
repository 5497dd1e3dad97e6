"""Every head's pooling, linear layer, loss and weighting as one op."""

from .op import (
    HeadLosses,
    deep_supervision_loss,
    deep_supervision_loss_ref,
    pooled_supervision_loss,
    pooled_supervision_loss_ref,
)

__all__ = [
    "HeadLosses",
    "deep_supervision_loss",
    "deep_supervision_loss_ref",
    "pooled_supervision_loss",
    "pooled_supervision_loss_ref",
]
