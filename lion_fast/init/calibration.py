"""The mode in which data-driven initialisers run a model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch as in training, but with dropout off and running statistics untouched.

    The model's own modes return afterwards.
    """
    training = [(module, module.training) for module in model.modules()]
    tracking = [
        (module, module.track_running_stats)
        for module in model.modules()
        if isinstance(module, _NormBase)
    ]
    try:
        model.train()
        for module, _ in training:
            if isinstance(module, _DropoutNd):
                module.eval()
        for norm, _ in tracking:
            norm.track_running_stats = False
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for norm, mode in tracking:
            norm.track_running_stats = mode
