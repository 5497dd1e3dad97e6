"""Which parameters of a model LION-DG sets, found and verified before any is.

Networks of this package, unaltered, are known. Others are run: on the caller's example or on
made-up inputs, once to find the heads and once with these zeroed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lion_fast.errors import UserError
from lion_fast.init.calibration import (
    check_materialised,
    full_precision,
    unwrapped,
    without_a_trace,
)
from lion_fast.init.choice import choose
from lion_fast.init.example import Example, Inputs
from lion_fast.init.heads import HeadChoice, hint, named_heads, usual_heads
from lion_fast.init.main_output import Kept
from lion_fast.init.output_layer import Bias, FoundHead, OutputLayer, check_bias, set_, settings
from lion_fast.init.outputs import Main, Outputs
from lion_fast.init.replay import Recording
from lion_fast.init.trace import HeadCall
from lion_fast.init.verify import first_run, guess_call, verify, verify_alone
from lion_fast.models import DenseNetDS, Head, ResNetDS


@dataclass(frozen=True)
class Plan:
    """The heads of a model that can be zeroed, each with its verified output layer."""

    heads: list[FoundHead]
    pairs: list[tuple[nn.Parameter, Tensor]]
    """Parameters, and what they are set to."""


def zero_(model: nn.Module, plan: Plan) -> None:
    """Set what a plan says."""
    with full_precision(model):
        set_(plan.pairs)


def plan_heads(
    model: nn.Module,
    heads: HeadChoice = None,
    *,
    main: Main = None,
    bias: Bias = "zero",
    example: Example = None,
) -> Plan:
    """Find and verify the heads of a model; change nothing. See `lion_dg_`.

    A bias that is kept is set to its present value.
    """
    model = unwrapped(model)
    check_materialised(model)
    check_bias(bias)
    named = usual_heads(model) if heads is None else named_heads(model, heads)
    if _is_known(model, named):
        found = _known_heads(model, named, main)
        _check_ties(model, found)
    else:
        frozen: set[nn.Parameter] = {p for p in model.parameters() if not p.requires_grad}
        with without_a_trace(model):
            chosen = _chosen_by_running(model, named, main, example, explicit=heads is not None)
            _verify(model, chosen, bias, example, frozen)
        found = chosen.heads
    pairs: list[tuple[nn.Parameter, Tensor]] = []
    for head in found:
        assert head.option is not None
        pairs += settings(head, head.option, bias)
        if isinstance(bias, str) and bias == "keep":
            pairs += [(kept, kept.detach().clone()) for kept in head.option.biases]
    return Plan(found, pairs)


def parameter_names(model: nn.Module) -> dict[int, list[str]]:
    """Return every name of the parameters at each address."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter.data_ptr(), []).append(name)
    return names


def _is_known(model: nn.Module, heads: dict[str, nn.Module]) -> bool:
    """Whether model and heads are this package's own, unaltered: tested once, they need no run."""
    plain = all(
        type(head) is Head
        and not parametrize.is_parametrized(head.linear)
        and set(dict(head.linear.named_parameters())) == {"weight", "bias"}
        and all(p.requires_grad for p in head.parameters())
        for head in heads.values()
    )
    return plain and type(model) in (DenseNetDS, ResNetDS)


def _known_heads(model: nn.Module, heads: dict[str, nn.Module], main: Main) -> list[FoundHead]:
    assert isinstance(model, (DenseNetDS, ResNetDS))
    last = len(model.heads.aux)
    if main not in (None, -1, last, str(last)):
        raise UserError(f"main={main!r} is no main output of {type(model).__name__}: pass -1")
    found = []
    for name, module in heads.items():
        assert isinstance(module, Head)
        if module is model.heads.main:
            raise UserError(
                f"head {name!r} gives or feeds the model's main output: name auxiliary ones"
            )
        linear = module.linear
        weight, bias = linear.parameters()
        option = OutputLayer([linear], [weight], [bias])
        names: dict[nn.Module, str] = {linear: f"{name}.linear"}
        found.append(FoundHead(name, module, [], [option], names, option))
    return found


class _Chosen(NamedTuple):
    """The heads that one run of a model shows."""

    heads: list[FoundHead]
    kept: Kept
    kept_layers: set[nn.Module]
    inputs: Inputs | None
    """What the model runs on; None for a model without a forward."""
    calls: dict[str, HeadCall]
    """The first call of each head that was called as a module."""
    recording: Recording | None


def _chosen_by_running(
    model: nn.Module, named: dict[str, nn.Module], main: Main, example: Example, *, explicit: bool
) -> _Chosen:
    with first_run(model, named, example) as run:
        if isinstance(run, str):
            return _without_a_run(model, named, run)
        inputs, trace = run
        outputs = Outputs(trace, {module: name for name, module in model.named_modules()})
        heads, kept = choose(outputs, inputs, named, main, explicit=explicit)
        layers = {trace.calls[index].layer for index in kept.calls}
        # Without the graph, which would hold every activation while the model runs again.
        calls = {
            name: calls[0]._replace(leaves=[], outputs=[])
            for name, calls in trace.heads.items()
            if calls
        }
        outputs.forget_graph()
        for head in heads:
            head.is_called = head.name in calls
        return _Chosen(heads, kept, layers, inputs, calls, trace.recording)


def _without_a_run(model: nn.Module, named: dict[str, nn.Module], reason: str) -> _Chosen:
    """Return named heads to be run by themselves, where the model has no forward to run."""
    kind = type(model).__name__
    if type(model).forward is not nn.Module.forward:
        what = f"cannot run head {next(iter(named))!r} in {kind}" if named else f"cannot run {kind}"
        raise UserError(
            f"{what}, which takes no made-up images ({reason}): "
            "pass example=, one batch of the model's inputs"
        )
    if not named:
        raise UserError(f"no auxiliary heads found: {hint(model)}")
    heads = []
    for name, module in named.items():
        names = {m: ".".join(filter(None, (name, n))) for n, m in module.named_modules()}
        heads.append(FoundHead(name, module, [], [], names))
    return _Chosen(heads, Kept([], [], certain=False), set(), None, {}, None)


def _verify(
    model: nn.Module, chosen: _Chosen, bias: Bias, example: Example, frozen: set[nn.Parameter]
) -> None:
    """Give each chosen head an output layer that has the property."""
    _check_ties(model, chosen.heads)
    returned = [head for head in chosen.heads if head.outputs]
    if returned:
        assert chosen.inputs is not None
        known = (chosen.kept, chosen.kept_layers, chosen.recording)
        verify(model, chosen.inputs, returned, bias, frozen, *known)
    shapes = [output.value.shape for output in chosen.kept.outputs if output.value.ndim > 1]
    for head in chosen.heads:
        if not head.outputs:
            call = chosen.calls.get(head.name)
            head.in_model = call is not None
            call = call or guess_call(head, example, shapes[0][1] if shapes else None)
            verify_alone(head, call, bias, frozen)
    _check_ties(model, chosen.heads)


def _check_ties(model: nn.Module, heads: Sequence[FoundHead]) -> None:
    """Refuse to zero a parameter that is something else elsewhere.

    A second name of the same module is nothing else: MONAI's DynUNet has its heads in two places.
    """
    names = parameter_names(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    options = [(head, head.option or head.options[0]) for head in heads if head.options]
    layers = {m for _, option in options for layer in option.layers for m in layer.modules()}
    for head, option in options:
        for parameter in option.weights + option.biases:
            owners = {
                name: modules[name.rpartition(".")[0]] for name in names[parameter.data_ptr()]
            }
            elsewhere = [name for name, owner in owners.items() if owner not in layers]
            # Met on the way, not in a layer: its one owner is no other use.
            if elsewhere and len(set(owners.values())) > 1:
                raise UserError(
                    f"head {head.name!r} is tied to {elsewhere[0]!r}, which must not be "
                    "zeroed: give the head a parameter of its own"
                )
