"""Which of a model's outputs is the main one: said, told by evaluation mode or a key, or unknown.

Nothing is guessed. Where heads are named and the main output is not known, every output that they
do not give is kept as if it were the main one; where a head may be the main one itself, UserError
asks for `main=`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from lion_fast.errors import UserError
from lion_fast.init.calibration import evaluation
from lion_fast.init.example import MISFIT, Inputs
from lion_fast.init.heads import is_usual
from lion_fast.init.output_layer import FoundHead
from lion_fast.init.outputs import Main, Output, Outputs, main_by_key
from lion_fast.init.state import untouched
from lion_fast.init.trace import Trace


class Kept(NamedTuple):
    """What must stay as it is."""

    outputs: list[Output]
    calls: list[int]
    """Layer calls that give the main output, as indices into the trace's."""
    certain: bool
    """Whether all other outputs are auxiliary ones."""


def kept_output(
    model: nn.Module, outputs: Outputs, inputs: Inputs, heads: Sequence[FoundHead], main: Main
) -> Kept | None:
    """Return the main output, or all that may be; None where that is unknown and no head is named.

    Raises UserError where one of the heads may give the main output itself.
    """
    if main is not None:
        return _of(outputs.chosen(main), certain=True)
    told = _layers_in_evaluation(model, outputs, inputs)
    found = [output for output in outputs.items if told and outputs.layers(output) == told]
    for other in found[1:]:
        if not outputs.of_one_source(found[0], other):
            raise UserError(shared_by_levels(outputs, found[0], other))
    if found:
        return _of(found, certain=True)
    totals = [o for o in outputs.items if o.value.ndim == 0 and told and told < outputs.layers(o)]
    if totals:
        calls = {i for o in totals for i in o.calls if outputs.trace.calls[i].layer in told}
        return Kept([], sorted(calls), certain=True)
    if len(outputs.items) == 1 and (outputs.items[0].value.ndim or len(outputs.items[0].calls) < 2):
        return _of(outputs.items, certain=True)
    key = main_by_key(model, outputs.trace.output)
    found = [output for output in outputs.items if output.path[:1] == (key,)]
    if found:
        return _of(found, certain=False)
    return _all_but(outputs, heads) if heads else None


def unknown(outputs: Outputs) -> UserError:
    """Return the error that asks for `main=`."""
    kind = type(outputs.trace.module).__name__
    return UserError(
        f"which output of {kind} is the main one is not known: pass {outputs.listed()}"
    )


def shared_by_levels(outputs: Outputs, output: Output, other: Output) -> str:
    """Return the message for two outputs of one classifier."""
    return (
        f"{outputs.givers(output)} gives outputs {output.main!r} and {other.main!r}: a classifier "
        "that is shared by levels cannot be zeroed for some of them. Give each level its own"
    )


def _of(outputs: list[Output], certain: bool) -> Kept:
    return Kept(outputs, sorted({index for o in outputs for index in o.calls}), certain)


def _layers_in_evaluation(model: nn.Module, outputs: Outputs, inputs: Inputs) -> set[nn.Module]:
    """Return the layers that give evaluation mode's only output; none where it has several."""
    if inputs.kwargs.get("mode") == "loss":
        # OpenMMLab's mode that returns what the decode head gives.
        inputs = Inputs(inputs.args, {**inputs.kwargs, "mode": "tensor"})
    with untouched(model), evaluation(model):
        try:
            trace = Trace(model, inputs)
        except MISFIT:
            return set()
        found = Outputs(trace, outputs.names)
        return found.layers(found.items[0]) if len(found.items) == 1 else set()


def _all_but(outputs: Outputs, heads: Sequence[FoundHead]) -> Kept:
    """Keep every output that the named heads do not give."""
    given = [o for o in outputs.items if any(o in head.outputs for head in heads)]
    rest = [output for output in outputs.items if output not in given]
    if not given:
        return _of(rest, certain=False)
    usual = all(is_usual(head.name) for head in heads)
    own = {layer for head in heads if head.module for layer in head.module.modules()}
    mixed = [output for output in given if not outputs.layers(output) <= own]
    pure = [output for output in given if output not in mixed]
    totals = [output for output in mixed if output.value.ndim == 0]
    if not rest and totals and usual:
        calls = {i for o in totals for i in o.calls if outputs.trace.calls[i].layer not in own}
        return Kept([], sorted(calls), certain=False)
    fused = any(set(p.calls) < set(m.calls) for p in pure for m in mixed if m.value.ndim)
    if not rest or fused:
        raise unknown(outputs)
    if not usual and not _is_clear(outputs, pure or given, rest):
        raise unknown(outputs)
    return _of(rest, certain=False)


def _is_clear(outputs: Outputs, given: list[Output], rest: list[Output]) -> bool:
    """Whether heads of any name leave one output that is no auxiliary one.

    All but one of three or more outputs say so, if none of theirs is larger than that one; so does
    the smaller of two, for a main output has the full resolution.
    """
    if len({frozenset(outputs.layers(output)) for output in rest}) > 1:
        return False
    if any(is_usual(outputs.givers(output).replace("'", "")) for output in rest):
        return False
    largest_given = max(output.value.numel() for output in given)
    largest = max(output.value.numel() for output in rest)
    return largest > largest_given or (largest == largest_given and len(given) > 1)
