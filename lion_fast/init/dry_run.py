"""What a head is called with, learnt by running the model on one small batch.

Everything here runs inside `calibration.without_a_trace`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from lion_fast.errors import UserError
from lion_fast.init.heads import is_weight_layer, main_logits_last

BATCH = 2
"""Images in a made-up batch; batch norm over 1x1 maps needs more than one."""
_SIDES = {1: (32, 64, 128, 256), 2: (32, 64, 128, 224, 299), 3: (16, 32, 64)}
"""Pixels a side of a made-up input, by its number of spatial dimensions."""

# What another author's forward raises on a shape that it was not written for.
_MISFIT = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


class Call(NamedTuple):
    """One call of a head, as its model made it or as guessed from its layers."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_model: bool


class _ModelRun:
    """Hooks that note how a model calls its heads, and what these must not do in it."""

    def __init__(self, model: nn.Module, heads: dict[str, nn.Module]) -> None:
        self.model, self.heads = model, heads
        self.calls: dict[str, Call] = {}
        self.outputs: dict[str, Tensor] = {}
        self.outside: set[nn.Module] = set()
        self.inputs: dict[str, list[Any]] = {}
        self._active = 0

    def __call__(self, args: tuple[Any, ...]) -> Any:
        hooks = []
        layers = {m for head in self.heads.values() for m in head.modules() if is_weight_layer(m)}
        for layer in layers:
            hooks.append(layer.register_forward_pre_hook(self._note_layer))
        for name, head in self.heads.items():
            enter, leave = self._watch(name)
            # Enter before and leave after the layer's own hooks: a head may be a single layer.
            hooks.append(head.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
            hooks.append(head.register_forward_hook(leave))
        try:
            return self.model(*args)
        finally:
            for hook in hooks:
                hook.remove()

    def _note_layer(self, layer: nn.Module, args: Any) -> None:
        if not self._active:
            self.outside.add(layer)

    def _watch(self, name: str) -> tuple[Any, Any]:
        def enter(head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._active += 1
            if name not in self.calls:
                self.inputs[name] = [t for t in tree_flatten((args, kwargs))[0] if _is_float(t)]
                shapes = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, args)
                named = tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, kwargs)
                self.calls[name] = Call(shapes, named, in_model=True)

        def leave(head: nn.Module, args: Any, output: Any) -> None:
            self._active -= 1
            if isinstance(output, Tensor):
                self.outputs.setdefault(name, output)

        return enter, leave


def record_calls(
    model: nn.Module, heads: dict[str, nn.Module], example: Tensor | tuple[Any, ...] | None
) -> dict[str, Call]:
    """Return how the model calls each head; heads that it does not call are left out.

    example: the model's inputs. Without one, images of several sizes are made up from the first
    convolution's (or linear layer's) width, until the model runs; if none fits, no head is called.

    Raises UserError if the model does not run on `example`, if a head gives the model's main
    output or feeds another head, or if its layers also run outside it.
    """
    parameter = next(model.parameters())
    tries: list[tuple[Any, ...]] = list(_made_up(model, parameter))
    if example is not None:
        given = (example,) if isinstance(example, Tensor) else tuple(example)
        tries = [tree_map(lambda t: t.to(parameter.device) if isinstance(t, Tensor) else t, given)]
    for args in tries:
        run = _ModelRun(model, heads)
        try:
            output = run(args)
        except _MISFIT as error:
            if example is not None:
                raise UserError(
                    f"{type(model).__name__} does not run on the example: {error}"
                ) from error
            continue
        _check(run, output)
        return run.calls
    return {}


def _made_up(model: nn.Module, parameter: Tensor) -> Iterator[tuple[Tensor]]:
    layers: list[Any] = [m for m in model.modules() if is_weight_layer(m)]
    images = [layer for layer in layers if hasattr(layer, "in_channels")]
    # Registered first, or fewest channels: a head may be registered before the stem.
    firsts = [images[0], min(images, key=lambda m: m.in_channels)] if images else layers[:1]
    shapes = dict.fromkeys(shape for layer in firsts for shape in _shapes(layer))
    for shape in sorted(shapes, key=lambda shape: shape[2:]):
        yield (torch.randn(shape, dtype=parameter.dtype, device=parameter.device),)


def _shapes(layer: Any) -> list[tuple[int, ...]]:
    if hasattr(layer, "in_channels"):
        dims = layer.weight.ndim - 2
        return [(BATCH, layer.in_channels, *[side] * dims) for side in _SIDES[dims]]
    return [(BATCH, layer.in_features)] if hasattr(layer, "in_features") else []


def _check(run: _ModelRun, output: Any) -> None:
    logits = main_logits_last(run.model, output)
    to_main = set(ancestors([logits[-1].grad_fn])) if logits else set()
    for name, head in run.heads.items():
        own = run.outputs.get(name)
        if own is not None and own.grad_fn in to_main:
            raise UserError(
                f"head {name!r} gives or feeds the model's main output: "
                "name heads that stand beside its path"
            )
        # Stated by networks whose backbone runs through the heads' weights on purpose.
        if name in run.calls and not getattr(run.model, "heads_in_path", False):
            shared = [n for n, m in head.named_modules() if m in run.outside]
            if shared:
                layer = ".".join(filter(None, (name, shared[0])))
                raise UserError(
                    f"layer {layer!r} of head {name!r} also runs outside it: "
                    "give the head a layer of its own"
                )
    _check_apart(run)


def _check_apart(run: _ModelRun) -> None:
    """Refuse heads that read each other's outputs, such as the pieces of one head."""
    nodes = {out.grad_fn: name for name, out in run.outputs.items() if out.grad_fn is not None}
    for name, inputs in run.inputs.items():
        for node in ancestors([tensor.grad_fn for tensor in inputs]):
            if nodes.get(node, name) != name:
                raise UserError(
                    f"head {name!r} reads the output of {nodes[node]!r}: name heads that do not "
                    "read each other; of one head in pieces, the piece that gives its logits"
                )


def ancestors(nodes: list[Any], stop: Any = ()) -> Iterator[Any]:
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


def guess_call(name: str, head: nn.Module) -> Call:
    """Return inputs that the head runs on by itself, guessed from the widths of its layers.

    Raises UserError if none is found.
    """
    reason = "it has no linear layer and no convolution"
    for layer in filter(is_weight_layer, head.modules()):
        for shape in _shapes(layer) + _feature_shapes(layer):
            weight = next(layer.parameters())
            call = Call((weight.new_zeros(shape).detach(),), {}, in_model=False)
            try:
                run_head(head, call)
            except _MISFIT as error:
                reason = str(error)
                continue
            return call
    raise UserError(
        f"cannot run head {name!r} ({reason}): pass example=, one batch of the model's inputs"
    )


def _feature_shapes(layer: Any) -> list[tuple[int, ...]]:
    """Shapes of maps and sequences that pooling might reduce to a linear layer's input."""
    if not hasattr(layer, "in_features"):
        return []
    width = layer.in_features
    return [(BATCH, width, 8, 8), (BATCH, 8, width), (BATCH, width, 8)]


class HeadRun(NamedTuple):
    """Tensors of one call of a head."""

    inputs: list[Tensor]
    outputs: list[Tensor]


def run_head(head: nn.Module, call: Call) -> HeadRun:
    """Call a head with normally distributed values in the shapes of `call`.

    Not with the values of the model's run: a backbone whose weights are not yet set may give zeros
    or NaN, which say nothing about the head.
    """
    inputs: list[Tensor] = []

    def fresh(value: Any) -> Any:
        if not _is_float(value):
            return value
        inputs.append(torch.randn_like(value, requires_grad=True))
        # A view-free copy, since the head may write into its input.
        return inputs[-1].clone()

    args, kwargs = tree_map(fresh, (call.args, call.kwargs))
    output = head(*args, **kwargs)
    return HeadRun(inputs, [t for t in tree_flatten(output)[0] if _is_float(t)])


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
