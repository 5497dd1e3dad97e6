"""One way for a config: few functions are handed it, and it seldom comes back to a file."""

import ast
from pathlib import Path

import pytest
from config_walk import walk

ROOT = Path(__file__).parent.parent
# Before a run was made out of stages: 92 stays, 38 returns.
MOST_STAYS, MOST_RETURNS = 45, 15


@pytest.fixture(scope="module")
def stays():
    return walk(ROOT / "lion_fast", "lion_fast.training.run", "train")


def test_a_config_is_handed_on_seldom_and_returns_seldom(stays):
    listed = "\n".join(map(str, stays))
    assert len(stays) <= MOST_STAYS, listed
    assert sum(stay.is_return for stay in stays) <= MOST_RETURNS, listed


def test_the_walk_comes_by_every_stage_and_through_what_it_calls(stays):
    """A type that the walk cannot tell would hide what lies behind it."""
    path = [stay.function for stay in stays]
    expected = [
        *("Stages.settle", "anchored", "reopened", "resolve", "Shelf.of"),
        *(
            "Stages.supply",
            "Stages.load",
            "open_data",
            "load_image_set",
            "Stages.build",
            "build_model",
        ),
        *("RunFolder.create", "initialise", "RunRecord.__init__", "Stages.equip"),
        *("TrainStep.__init__", "rate_factor", "make_engine", "Training.__init__", "summarize"),
    ]
    positions = [path.index(name) for name in expected]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("function", "times"), [("resolve", 1), ("reopened", 1), ("RunFolder.create", 1)]
)
def test_what_is_found_out_once_is_carried(stays, function, times):
    assert [stay.function for stay in stays].count(function) == times


def test_a_walk_counts_what_is_handed_what_is_held_and_what_comes_back(tmp_path):
    package = tmp_path / "lion_fast"
    package.mkdir()
    files = {
        "config": "class TrainConfig:\n    def to_dict(self): ...",
        "held": (
            "from lion_fast.config import TrainConfig\n"
            "class Held:\n"
            "    def __init__(self, config: TrainConfig):\n        self.config = config\n"
            "    def looks(self):\n        return self.config.to_dict()\n"
            "    def does_not(self):\n        return 1\n"
        ),
        "other": "from lion_fast.held import Held\ndef reads(held: Held, number):\n    ...\n",
        "start": (
            "from lion_fast.config import TrainConfig\n"
            "from lion_fast.held import Held\n"
            "from lion_fast.other import reads\n"
            "def train(config: TrainConfig):\n"
            "    held = Held(config)\n"
            "    held.does_not()\n"
            "    reads(held, 1)\n"
            "    held.looks()\n"
        ),
    }
    for name, source in files.items():
        (package / f"{name}.py").write_text(source)
    found = walk(package, "lion_fast.start", "train")
    told = [(stay.function, stay.is_return) for stay in found]
    assert told == [("Held.__init__", False), ("reads", False), ("Held.looks", True)]


@pytest.mark.parametrize("name", ["run", "stages", "loop", "outcome"])
def test_a_reader_of_what_one_process_does_meets_no_rank(name):
    """What several do otherwise stands in together.py, which takes the place of a few methods."""
    tree = ast.parse((ROOT / "lion_fast" / "training" / f"{name}.py").read_text(encoding="utf-8"))
    words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    words |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not words & {"world", "rank", "ranks", "leads", "agreed", "share", "in_turn", "gather"}


def test_no_function_of_the_front_merely_passes_on_many_parameters():
    front = (ROOT / "lion_fast" / "training").glob("*.py")
    for path in front:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name != "train":
                taken = [each.arg for each in (*node.args.args, *node.args.kwonlyargs)]
                number = len(taken) - ("self" in taken)
                assert number <= 6, f"{path.name}: {node.name} takes {number}"


def test_the_hot_loop_is_readable_in_one_sitting():
    source = (ROOT / "lion_fast" / "training" / "loop.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250
