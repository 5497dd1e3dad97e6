"""One run of a model under watch: which layers ran, on what, and which values depend on which.

Everything here runs inside `calibration.without_a_trace`. A layer's forward is replaced while it is
watched, not hooked, since frameworks call `.forward` as well as the module.

Dependence is read off the autograd graph. Behind stack and concatenation every part has every
input's edges, so there a gradient that is not 0 decides. Between two layers alone: a gradient
through a layer would say nothing where its weights are 0 or not yet set.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules import activation
from torch.utils._pytree import tree_map

from lion_fast.init.example import Inputs, is_weight_layer
from lion_fast.init.replay import Recording
from lion_fast.init.variance import NORMS

MAX_DEPTH = 8
"""Levels of nesting that are looked into; objects may refer to each other in circles."""
_JOINS = ("StackBackward", "CatBackward", "CopySlices", "IndexPutBackward")
"""Names of graph nodes whose parts may come from different inputs."""


def is_layer(module: nn.Module) -> bool:
    """Tell whether a module can be a head's output layer.

    A linear layer, a convolution, a norm, or another author's module without children that has
    parameters; no activation with learnt parameters.
    """
    if is_known_layer(module):
        return True
    own_kind = type(module).__module__ != activation.__name__
    leaf = next(module.children(), None) is None
    return own_kind and leaf and next(module.parameters(), None) is not None


def is_known_layer(module: nn.Module) -> bool:
    """Tell whether a module is one of torch.nn's own layers."""
    return is_weight_layer(module) or isinstance(module, (*NORMS, nn.RMSNorm))


def tensors_in(tree: Any, depth: int = 0) -> list[Tensor]:
    """Return the floating-point tensors of nested outputs or arguments."""
    if isinstance(tree, Tensor):
        return [tree] if tree.is_floating_point() else []
    if depth == MAX_DEPTH:
        return []
    return [tensor for _, value in children(tree) for tensor in tensors_in(value, depth + 1)]


def children(tree: Any) -> list[tuple[str, Any]]:
    """Return keys and values of a mapping, sequence, named tuple, dataclass or plain object."""
    if isinstance(tree, Mapping):
        return [(str(key), value) for key, value in tree.items()]
    if hasattr(tree, "_asdict"):
        return list(tree._asdict().items())
    if isinstance(tree, (list, tuple)):
        return [(str(index), value) for index, value in enumerate(tree)]
    if isinstance(tree, (nn.Module, type)) or callable(tree):
        return []
    return list(getattr(tree, "__dict__", {}).items())


class LayerCall(NamedTuple):
    """One call of a watched layer."""

    layer: nn.Module
    inputs: list[Tensor]
    edges: list[GradientEdge]
    """Of its outputs, as they left the layer."""
    outputs: list[Tensor]
    inside: frozenset[str]
    """Names of the heads that were running."""


class HeadCall(NamedTuple):
    """One call of a head: its arguments, and the tensors of its output."""

    inputs: Inputs
    leaves: list[Tensor]
    """Random values that stood in for its inputs, where they did."""
    outputs: list[Tensor]
    autocast: torch.dtype | None
    """What the model's own forward casts to around it, as accelerate's does."""


class Reached(NamedTuple):
    """What a value reaches first, going back."""

    calls: list[int]
    """Indices of layer calls."""
    loose: list[nn.Parameter]
    """Parameters met on the way: of functional calls, learnt activations, biases added."""


class Trace:
    """The calls of a module's layers and heads in one run, and its output.

    heads: modules whose calls are noted. cut: modules, of the layers or the heads, that run on
    normally distributed values in the shapes of their inputs in this run: the values of a backbone
    that is not yet set may be 0 or NaN, which say nothing about a head. replay: the recording of an
    earlier run, used up by this one.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Inputs,
        heads: dict[str, nn.Module] | None = None,
        cut: Iterable[nn.Module] = (),
        replay: Recording | None = None,
    ) -> None:
        self.module = module
        self.recording = Recording()
        self._replay = replay
        self.calls: list[LayerCall] = []
        self.heads: dict[str, list[HeadCall]] = {name: [] for name in heads or {}}
        self._producer: dict[Any, int] = {}
        self._before: dict[tuple[int, bool], list[int]] = {}
        self._running: list[str] = []
        self._cut = set(cut)
        device = next(module.parameters()).device
        self._generator = torch.Generator(device).manual_seed(0)
        layers = [m for m in module.modules() if is_layer(m)]
        # autocast would go on with its cast of weights that were set since.
        torch.clear_autocast_cache()
        with _instead(layers, self._run_layer):
            with _instead((heads or {}).values(), self._run_head(heads or {})):
                args, kwargs = inputs.fresh(device)
                self.output = module(*args, **kwargs)

    def _run_layer(
        self, layer: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        args, kwargs, _ = self._stand_in(layer, args, kwargs)
        inputs = tensors_in((args, kwargs))
        output = self._replay.output(layer, inputs) if self._replay else None
        if output is None:
            output = forward(*args, **kwargs)
            if self._replay is None:
                self.recording.note(layer, inputs, output)
        outputs = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
        edges = [get_gradient_edge(tensor) for tensor in outputs]
        for edge in edges:
            self._producer.setdefault(edge.node, len(self.calls))
        self.calls.append(LayerCall(layer, inputs, edges, outputs, frozenset(self._running)))
        return output

    def _run_head(self, heads: dict[str, nn.Module]) -> Callable[..., Any]:
        names = {module: [n for n, m in heads.items() if m is module] for module in heads.values()}

        def run(head: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            args, kwargs, leaves = self._stand_in(head, args, kwargs)
            self._running += names[head]
            try:
                output = forward(*args, **kwargs)
            finally:
                del self._running[-len(names[head]) :]
            inputs = Inputs(*tree_map(_detached, (args, kwargs)))
            call = HeadCall(inputs, leaves, tensors_in(output), _autocast_dtype(head))
            for name in names[head]:
                self.heads[name].append(call)
            return output

        return run

    def _stand_in(
        self, module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[Any, dict[str, Any], list[Tensor]]:
        leaves: list[Tensor] = []
        if module not in self._cut:
            return args, kwargs, leaves

        def random(value: Any) -> Any:
            if not (isinstance(value, Tensor) and value.is_floating_point()):
                return value
            drawn = torch.empty_like(value).normal_(generator=self._generator)
            leaves.append(drawn.requires_grad_())
            # A view-free copy, since the head may write into its input.
            return leaves[-1].clone()

        args, kwargs = tree_map(random, (args, kwargs))
        return args, kwargs, leaves

    def reached(self, value: Tensor, known_only: bool = False, *, by_value: bool = True) -> Reached:
        """Return the layer calls that a value reaches first, by value through joins.

        known_only: pass modules that are not torch.nn's own layers. by_value: False counts every
        part of a join.
        """
        stop = self._stop(known_only)
        nodes = list(ancestors([_node(value)], stop))
        found = dict.fromkeys(stop[node] for node in nodes if node in stop)
        loose = [
            n.variable for n in nodes if isinstance(getattr(n, "variable", None), nn.Parameter)
        ]
        joins = {node for node in nodes if node.name().startswith(_JOINS)}
        if len(found) > 1 and joins:
            nodes = list(ancestors([_node(value)], stop.keys() | joins))
            direct = {stop[node] for node in nodes if node in stop}
            doubtful = [index for index in found if index not in direct]
            alive = self._touched(value, doubtful) if by_value else set(doubtful)
            if direct or alive:
                found = dict.fromkeys(i for i in found if i in direct or i in alive)
        return Reached(list(found), loose)

    def _stop(self, known_only: bool) -> dict[Any, int]:
        if not known_only:
            return self._producer
        known = [is_known_layer(call.layer) for call in self.calls]
        return {node: index for node, index in self._producer.items() if known[index]}

    def _touched(self, value: Tensor, calls: list[int]) -> set[int]:
        """Return the calls with respect to whose outputs the gradient of a value is not 0."""
        edges = [(index, edge) for index in calls for edge in self.calls[index].edges]
        gradients = gradients_of([value], [edge for _, edge in edges])
        return {
            index
            for (index, _), gradient in zip(edges, gradients, strict=True)
            if gradient is not None and bool((gradient != 0).any())
        }

    def all_behind(self, calls: Iterable[int], *, by_value: bool = True) -> set[int]:
        """Return these calls and every call on which their inputs depend."""
        seen: set[int] = set()
        waiting = list(calls)
        while waiting:
            index = waiting.pop()
            if index not in seen:
                seen.add(index)
                waiting += self.before(index, by_value=by_value)
        return seen

    def before(self, index: int, *, by_value: bool = True) -> list[int]:
        """Return the calls that a call's inputs reach first."""
        key = (index, by_value)
        if key not in self._before:
            reached = (self.reached(t, by_value=by_value) for t in self.calls[index].inputs)
            self._before[key] = list(dict.fromkeys(i for found in reached for i in found.calls))
        return self._before[key]


def gradients_of(values: Iterable[Tensor], edges: Iterable[Any]) -> list[Tensor | None]:
    """Return gradients of a random combination of values; None for what they do not depend on."""
    # A scalar, since autograd imports sympy (seconds) when it is handed gradients of tensors.
    edges = list(edges)
    if not edges:
        return []
    total = torch.stack(
        [(value * torch.randn_like(value)).sum().double() for value in values]
    ).sum()
    return list(torch.autograd.grad(total, edges, retain_graph=True, allow_unused=True))


def ancestors(nodes: Iterable[Any], stop: Any = ()) -> Iterator[Any]:
    """Yield autograd nodes and all that they depend on, not going past those in `stop`."""
    seen, waiting = set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if node not in stop:
            waiting += [following for following, _ in node.next_functions]


def _node(value: Tensor) -> Any:
    return get_gradient_edge(value).node if value.requires_grad else None


def _autocast_dtype(module: nn.Module) -> torch.dtype | None:
    kind = next(module.parameters()).device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


@contextmanager
def _instead(modules: Iterable[nn.Module], run: Callable[..., Any]) -> Iterator[None]:
    """Let `run(module, forward, args, kwargs)` stand for each module's forward."""
    replaced: list[tuple[nn.Module, Any]] = []

    def replace(module: nn.Module) -> None:
        forward = module.forward

        @wraps(forward)
        def instead(*args: Any, **kwargs: Any) -> Any:
            return run(module, forward, args, kwargs)

        replaced.append((module, vars(module).get("forward")))
        vars(module)["forward"] = instead

    try:
        for module in dict.fromkeys(modules):
            if not isinstance(module, torch.jit.ScriptModule):
                replace(module)
        yield
    finally:
        for module, before in reversed(replaced):
            if before is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = before
