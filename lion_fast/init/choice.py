"""Which modules give a model's auxiliary outputs; what gives or feeds the main one never does."""

from collections.abc import Sequence

from torch import Tensor, nn

from lion_fast.errors import UserError
from lion_fast.init.example import Inputs
from lion_fast.init.heads import hint, is_main_member, is_usual
from lion_fast.init.main_output import Kept, kept_output, shared_by_levels, unknown
from lion_fast.init.output_layer import FoundHead, OutputLayer, output_layer
from lion_fast.init.outputs import Main, Output, Outputs
from lion_fast.init.trace import ancestors

_ATTEMPTS = ((False, False), (True, False), (True, True))
"""Whether to pass modules that are not torch.nn's own, and to set parameters met on the way."""


def choose(
    outputs: Outputs,
    inputs: Inputs,
    named: dict[str, nn.Module],
    main: Main,
    *,
    explicit: bool,
) -> tuple[list[FoundHead], Kept]:
    """Return the heads of a model from a run on `inputs`, and what must stay as it is.

    named: modules that the caller names (explicit) or that have the usual names. Raises UserError
    where the main output is not known and matters, and where a head gives or feeds it.
    """
    model = outputs.trace.module
    heads = [_by_module(outputs, name, module) for name, module in named.items()]
    kept = kept_output(model, outputs, inputs, heads, main)
    if kept is None:
        if len(outputs.items) > 1:
            raise unknown(outputs)
        raise UserError(f"no auxiliary heads found: {hint(model)}")
    judge = Judge(outputs, kept)
    if not explicit:
        heads = judge.all_heads(heads)
    for head in heads:
        judge.check_beside(head)
        judge.add_options(head)
        if not getattr(model, "heads_in_path", False):
            judge.check_outside(head)
    judge.check_apart(heads)
    return heads, kept


def _by_module(outputs: Outputs, name: str, module: nn.Module) -> FoundHead:
    layers, parameters = set(module.modules()), set(module.parameters())
    given = [
        output
        for output in outputs.items
        if layers & outputs.layers(output) or parameters & set(output.loose)
    ]
    names = {m: ".".join(filter(None, (name, n))) for n, m in module.named_modules()}
    return FoundHead(name, module, given, [], names)


class Judge:
    """Judges the heads of one run against what must stay as it is."""

    def __init__(self, outputs: Outputs, kept: Kept) -> None:
        self.outputs, self.trace, self.kept = outputs, outputs.trace, kept
        self.behind = self._all_behind()
        """Every layer call on which the main output depends."""
        nodes = ancestors([output.value.grad_fn for output in kept.outputs])
        self.kept_loose = {id(getattr(node, "variable", None)) for node in nodes}

    def _all_behind(self) -> set[int]:
        """By edges, and by value, which takes gradients, where these lead to another output."""
        found = self.trace.all_behind(self.kept.calls, by_value=False)
        others = {i for output in self.outputs.items for i in output.calls}
        inside = any(self.trace.calls[index].inside for index in found)
        if not inside and not (others - set(self.kept.calls)) & found:
            return found
        return self.trace.all_behind(self.kept.calls)

    def _inside(self, index: int, head: FoundHead) -> bool:
        """Whether a layer call was made by a head."""
        call = self.trace.calls[index]
        if head.module is not None and self.trace.heads[head.name]:
            return head.name in call.inside
        return call.layer in head.names

    def _is_of(self, index: int, head: FoundHead) -> bool:
        layers = {layer for option in head.options[:1] for layer in option.layers}
        return self._inside(index, head) or self.trace.calls[index].layer in layers

    def check_beside(self, head: FoundHead) -> None:
        """Refuse a head that gives or feeds the main output."""
        own = set() if head.module is None else set(map(id, head.module.parameters()))
        given = any(own & set(map(id, output.loose)) for output in self.kept.outputs)
        if given or any(self._inside(index, head) for index in self.behind):
            key = ""
            if len(self.kept.outputs) == 1 and len(self.outputs.items) > 1:
                key = f" ({self.kept.outputs[0].main!r})"
            raise UserError(
                f"head {head.name!r} gives or feeds the model's main output{key}: "
                "name heads that stand beside its path"
            )

    def check_outside(self, head: FoundHead) -> None:
        """Refuse a head whose output layer also runs for the main output."""
        layers = {layer for option in head.options for layer in option.layers}
        for index in self.behind:
            if (layer := self.trace.calls[index].layer) in layers:
                raise UserError(
                    f"layer {head.named([layer])} of head {head.name!r} also runs outside it: "
                    "give the head a layer of its own"
                )

    def check_apart(self, heads: Sequence[FoundHead]) -> None:
        """Refuse heads that read each other's outputs, such as the pieces of one head."""
        for head in heads:
            layers = {layer for option in head.options[:1] for layer in option.layers}
            own = {i for i, call in enumerate(self.trace.calls) if call.layer in layers}
            read = self._read(own, by_value=False)
            # Edges that lead nowhere near a head say so; values take a gradient through them.
            if own & read or any(self._is_of(i, o) for o in heads if o is not head for i in read):
                read = self._read(own, by_value=True)
            for other in heads:
                if other is not head and any(self._is_of(index, other) for index in read):
                    raise UserError(
                        f"head {head.name!r} reads the output of {other.name!r}: name heads that "
                        "do not read each other; of one head in pieces, the piece that gives its "
                        "logits"
                    )
            if own & read:
                raise UserError(
                    f"head {head.name!r} cannot be zeroed: with {head.named(layers)} zeroed its "
                    "weights get no gradient and would stay 0, for it reads its own output. Let "
                    "its last layer be one that runs once"
                )

    def _read(self, calls: set[int], *, by_value: bool) -> set[int]:
        """Return the calls on which the inputs of these depend."""
        before = {i for index in calls for i in self.trace.before(index, by_value=by_value)}
        return self.trace.all_behind(before, by_value=by_value)

    def all_heads(self, usual: Sequence[FoundHead]) -> list[FoundHead]:
        """Return the heads behind every output but the main one, and usual ones not returned."""
        heads = [
            head
            for head in usual
            if head.outputs or not any(self._inside(index, head) for index in self.behind)
        ]
        unsure, reasons = [], []
        for output in self.outputs.items:
            if output in self.kept.outputs or any(output in head.outputs for head in heads):
                continue
            own = [index for index in output.calls if index not in self.behind]
            if not own and not self._own_loose(output):
                reasons.append(self._reason_to_pass(output))
                continue
            layers = dict.fromkeys(self.trace.calls[index].layer for index in own)
            names = {layer: self.outputs.names[layer] for layer in layers}
            if any(map(is_main_member, names.values())):
                continue
            if self.kept.certain or _is_usual(output, names):
                self._check_levels(output, layers)
                _add(heads, output, names)
            else:
                unsure.append(output)
        if heads:
            return heads
        if unsure:
            raise unknown(self.outputs)
        for head in usual:
            self.check_beside(head)
        why = "".join(f"{reason}; " for reason in reasons if reason)
        raise UserError(f"no auxiliary heads found: {why}{hint(self.trace.module)}")

    def _check_levels(self, output: Output, layers: dict[nn.Module, None]) -> None:
        for main in self.kept.outputs:
            if self.outputs.layers(main) & layers.keys():
                raise UserError(shared_by_levels(self.outputs, main, output))

    def _own_loose(self, output: Output) -> list[nn.Parameter]:
        """Return parameters met on the way to an output that the main one does not depend on."""
        return [p for p in output.loose if id(p) not in self.kept_loose]

    def _reason_to_pass(self, output: Output) -> str:
        """Return why an output whose layers all lead to the main one has no head; "" for views.

        Raises UserError where it looks like logits, of which the main output then is made.
        """
        giver = self.outputs.givers(output)
        for main in self.kept.outputs:
            of_main = self.outputs.of_one_source(output, main)
            if of_main and set(output.calls) == set(main.calls):
                return ""
            if not of_main and self.outputs.layers(output) & self.outputs.layers(main):
                raise UserError(shared_by_levels(self.outputs, main, output))
            if output.value.ndim and (of_main or _classes(output.value) & _classes(main.value)):
                raise UserError(
                    f"output {output.main!r} comes from {giver}, which feeds the main output "
                    f"{main.main!r}: zeroing it would change that. Name heads that stand beside "
                    "its path, heads=[...]"
                )
        return f"output {output.main!r} comes from {giver} on the main output's path"

    def add_options(self, head: FoundHead) -> None:
        """Add the output layers that a head may have, by what its outputs reach first."""
        parameters = set(head.module.parameters()) if head.module is not None else set()
        for known_only, with_loose in _ATTEMPTS:
            layers: dict[nn.Module, None] = {}
            loose: dict[nn.Parameter, None] = {}
            for output in head.outputs:
                calls, met = self.trace.reached(output.value, known_only)
                for index in sorted(calls):
                    layer = self.trace.calls[index].layer
                    mine = index not in self.behind if head.module is None else layer in head.names
                    if mine:
                        layers[layer] = None
                if head.module is None:
                    loose.update(dict.fromkeys(self._own_loose(output)))
                else:
                    loose.update(dict.fromkeys(p for p in met if p in parameters))
            if any(parameter.ndim > 1 for parameter in loose):
                # Functional calls: what they read is no part of the head.
                _add_option(head, output_layer(head, [], list(loose)))
            option = output_layer(head, list(layers), list(loose) if with_loose else [])
            _add_option(head, option)


def _add(heads: list[FoundHead], output: Output, names: dict[nn.Module, str]) -> None:
    """Add a head that is known by its output layers, or an output to the one that has them."""
    for head in heads:
        if head.module is None and not names.keys().isdisjoint(head.names):
            head.outputs.append(output)
            head.names.update(names)
            return
    name = next(iter(names.values()), ".".join(output.path))
    heads.append(FoundHead(name, None, [output], [], names))


def _is_usual(output: Output, names: dict[nn.Module, str]) -> bool:
    named = any(key.lower().startswith("aux") for key in output.path)
    return named or any(map(is_usual, [*output.path, *names.values()]))


def _add_option(head: FoundHead, option: OutputLayer) -> None:
    same = [set(map(id, o.weights + o.biases)) for o in head.options]
    if option.weights and set(map(id, option.weights + option.biases)) not in same:
        head.options.append(option)


def _classes(value: Tensor) -> set[int]:
    """Return the sizes that may be a map's or a sequence's number of classes."""
    if value.ndim == 3:
        return {value.shape[1], value.shape[2]}
    return {value.shape[1]} if value.ndim > 1 else set()
