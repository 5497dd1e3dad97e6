"""Follow the config from `train` through the sources: which functions are handed it, and where.

A function is handed the config when an argument is a TrainConfig or an object that holds one, or
when it is a method of such an object and looks at what that holds. Each call of such a function is
a stay. It is a return where it leads into another file than the stay before it, and the walk has
been in that file already.

Types are read from annotations, from what is made and from what is returned. A body is walked in
the order of its lines, all branches included, as often as calls lead there. No stay are the methods
of the config itself, and what only several processes do: `train` calls that through a base class.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

CONFIG = ("lion_fast.config", "TrainConfig")
# Annotations that stand for what is in their brackets.
_WRAPPERS = {"Iterator", "Optional", "Annotated", "Final"}

Type = Any
"""A class as (module, name); a class object as ("class", module, name); a tuple's as a list."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    """A source file and what its names stand for."""

    name: str
    tree: ast.Module

    @cached_property
    def defined(self) -> dict[str, ast.ClassDef | Function]:
        """Return its functions and classes by name."""
        found = (node for node in self.tree.body if isinstance(node, ast.ClassDef | Function))
        return {node.name: node for node in found}

    @cached_property
    def imported(self) -> dict[str, tuple[str, str]]:
        """Return module and name of what it imports by name, at any depth."""
        return {
            alias.asname or alias.name: (node.module or "", alias.name)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }


@dataclass
class Callee:
    """A function of the project that a call leads to."""

    module: str
    function: Function
    of: tuple[str, str] | None = None
    """Class that it is a method of."""


class Sources:
    """All modules of a package, and what is known of types in them."""

    def __init__(self, package: Path) -> None:
        self.modules = {}
        for path in sorted(package.rglob("*.py")):
            parts = (package.name, *path.relative_to(package).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(name, ast.parse(path.read_text(encoding="utf-8")))
        self._attributes: dict[tuple[str, str], dict[str, Type]] = {}

    def find(self, module: str, name: str) -> tuple[str, str] | None:
        """Return where the name that `module` uses is defined, if that is in the package."""
        while module in self.modules and name not in self.modules[module].defined:
            if name not in self.modules[module].imported:
                return None
            module, name = self.modules[module].imported[name]
        return (module, name) if module in self.modules else None

    def definition(self, place: tuple[str, str]) -> ast.ClassDef | Function:
        return self.modules[place[0]].defined[place[1]]

    def annotated(self, module: str, node: ast.expr | None) -> Type:
        """Return what an annotation says, as far as it is a class of the package."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.Name):
            place = self.find(module, node.id)
            is_class = place and isinstance(self.definition(place), ast.ClassDef)
            return place if is_class else None
        if isinstance(node, ast.BinOp):
            return self.annotated(module, node.left) or self.annotated(module, node.right)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if node.value.id == "tuple":
                return [self.annotated(module, each) for each in inner]
            if node.value.id == "type" and (place := self.annotated(module, inner[0])):
                return ("class", *place)
            if node.value.id in _WRAPPERS:
                return self.annotated(module, inner[0])
        return None

    def method(self, owner: tuple[str, str], name: str) -> Callee | None:
        """Return the method of a class or of a base of it."""
        definition = self.definition(owner)
        assert isinstance(definition, ast.ClassDef)
        for node in definition.body:
            if isinstance(node, Function) and node.name == name:
                return Callee(owner[0], node, owner)
        for base in definition.bases:
            place = self.annotated(owner[0], base)
            if place and (found := self.method(place, name)):
                return found
        return None

    def attributes(self, owner: tuple[str, str]) -> dict[str, Type]:
        """Return the types of what an object holds: its fields, and what `__init__` keeps."""
        if owner in self._attributes:
            return self._attributes[owner]
        found: dict[str, Type] = {}
        self._attributes[owner] = found
        definition = self.definition(owner)
        assert isinstance(definition, ast.ClassDef)
        for base in definition.bases:
            if place := self.annotated(owner[0], base):
                found |= self.attributes(place)
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = self.annotated(owner[0], node.annotation)
            elif isinstance(node, Function) and any(
                isinstance(each, ast.Name) and each.id in ("property", "cached_property")
                for each in node.decorator_list
            ):
                found[node.name] = self.annotated(owner[0], node.returns)
        if init := self.method(owner, "__init__"):
            if init.of == owner:
                body = Body(self, init, None)
                for _ in body.handings():
                    pass
                found |= body.kept
        return found

    def holds(self, kind: Type, seen: frozenset[Any] = frozenset()) -> bool:
        """Whether a value of that type is a config or has one in it."""
        if isinstance(kind, list):
            return any(self.holds(each, seen) for each in kind)
        if kind == CONFIG:
            return True
        if kind is None or kind[0] == "class" or kind in seen:
            return False
        return any(self.holds(each, seen | {kind}) for each in self.attributes(kind).values())

    def looks(self, callee: Callee) -> bool:
        """Whether a method looks at what `self` holds of the config."""
        assert callee.of is not None
        held = {name for name, kind in self.attributes(callee.of).items() if self.holds(kind)}
        return any(
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
            and node.attr in held
            for node in ast.walk(callee.function)
        )


@dataclass
class Body:
    """A function's body with the types of its names, walked line by line."""

    sources: Sources
    callee: Callee
    arguments: dict[str, Type] | None
    """Types of what it is called with, where an annotation does not say them."""
    kept: dict[str, Type] = field(default_factory=dict)
    names: dict[str, Type] = field(default_factory=dict)
    found: list[Callee] = field(default_factory=list)

    def handings(self) -> Iterator[tuple[Callee, dict[str, Type]]]:
        """Yield each call that hands the config on, and the types of its arguments by name."""
        module, function = self.callee.module, self.callee.function
        parameters = function.args
        for each in (*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs):
            self.names[each.arg] = self.sources.annotated(module, each.annotation)
            if self.names[each.arg] is None and self.arguments:
                self.names[each.arg] = self.arguments.get(each.arg)
        if self.callee.of:
            first = parameters.args[0].arg
            self.names[first] = ("class", *self.callee.of) if first == "cls" else self.callee.of
        for statement in function.body:
            yield from self._visit(statement)

    def _visit(self, node: ast.AST) -> Iterator[Any]:
        """Walk a node, inner parts first, and note what its names come to stand for."""
        if isinstance(node, ast.With):
            for item in node.items:
                yield from self._visit(item.context_expr)
                if item.optional_vars is not None:
                    self._bind(item.optional_vars, self.type_of(item.context_expr))
            for statement in node.body:
                yield from self._visit(statement)
            return
        for child in ast.iter_child_nodes(node):
            yield from self._visit(child)
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, self.type_of(node.value))
        elif isinstance(node, ast.AnnAssign):
            kind = self.sources.annotated(self.callee.module, node.annotation)
            self._bind(node.target, kind or (self.type_of(node.value) if node.value else None))
        elif isinstance(node, ast.NamedExpr):
            self._bind(node.target, self.type_of(node.value))
        elif isinstance(node, ast.Call):
            yield from self._call(node)

    def _bind(self, target: ast.expr, kind: Type) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            kinds = kind if isinstance(kind, list) else self._fields(kind, len(target.elts))
            for each, part in zip(target.elts, kinds, strict=False):
                self._bind(each, part)
        elif isinstance(target, ast.Name):
            self.names[target.id] = kind
        elif (
            isinstance(target, ast.Attribute)
            and isinstance(target.value, ast.Name)
            and target.value.id == "self"
            and kind is not None
        ):
            self.kept[target.attr] = kind

    def _fields(self, kind: Type, number: int) -> list[Type]:
        """Return the types that a NamedTuple of the package comes apart into."""
        if kind is None or kind[0] == "class":
            return [None] * number
        return list(self.sources.attributes(kind).values())

    def type_of(self, node: ast.expr) -> Type:
        """Return the type of an expression, as far as it is a class of the package."""
        sources, module = self.sources, self.callee.module
        if isinstance(node, ast.Name):
            if node.id in self.names:
                return self.names[node.id]
            place = sources.find(module, node.id)
            is_class = place and isinstance(sources.definition(place), ast.ClassDef)
            return ("class", *place) if place and is_class else None
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            if isinstance(owner, tuple) and owner[0] != "class":
                return sources.attributes(owner).get(node.attr, self.kept.get(node.attr))
            return None
        if isinstance(node, ast.Tuple):
            return [self.type_of(each) for each in node.elts]
        if isinstance(node, ast.IfExp):
            return self.type_of(node.body) or self.type_of(node.orelse)
        if isinstance(node, ast.BoolOp):
            return next(filter(None, map(self.type_of, node.values)), None)
        if isinstance(node, ast.NamedExpr):
            return self.type_of(node.value)
        if isinstance(node, ast.Call):
            return self._type_of_call(node)
        return None

    def _type_of_call(self, node: ast.Call) -> Type:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        if name in ("replace", "closing", "enter_context") and node.args:
            return self.type_of(node.args[0])
        made = self.type_of(node.func) if isinstance(node.func, ast.Name) else None
        if isinstance(made, tuple) and made[0] == "class":
            return made[1:]
        callee = self._callee(node.func)
        if callee is None:
            return None
        returns = callee.function.returns
        if callee.of and isinstance(returns, ast.Name) and returns.id == "Self":
            return callee.of
        return self.sources.annotated(callee.module, returns)

    def _callee(self, function: ast.expr) -> Callee | None:
        sources = self.sources
        if isinstance(function, ast.Name):
            kind = self.type_of(function)
            if isinstance(kind, tuple) and kind[0] == "class":
                return sources.method(kind[1:], "__init__")
            if isinstance(kind, tuple):
                return sources.method(kind, "__call__")
            place = sources.find(self.callee.module, function.id)
            definition = sources.definition(place) if place else None
            return Callee(place[0], definition) if place and definition else None  # type: ignore[arg-type]
        if isinstance(function, ast.Attribute):
            kind = self.type_of(function.value)
            if isinstance(kind, tuple):
                owner = kind[1:] if kind[0] == "class" else kind
                if (found := sources.method(owner, function.attr)) is not None:
                    return found
            made = self.type_of(function)
            if isinstance(made, tuple) and made[0] == "class":
                return sources.method(made[1:], "__init__")
        return None

    def _call(self, node: ast.Call) -> Iterator[tuple[Callee, dict[str, Type]]]:
        function, arguments = node.func, list(node.args)
        if isinstance(function, ast.Name) and function.id == "partial" and arguments:
            function, arguments = arguments[0], arguments[1:]
        callee = self._callee(function)
        if callee is None:
            return
        names = [each.arg for each in callee.function.args.args][callee.of is not None :]
        kinds = dict(zip(names, map(self.type_of, arguments), strict=False))
        kinds |= {each.arg: self.type_of(each.value) for each in node.keywords if each.arg}
        receiver = self.type_of(function.value) if isinstance(function, ast.Attribute) else None
        handed = any(self.sources.holds(kind) for kind in kinds.values())
        if receiver and callee.of and self.sources.holds(receiver):
            handed |= self.sources.looks(callee)
        if handed:
            yield callee, kinds


@dataclass(frozen=True)
class Stay:
    """A call of a function that is handed the config."""

    caller: str
    module: str
    function: str
    is_return: bool

    def __str__(self) -> str:
        mark = "return" if self.is_return else "stay"
        return f"{mark:6}  {self.module}.{self.function}  (from {self.caller})"


def walk(package: Path, module: str, function: str) -> list[Stay]:
    """Return every stay of the config of a function, in the order in which a run comes by."""
    sources = Sources(package)
    stays: list[Stay] = []
    seen = {module}
    present = module

    def enter(callee: Callee, kinds: dict[str, Type] | None, above: tuple[Function, ...]) -> None:
        nonlocal present
        for inner, arguments in Body(sources, callee, kinds).handings():
            if inner.module == CONFIG[0]:
                continue
            name = f"{inner.of[1]}.{inner.function.name}" if inner.of else inner.function.name
            is_return = inner.module != present and inner.module in seen
            stays.append(Stay(callee.module, inner.module, name, is_return))
            present = inner.module
            seen.add(present)
            if inner.function not in above:
                enter(inner, arguments, (*above, inner.function))

    start = sources.definition((module, function))
    assert isinstance(start, Function)
    enter(Callee(module, start), None, (start,))
    return stays


if __name__ == "__main__":
    import sys

    found = walk(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    print(*found, sep="\n")
    print(f"{len(found)} stays, {sum(stay.is_return for stay in found)} returns")
