"""The weights of convolutions in the compute dtype, cast in one launch a step, not one a layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lion_fast.models import DeeplySupervised


class WeightCasts:
    """Casts what autocast would cast for `model`'s convolutions, for all of them at once.

    Autocast casts a weight where it is used and, in the backward, its gradient back: two kernels a
    layer, and in a captured step nothing may be kept from one to the next. Here both ways are one
    multi-tensor launch each, with the same bits: every convolution runs once, so that its gradient
    is one tensor in either dtype. Left to autocast are convolutions with a forward or weights of
    their own, weights that two modules share, and all of a network that does not promise to run
    each exactly once (`DeeplySupervised.runs_convolutions_once`).
    """

    def __init__(self, model: DeeplySupervised, dtype: torch.dtype) -> None:
        self._layers: list[_ConvNd] = []
        if model.runs_convolutions_once and dtype != torch.float32:
            seen = [p for m in model.modules() for p in m.parameters(recurse=False)]
            shared = {p for p in seen if sum(p is other for other in seen) > 1}
            self._layers = [
                layer
                for layer in model.modules()
                if _casts_its_weight(layer) and layer.weight not in shared
            ]
        self._dtype = dtype
        self._copies: list[nn.Parameter] = []

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Cast now, and let the convolutions inside read the copies."""
        weights = [layer.weight for layer in self._layers]
        if not weights:
            yield
            return
        if not self._copies:
            self._copies = [nn.Parameter(weight.detach().to(self._dtype)) for weight in weights]
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](self._copies), weights)
        for layer, weight, copy in zip(self._layers, weights, self._copies, strict=True):
            layer.weight = copy.requires_grad_(weight.requires_grad)
        try:
            yield
        finally:
            for layer, weight in zip(self._layers, weights, strict=True):
                layer.weight = weight

    def hand_back(self) -> None:
        """Give the weights the gradients that a backward left with the copies."""
        pairs = [
            (layer.weight, copy.grad)
            for layer, copy in zip(self._layers, self._copies, strict=False)
            if copy.grad is not None
        ]
        if not pairs:
            return
        grads = [torch.empty_like(weight) for weight, _ in pairs]
        torch._foreach_copy_(grads, [grad for _, grad in pairs])
        for (weight, _), grad in zip(pairs, grads, strict=True):
            weight.grad = grad
        for copy in self._copies:
            copy.grad = None


def _casts_its_weight(module: nn.Module) -> TypeGuard[_ConvNd]:
    """Whether it is a stock convolution of an fp32 weight, without a bias to cast."""
    return (
        isinstance(module, _ConvNd)
        and type(module).__module__ == _ConvNd.__module__
        and type(module.weight) is nn.Parameter
        and module.weight.dtype == torch.float32
        and module.bias is None
    )
