"""What a message advises, the program accepts, in the command in which it is said."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from lion_fast import arguments
from lion_fast.config import FREE_ON_RESUME, TrainConfig

PACKAGE = Path(__file__).parent.parent / "lion_fast"
# Flags of other programs, which messages name or commands take.
OTHERS = {
    *("nproc-per-node", "master-port", "head", "force-reinstall"),
    *("full-name", "error-unmatch", "porcelain", "untracked-files", "query-gpu", "format"),
}


def flags_of(kind):
    names = {field.name.replace("_", "-") for field in dataclasses.fields(kind)}
    return names - {"config"} | ({"import"} if kind is arguments.StudyArguments else set())


TRAIN = flags_of(TrainConfig) | flags_of(arguments.TrainArguments)
EVERY = TRAIN.union(*(flags_of(getattr(arguments, n)) for n in dir(arguments) if "Arguments" in n))
# Flags of the commands that a room's messages are said in.
BY_ROOM = {
    "study": TRAIN | flags_of(arguments.StudyArguments),
    "report": flags_of(arguments.ReportArguments) | flags_of(arguments.StudyArguments),
    "data": TRAIN,
    "models": TRAIN,
    "init": TRAIN,
    "training": TRAIN | flags_of(arguments.EvalArguments),
}
FIELDS = {field.name.replace("_", "-"): field for field in dataclasses.fields(TrainConfig)}


def text_of(node):
    """Return the words of a string or f-string; what is filled in is a blank."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "\x00" for part in node.values)
    return ""


def advice():
    """Yield every text of the package that names a flag, where it stands."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        inner = {
            id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values
        }
        for node in ast.walk(tree):
            if id(node) in documented | inner or isinstance(getattr(node, "value", 0), bytes):
                continue
            text = text_of(node)
            if re.search(r"(?<![\w-])--[a-z]", text) and "{ color" not in text:  # of a style sheet
                room = path.relative_to(PACKAGE).parts[0]
                yield pytest.param(room, text, id=f"{path.relative_to(PACKAGE)}:{node.lineno}")


ADVICE = list(advice())


def named(text):
    """Return flag and the word after it, of each flag that a text names."""
    return re.findall(r"(?<![\w-])--([a-z][a-z-]*[a-z])(?:[ =]([a-z]\w*))?", text)


def test_the_walk_finds_what_is_said():
    texts = " ".join(param.values[1] for param in ADVICE)
    for words in ("--resume", "--precision fp32", "--dataset", "--num-workers", "--skip-corrupt"):
        assert words in texts


@pytest.mark.parametrize(("room", "text"), ADVICE)
def test_every_flag_that_is_named_is_one_of_the_command(room, text):
    known = BY_ROOM.get(room, EVERY | {"help", "version"}) | OTHERS
    if "study" in text:
        known = known | flags_of(arguments.StudyArguments)
    for flag, word in named(text):
        assert flag in known, f"no --{flag} in {text!r}"
        choices = get_args(FIELDS[flag].type) if flag in FIELDS else ()
        is_choice = flag in FIELDS and get_origin(FIELDS[flag].type) is Literal
        if word and is_choice and word not in ("or", "and", "to", "which"):
            assert word in choices, f"--{flag} takes no {word}: {text!r}"


@pytest.mark.parametrize(
    ("room", "text"), [param for param in ADVICE if "--resume" in param.values[1]]
)
def test_a_resumed_run_is_advised_only_what_it_may_be_told(room, text):
    """What follows `--resume` in one line is free; a rate or a batch size is not."""
    after = text.rpartition("--resume")[2]
    for flag, _ in named(after):
        if flag in FIELDS:
            assert flag.replace("-", "_") in FREE_ON_RESUME, text
