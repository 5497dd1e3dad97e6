"""What a run's layers gave, for a second run: the same layer on the same input gives the same.

With its heads zeroed a network then costs its norms and activations alone, and its main output can
differ only where a layer was given something else.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lion_fast.init.variance import WEIGHT_LAYERS


class _Seen(NamedTuple):
    """A tensor, and how often it had been written into."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> "_Seen":
        # Without its graph, but with the same storage and count.
        return cls(tensor.detach(), tensor._version)

    def is_intact(self) -> bool:
        return self.tensor._version == self.version


class _Call(NamedTuple):
    parameters: list[_Seen]
    input: _Seen
    output: _Seen


class Recording:
    """Calls of torch.nn's convolutions and linear layers, each given out once, in their order.

    A call is given out only while its layer's parameters are the same tensors, and neither these
    nor its input and output have been written into since.
    """

    def __init__(self) -> None:
        self._calls: dict[nn.Module, deque[_Call]] = {}

    def note(self, layer: nn.Module, inputs: list[Tensor], output: object) -> None:
        """Keep a call, if it is of a kind that can be given out again."""
        if not (_is_plain(layer) and len(inputs) == 1 and isinstance(output, Tensor)):
            return
        tensors = [*_parameters(layer), *inputs, output]
        if not any(tensor.is_inference() for tensor in tensors):
            *parameters, given, result = map(_Seen.of, tensors)
            self._calls.setdefault(layer, deque()).append(_Call(parameters, given, result))

    def output(self, layer: nn.Module, inputs: list[Tensor]) -> Tensor | None:
        """Return the output of a layer's next call, to be followed by gradients, if it is known."""
        if not self._calls.get(layer):
            return None
        call = self._calls[layer].popleft()
        parameters = _parameters(layer)
        same = len(inputs) == 1 and len(parameters) == len(call.parameters)
        same = same and all(
            seen.is_intact() and seen.tensor.data_ptr() == parameter.data_ptr()
            for seen, parameter in zip(call.parameters, parameters, strict=True)
        )
        if not (same and call.input.is_intact() and call.output.is_intact()):
            return None
        if not _equal(call.input.tensor, inputs[0]):
            return None
        # A copy, since a leaf may not be written into, as the next layer may do.
        return call.output.tensor.requires_grad_().clone()


def _is_plain(layer: nn.Module) -> bool:
    # By its module: parametrized layers and others' own kinds may do more than a layer does.
    return isinstance(layer, WEIGHT_LAYERS) and type(layer).__module__.startswith("torch.nn.")


def _parameters(layer: nn.Module) -> list[Tensor]:
    return [p for p in (layer.weight, layer.bias) if isinstance(p, Tensor)]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
