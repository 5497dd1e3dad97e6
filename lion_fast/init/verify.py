"""Runs a model, or a head by itself, and holds each head against LION-DG's property.

Everything here runs inside `calibration.without_a_trace`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lion_fast.errors import UserError
from lion_fast.init.choice import Judge
from lion_fast.init.example import (
    BATCH,
    MISFIT,
    Example,
    Inputs,
    input_shapes,
    inputs_of,
    is_weight_layer,
    made_up,
    smaller,
)
from lion_fast.init.main_output import Kept
from lion_fast.init.output_layer import (
    Bias,
    FoundHead,
    activation_behind,
    broken,
    check_frozen,
    holding,
    remedy,
    settings,
)
from lion_fast.init.outputs import Outputs
from lion_fast.init.replay import Recording
from lion_fast.init.state import untouched
from lion_fast.init.trace import HeadCall, Trace


@contextmanager
def first_run(
    model: nn.Module, heads: dict[str, nn.Module], example: Example
) -> Iterator[tuple[Inputs, Trace] | str]:
    """Run a model on the example, or on made-up inputs of several sizes until it runs.

    Gives the inputs and the run, or why there is none without an example. Raises UserError if the
    model does not run on the example.
    """
    given = None if example is None else inputs_of(model, example)
    tries = made_up(model) if given is None else iter([*smaller(given), given])
    reason = "it has no linear layer and no convolution"
    for inputs in tries:
        with ExitStack() as stack:
            stack.enter_context(untouched(model))
            try:
                trace = Trace(model, inputs, heads)
            except MISFIT as error:
                if inputs is given:
                    raise UserError(
                        f"{type(model).__name__} does not run on the example: {error}"
                    ) from error
                reason = str(error)
                continue
            yield inputs, trace
            return
    yield reason


def verify(
    model: nn.Module,
    inputs: Inputs,
    heads: Sequence[FoundHead],
    bias: Bias,
    frozen: set[nn.Parameter],
    kept: Kept,
    kept_layers: set[nn.Module],
    recording: Recording | None = None,
) -> None:
    """Give each head the first of its options that has the property.

    kept: what must be the same with all heads zeroed; its outputs hold their values. recording: of
    the run that gave these.

    Raises UserError for a head without one, and if zeroing the heads changes a kept output.
    """
    modules = {head.name: head.module for head in heads if head.module is not None}
    waiting = list(heads)
    while waiting:
        for head in waiting:
            head.option = head.options[0]
            check_frozen(head, head.option, bias, frozen)
        pairs = [
            pair for head in heads if head.option for pair in settings(head, head.option, bias)
        ]
        with holding(pairs), untouched(model):
            trace = Trace(model, inputs, modules, cut=_cuts(heads), replay=recording)
            waiting = [head for head in waiting if not _holds(trace, head, bias, kept_layers)]
            values = [output.value_in(trace.output) for output in kept.outputs]
    if not all(map(_same, values, [output.value for output in kept.outputs])):
        _check_kept(model, inputs, heads, bias, kept)


def _cuts(heads: Sequence[FoundHead]) -> list[nn.Module]:
    """Return what runs on random values: heads, and the layers of those that are not called."""
    cuts: list[nn.Module] = []
    for head in heads:
        if head.module is not None and head.is_called:
            cuts.append(head.module)
        elif head.option is not None:
            cuts += head.option.layers
    return cuts


def _holds(trace: Trace, head: FoundHead, bias: Bias, kept_layers: set[nn.Module]) -> bool:
    assert head.option is not None
    reason = broken(trace, head, head.option, bias, kept_layers)
    if reason is None:
        return True
    layers = head.option.layers
    head.reason = (f"with {head.named(layers)} zeroed " if layers else "") + reason
    behind = activation_behind(trace, head, head.option)
    alone = broken(trace, head, head.option, bias, kept_layers, layers_alone=True) is None
    head.options.pop(0)
    if not head.options:
        raise UserError(remedy(head, layers, behind, alone))
    return False


def _check_kept(
    model: nn.Module, inputs: Inputs, heads: Sequence[FoundHead], bias: Bias, kept: Kept
) -> None:
    """Refuse heads that change a kept output without a path to it, by topk or masks.

    The values in `kept` come from a run on the heads' own inputs, and so do these; a model whose
    runs differ by themselves cannot be judged.
    """

    def values() -> list[Tensor | None]:
        with untouched(model):
            output = Trace(model, inputs).output
            return [kept_output.value_in(output) for kept_output in kept.outputs]

    before = [output.value for output in kept.outputs]
    if not all(map(_same, values(), before)):
        return
    for head in heads:
        assert head.option is not None
        with holding(settings(head, head.option, bias)):
            changed = [
                o for o, v in zip(kept.outputs, values(), strict=True) if not _same(v, o.value)
            ]
        if changed:
            raise UserError(
                f"head {head.name!r} changes the model's main output {changed[0].main!r} when it "
                "is zeroed, as a head does by whose scores a model selects: leave it out"
            )


def _same(a: Tensor | None, b: Tensor) -> bool:
    return a is not None and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def guess_call(head: FoundHead, example: Example, classes: int | None) -> HeadCall:
    """Return inputs that a head runs on by itself, guessed from the widths of its layers.

    classes: of the main output, to name the head's layer of that width. Raises UserError if none
    is found.
    """
    assert head.module is not None
    reason = "it has no linear layer and no convolution"
    layers = [layer for layer in head.module.modules() if is_weight_layer(layer)]
    for layer in layers:
        for shape in input_shapes(layer) + _feature_shapes(layer):
            weight = next(layer.parameters())
            inputs = Inputs((weight.new_zeros(shape).detach(),), {})
            try:
                trace = Trace(head.module, inputs, {head.name: head.module}, [head.module])
            except MISFIT as error:
                reason = str(error)
                continue
            return trace.heads[head.name][0]
    remedies = [] if example is not None else ["pass example=, one batch of the model's inputs"]
    wide = [layer for layer in layers if _width(layer) == classes] or layers
    if wide:
        remedies.append(f"name its output layer itself, such as heads=[{head.named(wide[-1:])}]")
    raise UserError(f"cannot run head {head.name!r} ({reason}): {', or '.join(remedies)}")


def _width(layer: nn.Module) -> int | None:
    width = getattr(layer, "out_channels", None) or getattr(layer, "out_features", None)
    return width if isinstance(width, int) else None


def _feature_shapes(layer: nn.Module) -> list[torch.Size]:
    """Return shapes of maps and sequences that pooling might reduce to a linear layer's input."""
    width = getattr(layer, "in_features", None)
    if not isinstance(width, int):
        return []
    return [torch.Size(s) for s in ((BATCH, width, 8, 8), (BATCH, 8, width), (BATCH, width, 8))]


def verify_alone(head: FoundHead, call: HeadCall, bias: Bias, frozen: set[nn.Parameter]) -> None:
    """Verify a head whose outputs the model does not return, by running it on such inputs."""
    assert head.module is not None
    kind = next(head.module.parameters()).device.type
    modules = {head.name: head.module}
    with torch.autocast(kind, call.autocast, enabled=call.autocast is not None):
        with untouched(head.module):
            trace = Trace(head.module, call.inputs, modules, [head.module])
            outputs = Outputs(trace, head.names)
            head.outputs = outputs.items
            Judge(outputs, Kept([], [], True)).add_options(head)
            outputs.forget_graph()
        if not head.options:
            raise UserError(remedy(head, [], None, False))
        head.is_called = True
        verify(head.module, call.inputs, [head], bias, frozen, Kept([], [], True), set())
