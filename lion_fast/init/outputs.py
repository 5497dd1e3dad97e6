"""What a model returns: its tensors by key, and the layers that give each.

An output is a floating-point tensor with a gradient, wherever it lies in lists, tuples, mappings,
named tuples, dataclasses and plain objects; its key is the dotted path to it. One whose parts come
from different layers (levels that are stacked or concatenated) is taken apart, and so is its key.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lion_fast.errors import UserError
from lion_fast.init.apart import Part, parts_of
from lion_fast.init.trace import MAX_DEPTH, Trace, ancestors, children, gradients_of
from lion_fast.models import DeeplySupervised

Main = int | str | Sequence[int | str] | None
"""Index or key of the main output, or several of them; None where it is to be found."""

_MAIN_KEYS = ("logits", "out")


@dataclass(eq=False)
class Output:
    """One tensor of what a model returns, or a part of one."""

    path: tuple[str, ...]
    value: Tensor
    calls: list[int]
    """Layer calls that it reaches first, as indices into the trace's."""
    loose: list[nn.Parameter]
    """Parameters met on the way to them."""
    whole: tuple[str, ...]
    """Path of the tensor that the model returned."""
    part: Part | None = None

    @property
    def main(self) -> int | str:
        """What to pass as `main` to name it."""
        key = ".".join(self.path)
        return int(key or 0) if key.isdigit() or not key else key

    def value_in(self, tree: Any) -> Tensor | None:
        """Return its value in what another run returned; None if it is not there."""
        value = dict(_leaves(tree)).get(self.whole)
        if value is None or self.part is None:
            return value
        return value.narrow(self.part.dim, self.part.start, self.part.length)


class Outputs:
    """All outputs of one run of a model."""

    def __init__(self, trace: Trace, names: Mapping[nn.Module, str]) -> None:
        self.trace, self.names = trace, names
        leaves = _leaves(trace.output)
        _check_open(trace.module, [value for _, value in leaves])
        self.items = [output for path, value in leaves for output in self._apart(path, value)]

    def _apart(self, path: tuple[str, ...], value: Tensor) -> Iterable[Output]:
        calls, loose = self.trace.reached(value)
        parts = parts_of(self.trace, value, calls)
        if not parts:
            yield Output(path, value, calls, loose, path)
        for index, part in enumerate(parts):
            piece = value.narrow(part.dim, part.start, part.length)
            yield Output((*path, str(index)), piece, part.calls, loose, path, part)

    def forget_graph(self) -> None:
        """Keep the outputs' values, and let the run be freed."""
        for output in self.items:
            output.value = output.value.detach()

    def layers(self, output: Output) -> set[nn.Module]:
        """Return the layers that give an output."""
        return {self.trace.calls[index].layer for index in output.calls}

    def givers(self, output: Output) -> str:
        """Return the quoted names of the layers that give an output."""
        names = dict.fromkeys(repr(self.names[self.trace.calls[i].layer]) for i in output.calls)
        return " + ".join(names) or "no layer"

    def listed(self) -> str:
        """Describe all outputs in a line: what to pass as main, the shape, the layers."""
        described = []
        for output in self.items:
            shape = tuple(output.value.shape) if output.value.ndim else "a number"
            described.append(f"main={output.main!r} for {shape} from {self.givers(output)}")
        return "; ".join(described)

    def of_one_source(self, a: Output, b: Output) -> bool:
        """Whether two outputs are made of the same numbers: no two levels of one classifier."""
        for index in set(a.calls) & set(b.calls):
            edges = self.trace.calls[index].edges
            for p, q in zip(
                gradients_of([a.value], edges), gradients_of([b.value], edges), strict=True
            ):
                if p is not None and q is not None and ((p != 0) & (q != 0)).any():
                    return True
        return False

    def chosen(self, main: Main) -> list[Output]:
        """Return the outputs that `main` names; UserError where it names none."""
        names = [main] if isinstance(main, (int, str)) else list(main or ())
        found: dict[Output, None] = {}
        for name in names:
            path = self._path(name) if isinstance(name, int) else tuple(name.split("."))
            # A key may hold dots of its own, as mmsegmentation's "decode.loss_ce" does.
            start = ".".join(path)
            for output in self.items:
                key = ".".join(output.path)
                if path == output.path or key == start or key.startswith(f"{start}."):
                    found[output] = None
            if not found:
                raise UserError(f"main={name!r} is no output with a gradient: pass {self.listed()}")
        return list(found)

    def _path(self, index: int) -> tuple[str, ...]:
        """Return the path of the index-th item of what the model returns."""
        path: tuple[str, ...] = ()
        tree = self.trace.output
        while len(items := children(tree)) == 1:
            path, tree = (*path, items[0][0]), items[0][1]
        keys = [key for key, _ in items]
        if isinstance(tree, Tensor):
            keys = [o.path[-1] for o in self.items if o.whole == path and o.part is not None]
            keys = keys or [""]
        if not -len(keys) <= index < len(keys):
            raise UserError(f"main={index} is no output: pass {self.listed()}")
        return tuple(filter(None, (*path, keys[index])))


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Tensor]]:
    if isinstance(tree, Tensor):
        return [(path, tree)] if tree.is_floating_point() and tree.requires_grad else []
    if len(path) == MAX_DEPTH:
        return []
    return [leaf for key, value in children(tree) for leaf in _leaves(value, (*path, key))]


def _check_open(model: nn.Module, values: Iterable[Tensor]) -> None:
    """Refuse reentrant checkpoints, which run their layers without a graph."""
    nodes = ancestors([value.grad_fn for value in values])
    if any(node.name() == "CheckpointFunctionBackward" for node in nodes):
        raise UserError(
            f"{type(model).__name__} recomputes activations by reentrant checkpoints, which hide "
            "what its outputs depend on: pass use_reentrant=False to torch.utils.checkpoint, or "
            "turn checkpoints on after lion_dg_"
        )


def main_by_key(model: nn.Module, tree: Any) -> str | None:
    """Return the key of the main output where the tree of outputs tells it, None elsewhere.

    Told by networks of this package, whose last logits are the main ones, and by the keys `logits`
    and `out` of torchvision's and transformers' outputs.
    """
    fields = dict(children(tree))
    if isinstance(model, DeeplySupervised) and type(tree) in (list, tuple):
        return str(len(fields) - 1)
    return next((key for key in _MAIN_KEYS if isinstance(fields.get(key), Tensor)), None)


def main_logits_last(model: nn.Module, output: Any, main: Main = None) -> list[Tensor]:
    """Return the logits of all heads, the main one's last.

    main: the index or dotted key of one output; by default what `main_by_key` tells. Raises
    UserError where that names none.
    """
    fields = {".".join(path): value for path, value in _leaves(output)}
    keys = [key for key, _ in children(output)] or [""]
    name = main[0] if isinstance(main, (list, tuple)) and len(main) == 1 else main
    found: Any = name
    if name is None:
        found = "" if isinstance(output, Tensor) else main_by_key(model, output)
    elif isinstance(name, int):
        found = keys[name] if -len(keys) <= name < len(keys) else None
    if not isinstance(found, str) or found not in fields:
        kind = type(model).__name__
        why = f"main={main!r} is no output of {kind}"
        if main is None:
            why = f"which output of {kind} is the main one is not known"
        listed = ", ".join(f"{key or 0!r} {tuple(value.shape)}" for key, value in fields.items())
        raise UserError(f"{why}: pass main=, the index or key of one of {listed or 'its tensors'}")
    return [*(value for key, value in fields.items() if key != found), fields[found]]
