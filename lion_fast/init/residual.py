"""Fixup and ReZero: initialisers for residual branches, and their remains in DenseNet-DS.

Both ask a model for its `residual_branches()`: the layers of each branch in forward order. Both
were made to train residual networks without batch norm; here batch norm stays, so that every
initialiser is compared on one network.

DenseNet-DS has no residual branch. There ReZero equals He to the bit, and Fixup equals He but for a
main head that is zero, the mirror image of LION-DG: no wonder that the paper's Table 7 finds no
difference.
"""

import torch
from torch import nn

from lion_fast.errors import UserError
from lion_fast.init.calibration import unwrapped
from lion_fast.init.variance import he_
from lion_fast.models import DeeplySupervised


@torch.no_grad()
def fixup_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Apply rules 1 and 2 of Fixup (Zhang et al. 2019) to a network of this package.

    1. The main classifier and the last convolution of each residual branch are 0, so every branch
       adds 0.
    2. All else is He's, and the other convolutions of a branch are scaled by L^(-1 / (2m - 2)),
       with L branches of m convolutions each.

    Its rule 3, scalar biases and multipliers, is left to batch norm's gamma and beta. Batch norm
    also undoes the scale of rule 2, and divides by almost 0 behind the zero convolution: its first
    update makes the branch as large as any.
    """
    branches = _residual_branches(model)
    he_(model, generator)
    for branch in branches:
        *scaled, last = (layer for layer in branch if isinstance(layer, nn.Conv2d))
        for layer in scaled:
            layer.weight.mul_(len(branches) ** (-1 / (2 * len(scaled))))
        last.weight.zero_()
    main = _deeply_supervised(model).heads.main.output_layer
    for parameter in main.parameters():
        parameter.zero_()
    return model


@torch.no_grad()
def rezero_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """He-initialise, and zero the scale of every residual branch (Bachlechner et al. 2021).

    The gamma of a branch's last batch norm stands for the paper's scalar, so that no parameter is
    added.
    """
    branches = _residual_branches(model)
    he_(model, generator)
    for branch in branches:
        norms = [layer for layer in branch if isinstance(layer, nn.BatchNorm2d)]
        norms[-1].weight.zero_()
    return model


def _residual_branches(model: nn.Module) -> list[list[nn.Module]]:
    return _deeply_supervised(model).residual_branches()


def _deeply_supervised(model: nn.Module) -> DeeplySupervised:
    network = unwrapped(model)
    if not isinstance(network, DeeplySupervised):
        raise UserError(
            f"{type(network).__name__} is no DeeplySupervised network and has no "
            "residual_branches(): fixup and rezero serve densenet_ds, resnet_ds and subclasses"
        )
    return network
