"""What the oldest supported Triton refuses and the newest takes, read from the kernels' sources."""

import ast
from pathlib import Path

import pytest

KERNELS = sorted((Path(__file__).parent.parent / "kernels").rglob("*.py"))


def jit_functions(source):
    """Every function of a source that Triton compiles."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and any(
            ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list
        ):
            yield node


def unnamed_sizes(source):
    """Sizes of static loops that take an element of a tuple: Triton 3.6 has it for no constant."""
    return [
        ast.unparse(call)
        for function in jit_functions(source)
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "tl.static_range"
        and any(isinstance(node, ast.Subscript) for a in call.args for node in ast.walk(a))
    ]


def derived_returns(source):
    """Returns of a value beside one that is made of it.

    Read in another layout, the second is made anew there of the first, which Triton 3.6 may put
    behind it: "operand does not dominate this use".
    """
    found = []
    for function in jit_functions(source):
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
                names = {part.id for part in node.value.elts if isinstance(part, ast.Name)}
                for part in node.value.elts:
                    used = {n.id for n in ast.walk(part) if isinstance(n, ast.Name)}
                    if not isinstance(part, ast.Name) and used & names:
                        found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_kernels_ask_for_nothing_that_the_oldest_triton_refuses(path):
    source = path.read_text(encoding="utf-8")
    assert unnamed_sizes(source) == []
    assert derived_returns(source) == []


REFUSED = """
@triton.jit
def kernel(x, FIRST: tl.constexpr):
    for i in tl.static_range(1, FIRST[1] + 1):
        for j in tl.static_range(i + 1, FIRST):
            pass

@triton.jit(do_not_specialize=["n"])
def norm(x, scale, n):
    return scale, x - n * scale

@triton.jit
def apart(x, n):
    return x, n * n
"""


def test_both_rules_see_what_was_refused():
    assert unnamed_sizes(REFUSED) == ["tl.static_range(1, FIRST[1] + 1)"]
    assert derived_returns(REFUSED) == ["return (scale, x - n * scale)"]
    assert sum(1 for path in KERNELS for _ in jit_functions(path.read_text("utf-8"))) > 40
