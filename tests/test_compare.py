"""`make bench-compare`: two trees by turns, and when a difference counts as one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import compare

NAME = "bench/bench_it.py::test_it"
BENCHMARK = """
import lion_fast.kernels
from lion_fast import SECONDS

class Clock:
    __name__, now = "stated", 0.0
    def __call__(self):
        return self.now

clock = Clock()

@pytest.mark.benchmark(timer=clock)
def test_it(benchmark):
    def advance():
        clock.now += SECONDS + lion_fast.kernels.SECONDS
    benchmark.pedantic(advance, rounds=2)
"""


@pytest.fixture
def trees(tmp_path, monkeypatch):
    """A repository whose commit takes 2 + 3 s a call, and whose tree may be changed."""
    # A pytest that takes itself for a worker of this one measures nothing.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    root = tmp_path / "fake"
    write(root, package=2, kernels=3)
    (root / "bench").mkdir()
    (root / "bench" / "bench_it.py").write_text("import pytest\n" + BENCHMARK)
    (root / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npython_files = ["bench_*.py"]\n'
    )
    git = ["git", "-C", str(root), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "Begin"]):
        subprocess.run([*git, *command], check=True)
    return root


def write(root, *, package, kernels):
    for folder, seconds in (("lion_fast", package), ("kernels", kernels)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "__init__.py").write_text(f"SECONDS = {seconds}\n")


def run(root, commit="HEAD", files=("bench/bench_it.py",)):
    return compare.compare(commit, files, rounds=2, options=[], root=root)


def test_a_slower_tree_fails_and_each_tree_runs_its_own_package_and_kernels(trees, capsys):
    write(trees, package=3, kernels=4)
    assert run(trees) == 1
    (row,) = [line for line in capsys.readouterr().out.splitlines() if NAME in line]
    assert row.split()[0] == "1.400"  # 3 + 4 over 2 + 3
    assert row.split()[3:] == ["5000.0000", "ms", NAME, "SLOWER"]
    worktrees = ["git", "-C", str(trees), "worktree", "list"]
    assert len(subprocess.check_output(worktrees).splitlines()) == 1


def test_the_same_tree_passes_and_a_benchmark_of_one_tree_is_named(trees, capsys):
    text = BENCHMARK.replace("test_it", "test_new")
    (trees / "bench" / "bench_new.py").write_text("import pytest\n" + text)
    assert run(trees, files=("bench/bench_it.py", "bench/bench_new.py")) == 0
    told = capsys.readouterr().out
    assert "0 of 1 slower" in told
    assert "not every round of both trees measured it: bench/bench_new.py::test_new" in told


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "nowhere is no commit"),
        (["nowhere.json"], "nowhere.json is no file"),
        (["HEAD", "--rounds", "2"], "--rounds 2 tells too little of noise"),
    ],
)
def test_bad_input_gets_one_line(arguments, words, capsys):
    assert compare.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_file_of_another_hour_is_compared_under_a_warning(tmp_path, monkeypatch, capsys):
    commands = []
    done = subprocess.CompletedProcess([], 3)
    monkeypatch.setattr(
        compare.subprocess, "run", lambda command, **_: commands.append(command) or done
    )
    base = tmp_path / "base.json"
    base.write_text(json.dumps({}))
    assert compare.main([str(base), "bench/bench_heads.py"]) == 3
    assert f"warning: {base} is of another hour" in capsys.readouterr().out
    assert {"bench/bench_heads.py", f"--benchmark-compare={base}"} <= set(commands[0])


ROUNDS = range(6)


@pytest.mark.parametrize(
    "here, is_regression",
    [
        ([1.1, 1.11, 1.1, 1.09, 1.1, 1.1], True),
        ([1.04, 1.04, 1.041, 1.04, 1.039, 1.04], False),  # surely slower, but by less than 5 %
        ([1.0, 1.9, 1.0, 1.1, 1.5, 1.0], False),  # 20 % slower on average, by noise
    ],
)
def test_only_an_interval_wholly_above_the_worst_ratio_is_a_regression(here, is_regression):
    (found,), missing = compare.ratios(
        [{NAME: 1.0} for _ in ROUNDS], [{NAME: here[index]} for index in ROUNDS]
    )
    assert found.low < found.ratio < found.high
    assert found.is_regression == is_regression and not missing


def test_what_both_trees_meet_alike_drops_out():
    """A neighbour that doubles every time of one round changes no ratio of it."""
    busy = [2.0, 1.0, 1.0, 4.0, 1.0, 1.0]
    (found,), _ = compare.ratios(
        [{NAME: each} for each in busy], [{NAME: 1.01 * each} for each in busy]
    )
    assert found.low == pytest.approx(1.01) and found.high == pytest.approx(1.01)


def test_the_command_runs_by_itself():
    root = Path(compare.__file__).parents[1]
    command = [sys.executable, "bench/compare.py", "--help"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and "JSON file of pytest-benchmark" in done.stdout
