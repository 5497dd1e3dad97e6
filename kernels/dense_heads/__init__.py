"""Every head's 1x1 convolution, loss and weighting, a class for each pixel, as one op."""

from .op import DenseLosses, dense_supervision_loss, dense_supervision_loss_ref

__all__ = ["DenseLosses", "dense_supervision_loss", "dense_supervision_loss_ref"]
