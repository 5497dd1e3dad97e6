"""Class priors: biases with which a head that knows nothing yet tells how common each class is."""

import torch
from torch import Tensor

from lion_fast.errors import UserError
from lion_fast.models import DeeplySupervised


def log_frequencies(counts: Tensor) -> Tensor:
    """Return the logarithm of each class's share, (K,) float32, of (K,) counts.

    A class that never occurs is taken to occur once. Raises UserError on counts of nothing.
    """
    if counts.ndim != 1 or not counts.any():
        raise UserError(f"counts are {counts.tolist()}: give (K,), of which some are not 0")
    some = counts.clamp(min=1).double()
    return (some / some.sum()).log().float()


@torch.no_grad()
def prior_bias_(model: DeeplySupervised, log_prior: Tensor) -> DeeplySupervised:
    """Set the bias of every auxiliary head of a network of this package to `log_prior` (K,).

    To be called after an initialiser, which sets biases to 0. With `lion_dg_` the gradient that
    heads send to the backbone stays exactly 0; of other networks `lion_dg_(model,
    bias=log_prior)` sets the same.
    """
    *aux, _ = model.heads.weights_and_biases()[1]
    for bias in aux:
        if bias.shape != log_prior.shape:
            raise UserError(
                f"the prior is of {len(log_prior)} classes and the heads tell {len(bias)} apart"
            )
        bias.copy_(log_prior)
    return model
