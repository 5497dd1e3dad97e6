"""A head's output layer: what of it is zeroed, and the check that this has LION-DG's property.

The property: behind the output layer every value is the same whatever the head reads, the gradient
to what it reads is exactly 0, and the gradient to every zeroed parameter is not.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import activation
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm

from lion_fast.errors import UserError
from lion_fast.init.outputs import Output
from lion_fast.init.trace import Trace, ancestors, gradients_of

_ACTIVATIONS = (
    *("softmax", "logsoftmax", "sigmoid", "logsigmoid", "tanh", "softplus"),
    *("relu", "hardtanh", "clamp", "clampmin", "gelu", "silu", "elu", "leakyrelu"),
)
"""Graph nodes of torch's activation functions, without "Backward0"."""

Bias = str | Tensor
"""What becomes of a zeroed layer's bias: "zero", "keep", or K values."""


class OutputLayer(NamedTuple):
    """What LION-DG sets in one head: the layers that its outputs reach first."""

    layers: list[nn.Module]
    weights: list[nn.Parameter]
    biases: list[nn.Parameter]

    def parameters(self, bias: Bias) -> list[nn.Parameter]:
        """Return what becomes 0."""
        return self.weights + (self.biases if isinstance(bias, str) and bias == "zero" else [])


@dataclass
class FoundHead:
    """An auxiliary head of a model."""

    name: str
    module: nn.Module | None
    """None where the head is known by its output layers alone."""
    outputs: list[Output]
    """What of the model's outputs it gives."""
    options: list[OutputLayer]
    """Output layers that it may have, to be tried in this order."""
    names: dict[nn.Module, str]
    """Dotted names of the modules that a message or a report may speak of."""
    option: OutputLayer | None = None
    """The one that has the property."""
    in_model: bool = True
    """Whether the model itself ran it."""
    is_called: bool = False
    """Whether that was as a module, and not layer by layer."""
    reason: str = "no parameter of its own reaches its output"

    def named(self, modules: Iterable[nn.Module]) -> str:
        """Return quoted names of modules."""
        return " and ".join(repr(self.names[module]) for module in modules)


def check_bias(bias: Bias) -> None:
    """Raise UserError unless bias is "zero", "keep" or a vector of finite numbers."""
    if isinstance(bias, Tensor):
        if bias.ndim != 1 or not bias.is_floating_point() or not bias.isfinite().all():
            raise UserError(
                f"bias has shape {tuple(bias.shape)} and dtype {bias.dtype}: "
                "give one finite log frequency a class, a float tensor (K,)"
            )
    elif bias not in ("zero", "keep"):
        raise UserError(f"bias={bias!r} is unknown: pass 'zero', 'keep' or a tensor (K,)")


def output_layer(
    head: FoundHead, layers: Sequence[nn.Module], loose: Sequence[nn.Parameter]
) -> OutputLayer:
    """Return what is zeroed of layers and of parameters met on the way to them."""
    weights, biases = [], []
    for layer in layers:
        of_weight, of_bias = _parameters(head, layer)
        weights += of_weight
        biases += of_bias
    matrices = [p for p in loose if p.ndim > 1]
    vectors = [p for p in loose if p.ndim <= 1]
    if not weights and not matrices:
        return OutputLayer(list(layers), vectors, biases)
    return OutputLayer(list(layers), weights + matrices, biases + vectors)


def _parameters(head: FoundHead, layer: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters that make the layer's output constant at zero, and its biases."""
    own = dict(layer.named_parameters(recurse=False))
    # The direction of the old torch.nn.utils.weight_norm: zero magnitudes do, zero / zero does not.
    for key in [key for key in own if key.endswith("_v") and f"{key[:-2]}_g" in own]:
        del own[key]
    if parametrize.is_parametrized(layer):
        for key, parts in layer.parametrizations.items():  # type: ignore[union-attr, operator]
            originals = dict(parts.named_parameters(recurse=False))
            if any(isinstance(part, _WeightNorm) for part in parts):
                originals = {"original0": originals["original0"]}
            own |= {f"{key}.{part}": value for part, value in originals.items()}
    if not own:
        raise UserError(
            f"head {head.name!r} ends in {head.named([layer])}, a {type(layer).__name__} without "
            "parameters to zero: give it affine=True or take it out"
        )
    biases = [value for key, value in own.items() if key.split(".")[0] == "bias"]
    if not biases and any(value.ndim > 1 for value in own.values()):
        biases = [value for value in own.values() if value.ndim <= 1 and not _is_norm(layer)]
    if len(biases) == len(own):
        return biases, []
    ids = set(map(id, biases))
    return [value for value in own.values() if id(value) not in ids], biases


def _is_norm(layer: nn.Module) -> bool:
    # Magnitudes of weight_norm are vectors too for some layers, and no bias.
    return parametrize.is_parametrized(layer) or any(
        key.endswith("_g") for key, _ in layer.named_parameters(recurse=False)
    )


def settings(head: FoundHead, option: OutputLayer, bias: Bias) -> list[tuple[nn.Parameter, Tensor]]:
    """Return what each parameter of an output layer is set to.

    Raises UserError where `bias` is a tensor that does not fit.
    """
    pairs = [(weight, torch.zeros_like(weight)) for weight in option.weights]
    if isinstance(bias, Tensor):
        if not option.biases:
            raise UserError(
                f"head {head.name!r} has no bias to set: give {head.named(option.layers)} one, "
                "or leave bias="
            )
        first, *others = option.biases
        if first.numel() != bias.numel():
            raise UserError(
                f"bias has {bias.numel()} values, but {head.named(option.layers)} of head "
                f"{head.name!r} gives {first.numel()}: pass one for each"
            )
        pairs.append((first, bias.to(first).reshape(first.shape)))
        # Parallel branches add up.
        pairs += [(other, torch.zeros_like(other)) for other in others]
    elif bias == "zero":
        pairs += [(value, torch.zeros_like(value)) for value in option.biases]
    return pairs


@contextmanager
def holding(pairs: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Let parameters have other values inside."""
    before = [(parameter, parameter.detach().clone()) for parameter, _ in pairs]
    set_(pairs)
    try:
        yield
    finally:
        set_(before)


@torch.no_grad()
def set_(pairs: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
    """Write values into parameters."""
    for parameter, value in pairs:
        parameter.copy_(value)


def check_frozen(
    head: FoundHead, option: OutputLayer, bias: Bias, frozen: set[nn.Parameter]
) -> None:
    """Raise UserError if what would become 0 could never leave it."""
    stuck = set(option.parameters(bias)) & frozen
    if stuck:
        inside = [(head.names[layer], layer) for layer in option.layers]
        found = {p: f"{n}.{k}" for n, layer in inside for k, p in layer.named_parameters()}
        listed = " and ".join(repr(found.get(p, "a parameter")) for p in found if p in stuck)
        raise UserError(
            f"head {head.name!r}: frozen {listed or 'parameters'} would stay 0 for ever: "
            "call requires_grad_(True) on it, or leave the head out"
        )


def broken(
    trace: Trace,
    head: FoundHead,
    option: OutputLayer,
    bias: Bias,
    shared: set[nn.Module],
    *,
    layers_alone: bool = False,
) -> str | None:
    """Return what is wrong with a head in a run with its output layer zeroed; None if nothing is.

    shared: the main output's layers; an output that also reaches these, such as a total of losses,
    has a gradient elsewhere that is not the head's. layers_alone: judge the output layer's logits,
    not those that the head makes of them.
    """
    own = {index for index, call in enumerate(trace.calls) if call.layer in option.layers}
    of_layers = [t for index in own for t in trace.calls[index].outputs]
    of_head = [t for call in trace.heads.get(head.name, []) for t in call.outputs]
    results = of_layers if layers_alone else of_head or of_layers
    values = _values(trace, head) or [value for value in results if value.requires_grad]
    if not values:
        return "no gradient reaches it"
    if not all(result.isfinite().all() for result in results):
        return "its logits are not finite"
    if isinstance(bias, str) and bias == "zero" and any(result.any() for result in results):
        return "its logits are not 0"
    set_here = [*option.weights, *option.biases]
    elsewhere: list[Any] = [leaf for c in trace.heads.get(head.name, []) for leaf in c.leaves]
    elsewhere += [t for index in own for t in trace.calls[index].inputs if t.requires_grad]
    for value in values:
        calls, loose = trace.reached(value)
        if not shared & {trace.calls[index].layer for index in calls}:
            elsewhere += [e for i in calls if i not in own for e in trace.calls[i].edges]
            elsewhere += [p for p in loose if not any(p is q for q in set_here)]
    weights = option.parameters(bias)
    gradients = gradients_of(values, [*elsewhere, *weights])
    to_weights = gradients[len(elsewhere) :]
    if any(g is not None and (g != 0).any() for g in gradients[: len(elsewhere)]):
        return "the gradient to what it reads is not 0"
    if any(gradient is None or not gradient.any() for gradient in to_weights):
        return "its weights get no gradient and would stay 0"
    if not all(gradient.isfinite().all() for gradient in to_weights if gradient is not None):
        return "its weights' gradient is not finite"
    return None


def _values(trace: Trace, head: FoundHead) -> list[Tensor]:
    given = [output.value_in(trace.output) for output in head.outputs]
    return [value for value in given if value is not None and value.requires_grad]


def activation_behind(trace: Trace, head: FoundHead, option: OutputLayer) -> str | None:
    """Return the name of an activation between a head's output layer and its outputs."""
    values = _values(trace, head) or [t for c in trace.heads.get(head.name, []) for t in c.outputs]
    stop = {e.node for c in trace.calls if c.layer in option.layers for e in c.edges}
    starts = [value.grad_fn for value in values if value.requires_grad]
    kinds = {node.name().partition("Backward")[0].lower() for node in ancestors(starts, stop)}
    modules = {} if head.module is None else dict(head.names)
    for module, name in reversed(modules.items()):
        if (
            type(module).__module__ == activation.__name__
            and type(module).__name__.lower() in kinds
        ):
            return f"{type(module).__name__} {name!r}"
    return next((f"{kind}()" for kind in _ACTIVATIONS if kind in kinds), None)


def remedy(head: FoundHead, layers: Sequence[nn.Module], behind: str | None, alone: bool) -> str:
    """Return the message for a head without the property.

    layers: its output layers. behind: the activation behind these. alone: they have the property
    by themselves.
    """
    for layer in head.module.modules() if head.module is not None else layers:
        if _is_spectral(layer):
            return (
                f"head {head.name!r}: spectral_norm divides {head.named([layer])} by its norm, "
                "which is 0 for a zeroed one: remove spectral_norm from it first"
            )
    message = f"head {head.name!r} cannot be zeroed: {head.reason}. "
    if behind:
        message += f"{behind} stands behind its output layer: leave that to the loss"
        if alone:
            message += f", or name {head.named(layers)} itself as the head"
        return message
    return message + (
        "Let its last layer be a linear layer or a convolution that runs once, with nothing behind "
        "it that adds to the logits"
    )


def _is_spectral(layer: nn.Module) -> bool:
    if hasattr(layer, "weight_orig") and hasattr(layer, "weight_u"):
        return True
    return any(isinstance(part, _SpectralNorm) for part in layer.modules()) and (
        parametrize.is_parametrized(layer)
    )
