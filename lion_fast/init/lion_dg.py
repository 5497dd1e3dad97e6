"""LION-DG: zero-initialised auxiliary heads, for networks of this package and for others.

A head's output layer is found by running the head, and before anything is changed the defining
property is verified on it: logits exactly 0, gradient to the head's input exactly 0, gradient to
the zeroed parameters not 0. Where that cannot hold, nothing is changed and UserError says why. Of
densenet_ds and resnet_ds, unaltered, the answer is known: they are not run.

What is zeroed of an output layer:

- a linear layer or a convolution (of any kernel, transposed too): weight and bias;
- an affine norm (linear + batch norm): gamma and beta. Zero weights in front of it would leave its
  beta as logits, and send a gradient through a variance of 0. Behind gamma = 0 nothing gets a
  gradient, while gamma's own is not 0: it plays the weight's part;
- a layer under weight_norm: its magnitudes g and its bias, whose gradients are not 0 either. The
  directions v start to move with the second step;
- parallel branches that end in a sum: the last layer of each.

Refused by name: layers under spectral_norm, tied to the main classifier or run outside their head,
run twice; frozen parameters; lazy layers and the meta device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lion_fast.errors import UserError
from lion_fast.init.calibration import (
    check_materialised,
    full_precision,
    unwrapped,
    without_a_trace,
)
from lion_fast.init.dry_run import guess_call, record_calls
from lion_fast.init.heads import HeadChoice, resolve_heads
from lion_fast.init.output_layer import OutputLayer, fill_, find_output_layer
from lion_fast.models import DenseNetDS, Head, ResNetDS


@dataclass(frozen=True)
class HeadReport:
    """One auxiliary head, as `lion_dg_` sees it."""

    name: str
    layers: tuple[str, ...]
    """Dotted names of its output layers: one, or one for each parallel branch."""
    parameters: tuple[str, ...]
    """Dotted names of the parameters that LION-DG zeroes."""
    zeroed: bool
    """Whether all of them are 0 now."""
    in_model: bool
    """Verified on the inputs' shapes of a run of the whole model, or known, for DenseNetDS and
    ResNetDS; else on guessed ones."""


@dataclass(frozen=True)
class LionDGReport:
    """Every auxiliary head of a model; `str()` is one line a head."""

    heads: tuple[HeadReport, ...]

    def __str__(self) -> str:
        lines = []
        for head in self.heads:
            state = "zero" if head.zeroed else "not zero"
            how = "" if head.in_model else " (run by itself)"
            lines.append(f"{head.name}: {', '.join(head.parameters)} {state}{how}")
        return "\n".join(lines)


def lion_dg_(
    model: nn.Module, heads: HeadChoice = None, *, example: Tensor | tuple[Any, ...] | None = None
) -> nn.Module:
    """Zero the output layer of every auxiliary head (LION-DG), and leave all else.

    arXiv 2601.02105, section 3.2. A head's logits are then 0, the gradient of its loss with respect
    to the backbone is exactly 0 (Proposition 1), and its weights grow linearly under gradient
    descent (Proposition 2). `lion_dg_report` says what it zeroes; the module's docstring says which
    parameters of which layers, and what is refused.

    heads: modules of the model or their dotted names; a ModuleList or ModuleDict stands for its
    members. By default heads of the usual names are found: aux1, aux_heads, auxiliary_head,
    aux_classifier, AuxLogits, deep_supervision and the like. The main classifier is never one.

    example: one batch of the model's inputs, a tensor or a tuple of arguments. Without it the model
    runs on made-up images; a model that cannot, or does not call its heads, has each head run by
    itself.

    Works through DataParallel, DistributedDataParallel and torch.compile. The run leaves no trace:
    random states, modes, running statistics and gradients are as before; only forward hooks notice.

    Raises UserError if no head is found, a name or module is not in the model, or a head cannot
    have the property; the model is then unchanged.
    """
    plans = _verified_plans(unwrapped(model), heads, example)
    with full_precision(model):
        for plan in plans:
            fill_(plan.parameters, [torch.zeros_like(value) for value in plan.parameters])
    return model


def lion_dg_report(
    model: nn.Module, heads: HeadChoice = None, *, example: Tensor | tuple[Any, ...] | None = None
) -> LionDGReport:
    """Return what `lion_dg_` with the same arguments zeroes, or has zeroed; change nothing.

    Raises UserError as `lion_dg_` does.
    """
    plans = _verified_plans(unwrapped(model), heads, example)
    return LionDGReport(tuple(plan.report for plan in plans))


class _Plan(NamedTuple):
    report: HeadReport
    parameters: list[nn.Parameter]


def _verified_plans(
    model: nn.Module, heads: HeadChoice, example: Tensor | tuple[Any, ...] | None
) -> list[_Plan]:
    check_materialised(model)
    found = resolve_heads(model, heads)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter.data_ptr(), []).append(name)
    if _known(model, found):
        outputs = {name: (_output_of(head), True) for name, head in found.items()}
    else:
        outputs = _found_by_running(model, found, example)
    plans = []
    for name, ((layers, parameters), in_model) in outputs.items():
        report = HeadReport(
            name,
            tuple(".".join(filter(None, (name, layer))) for layer in layers),
            tuple(_inside(name, names[p.data_ptr()]) for p in parameters),
            not any(p.any() for p in parameters),
            in_model,
        )
        plans.append(_Plan(report, parameters))
    _check_ties(plans, names)
    return plans


def _known(model: nn.Module, heads: dict[str, nn.Module]) -> bool:
    """Whether model and heads are this package's own, unaltered: tested once, they need no run."""
    plain = all(
        type(head) is Head
        and not parametrize.is_parametrized(head.linear)
        and set(dict(head.linear.named_parameters())) == {"weight", "bias"}
        and all(p.requires_grad for p in head.parameters())
        for head in heads.values()
    )
    return plain and type(model) in (DenseNetDS, ResNetDS)


def _output_of(head: nn.Module) -> OutputLayer:
    return OutputLayer(["linear"], list(head.parameters()))


def _found_by_running(
    model: nn.Module, heads: dict[str, nn.Module], example: Tensor | tuple[Any, ...] | None
) -> dict[str, tuple[OutputLayer, bool]]:
    """Return each head's output layer, and whether the model itself ran it."""
    outputs = {}
    with without_a_trace(model):
        calls = record_calls(model, heads, example)
        for name, head in heads.items():
            call = calls.get(name) or guess_call(name, head)
            outputs[name] = find_output_layer(name, head, call), call.in_model
    return outputs


def _inside(head: str, names: Sequence[str]) -> str:
    return next(name for name in names if name.startswith(f"{head}."))


def _check_ties(plans: Sequence[_Plan], names: dict[int, list[str]]) -> None:
    """Refuse to zero a parameter that is something else elsewhere."""
    for plan in plans:
        for parameter in plan.parameters:
            pointer = parameter.data_ptr()
            zeroed = [p.report.name for p in plans if pointer in map(Tensor.data_ptr, p.parameters)]
            for name in names[pointer]:
                if not name.startswith(tuple(f"{head}." for head in zeroed)):
                    raise UserError(
                        f"head {plan.report.name!r} is tied to {name!r}, which must not be "
                        "zeroed: give the head a parameter of its own"
                    )
