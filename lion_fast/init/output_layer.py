"""A head's output layer: the one that its logits depend on first, whatever stands behind it.

It is read off the autograd graph of one call, from the logits backwards: pooling, flattening,
upsampling, dropout and reshaping are passed, the first linear layer, convolution or affine norm is
it. Parallel branches have one each.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import activation
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm

from lion_fast.errors import UserError
from lion_fast.init.dry_run import Call, HeadRun, ancestors, run_head
from lion_fast.init.heads import is_weight_layer
from lion_fast.init.variance import NORMS


class OutputLayer(NamedTuple):
    """What LION-DG zeroes in one head."""

    layers: list[str]
    """Names inside the head; "" for the head itself."""
    parameters: list[nn.Parameter]


def find_output_layer(name: str, head: nn.Module, call: Call) -> OutputLayer:
    """Return the layers of a head whose parameters, at zero, have the defining property.

    The property: the head's outputs are exactly 0, so is the gradient to its inputs, and the
    gradient to every zeroed parameter is not. All parameters are left as they were.

    Raises UserError naming the remedy where no output layer has it.
    """
    reason = "no parameter of its own reaches its output"
    for known_only, with_loose in ((False, False), (True, False), (True, True)):
        names, parameters = _first_reached(name, head, call, known_only, with_loose)
        if not parameters:
            continue
        broken = _broken_property(name, head, call, parameters)
        if broken is None:
            return OutputLayer(names, parameters)
        layer = f"with {_joined(name, names)} zeroed " if names else ""
        reason = f"{layer}{broken}"
    raise UserError(_remedy(name, head, reason))


def _first_reached(
    name: str, head: nn.Module, call: Call, known_only: bool, with_loose: bool
) -> tuple[list[str], list[nn.Parameter]]:
    """Return names and parameters of the layers that the outputs reach first.

    known_only: pass modules that are not torch.nn's own layers. with_loose: also return parameters
    of the head that are met on the way, such as a bias that its forward adds.
    """
    names = {m: n for n, m in head.named_modules() if _is_candidate(m, known_only)}
    produced: dict[Any, nn.Module] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            produced.setdefault(output.grad_fn, module)

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        run = run_head(head, call)
    finally:
        for hook in hooks:
            hook.remove()
    reached, loose = set(), []
    own = set(head.parameters())
    for node in ancestors([output.grad_fn for output in run.outputs], stop=produced):
        if node in produced:
            reached.add(produced[node])
        elif getattr(node, "variable", None) in own:
            loose.append(node.variable)
    layers = [module for module in names if module in reached]
    parameters = [p for layer in layers for p in _zeroed(name, names[layer], layer)]
    return [names[layer] for layer in layers], parameters + (loose if with_loose else [])


def _is_candidate(module: nn.Module, known_only: bool) -> bool:
    if is_weight_layer(module) or isinstance(module, (*NORMS, nn.RMSNorm)):
        return True
    own_kind = type(module).__module__ != activation.__name__
    leaf = next(module.children(), None) is None
    return not known_only and own_kind and leaf and next(module.parameters(), None) is not None


def _zeroed(head: str, name: str, layer: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that make the layer's output zero when they are."""
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
            f"head {head!r} ends in {_joined(head, [name])}, a {type(layer).__name__} without "
            "parameters to zero: give it affine=True or take it out"
        )
    return list(own.values())


def _broken_property(
    name: str, head: nn.Module, call: Call, parameters: Sequence[nn.Parameter]
) -> str | None:
    """Return what is wrong with the head while these parameters are 0, None if nothing is."""
    chosen = {p for p in parameters if not p.requires_grad}
    frozen = [key for key, p in head.named_parameters() if p in chosen]
    if frozen:
        raise UserError(
            f"head {name!r}: frozen {_joined(name, frozen)} would stay 0 for ever: "
            "call requires_grad_(True) on it, or leave the head out"
        )
    before = [parameter.detach().clone() for parameter in parameters]
    fill_(parameters, [torch.zeros_like(value) for value in before])
    try:
        return _broken(run_head(head, call), parameters)
    finally:
        fill_(parameters, before)


@torch.no_grad()
def fill_(parameters: Iterable[nn.Parameter], values: Iterable[Tensor]) -> None:
    """Write values into parameters."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _broken(run: HeadRun, parameters: Sequence[nn.Parameter]) -> str | None:
    outputs = [output for output in run.outputs if output.requires_grad]
    if not outputs:
        return "no gradient reaches it"
    if not all(output.isfinite().all() for output in run.outputs):
        return "its logits are not finite"
    if any(output.any() for output in run.outputs):
        return "its logits are not 0"
    # A scalar, since autograd imports sympy (seconds) when it is handed gradients of tensors.
    downstream = torch.stack([(output * torch.randn_like(output)).sum() for output in outputs])
    gradients = torch.autograd.grad(downstream.sum(), [*run.inputs, *parameters], allow_unused=True)
    to_inputs, to_parameters = gradients[: len(run.inputs)], gradients[len(run.inputs) :]
    if any(gradient is not None and (gradient != 0).any() for gradient in to_inputs):
        return "the gradient to its input is not 0"
    if any(gradient is None or not gradient.any() for gradient in to_parameters):
        return "its weights get no gradient and would stay 0"
    if not all(gradient.isfinite().all() for gradient in to_parameters if gradient is not None):
        return "its weights' gradient is not finite"
    return None


def _remedy(name: str, head: nn.Module, reason: str) -> str:
    for layer_name, layer in head.named_modules():
        if _is_spectral(layer):
            return (
                f"head {name!r}: spectral_norm divides {_joined(name, [layer_name])} by its norm, "
                "which is 0 for a zeroed one: remove spectral_norm from it first"
            )
    return (
        f"head {name!r} cannot be zeroed: {reason}. Let its last layer be a linear layer or a "
        "convolution that runs once, with nothing behind it that adds to the logits"
    )


def _is_spectral(layer: nn.Module) -> bool:
    if hasattr(layer, "weight_orig") and hasattr(layer, "weight_u"):
        return True
    return any(isinstance(part, _SpectralNorm) for part in layer.modules()) and (
        parametrize.is_parametrized(layer)
    )


def _joined(head: str, names: Iterable[str]) -> str:
    return " and ".join(repr(".".join(filter(None, (head, name)))) for name in names)
