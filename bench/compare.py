"""Tell a regression from noise: `python bench/compare.py BASE [FILE...]`.

BASE, a commit: it is laid in a work tree of its own, and the benchmark files of both trees run by
turns, each time in a fresh process, so that a busy neighbour or a warm card meets both alike. Every
other round begins with the other tree, so that a drift cancels. Printed is, for each benchmark,
the ratio of its median here to its median there: the geometric mean over the rounds, with the 95 %
t interval of the rounds' log ratios. Fails where an interval lies wholly above 1.05.

BASE, a JSON file of pytest-benchmark: this tree alone is measured and compared with what the file
holds of another hour; then every difference of the machine counts as one of the code.

`here` is the working tree, with what is not committed. Both trees run in this interpreter, each
with its own lion_fast and kernels.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lion_fast.errors import UserError
from lion_fast.report.paired import Bounds, pair
from support.checkout import ROOT, import_path, make_importable

WORST_RATIO = 1.05
WORST_OF_A_FILE = "median:10%"
FAILED_BENCHMARKS, NOTHING_COLLECTED = 1, 5
"""Of pytest's exit codes: those after which its results are whole."""

Medians = dict[str, float]
"""Seconds by benchmark."""


class Ratio(NamedTuple):
    """A benchmark's median here over that of the base, with the interval of its rounds."""

    name: str
    ratio: float
    low: float
    high: float
    base_seconds: float
    """Geometric mean of the base's medians."""

    @property
    def is_regression(self) -> bool:
        """Whether the whole interval lies above the worst ratio."""
        return self.low > WORST_RATIO

    def line(self) -> str:
        """Return it in words."""
        interval = f"[{self.low:.3f}, {self.high:.3f}]" if self.high < 100 else "noise alone"
        words = f"{self.ratio:7.3f} {interval:>16} {1e3 * self.base_seconds:12.4f} ms  {self.name}"
        return words + ("  SLOWER" if self.is_regression else "")


@dataclass(frozen=True)
class Tree:
    """A checkout and the folder of links through which its code is imported."""

    name: str
    root: Path
    links: Path

    def prepare(self) -> None:
        """Make the tree importable, and see that what it imports is its own."""
        make_importable(self.links, self.root)
        code = "import lion_fast.kernels as kernels; print(kernels.__file__)"
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], env=self._env(), capture_output=True, text=True
        )
        if done.returncode:
            raise UserError(f"{self.name} cannot be imported: {done.stderr.splitlines()[-1]}")
        kernels = Path(done.stdout.strip()).resolve()
        assert kernels.is_relative_to(self.root.resolve()), kernels

    def measure(self, files: Sequence[str], options: Sequence[str], target: Path) -> Medians:
        """Run those of the benchmark files that the tree has; return their medians."""
        there = [file for file in files if (self.root / file).exists()]
        if not there:
            raise UserError(f"{self.name} has none of {', '.join(files)}: give other files")
        # -P keeps the checkout's root, whose lion_fast lacks kernels, out of sys.path.
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *there]
        command += ["--benchmark-only", f"--benchmark-json={target}", *options]
        done = subprocess.run(
            command, cwd=self.root, env=self._env(), stdout=subprocess.PIPE, text=True
        )
        if done.returncode == FAILED_BENCHMARKS:
            failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
            print("\n".join(f"{self.name}: {line}" for line in failed), flush=True)
        elif done.returncode not in (0, NOTHING_COLLECTED):
            print(done.stdout, flush=True)
            raise UserError(f"pytest ended with {done.returncode} in {self.name}: see above")
        return medians(target)

    def _env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": import_path(self.links)}


def medians(path: Path) -> Medians:
    """Return the medians that pytest-benchmark wrote, none where it measured nothing."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = json.loads(text)["benchmarks"] if text else []
    return {row["fullname"]: row["stats"]["median"] for row in rows}


@contextmanager
def checked_out(commit: str, root: Path, folder: Path) -> Iterator[Tree]:
    """Lay a commit of the repository `root` in a work tree in `folder`, for as long as it is used.

    Raises UserError where there is no such commit.
    """
    git = ["git", "-C", str(root)]
    found = subprocess.run(
        [*git, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"],
        capture_output=True,
        text=True,
    )
    if found.returncode:
        raise UserError(f"{commit} is no commit of {root}: give BASE=<commit> or BASE=FILE.json")
    full, tree = found.stdout.strip(), folder / "base"
    add = [*git, "worktree", "add", "--quiet", "--detach", str(tree), full]
    subprocess.run(add, check=True)
    try:
        yield Tree(full[:12], tree, folder / "base-links")
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)


def measure_by_turns(
    base: Tree,
    here: Tree,
    files: Sequence[str],
    *,
    rounds: int,
    options: Sequence[str],
    folder: Path,
) -> tuple[list[Medians], list[Medians]]:
    """Return the medians of every round, of the base and of this tree."""
    measured: dict[str, list[Medians]] = {base.name: [], here.name: []}
    for index in range(rounds):
        for tree in (base, here) if index % 2 == 0 else (here, base):
            target = folder / f"{tree.name}-{index}.json"
            measured[tree.name].append(tree.measure(files, options, target))
        print(f"round {index + 1} of {rounds} is done", flush=True)
    return measured[base.name], measured[here.name]


def ratios(base: Sequence[Medians], here: Sequence[Medians]) -> tuple[list[Ratio], list[str]]:
    """Compare round by round; return the ratios, worst first, and what not every round measured."""
    names = set().union(*base, *here)
    whole = {name for name in names if all(name in each for each in (*base, *here))}
    found = [
        _ratio(name, *(_by_round(name, each) for each in (here, base))) for name in sorted(whole)
    ]
    return sorted(found, key=lambda each: -each.ratio), sorted(names - whole)


def _by_round(name: str, measured: Sequence[Medians]) -> dict[int, float]:
    return {index: medians[name] for index, medians in enumerate(measured)}


def _ratio(name: str, here: Mapping[int, float], base: Mapping[int, float]) -> Ratio:
    seconds = math.exp(sum(map(math.log, base.values())) / len(base))
    if paired := pair(here, base, Bounds.of_percent(5)):
        return Ratio(name, paired.ratio, *paired.interval, seconds)
    ratio = here[0] / base[0]  # no ratio varies: that of a count, say
    return Ratio(name, ratio, ratio, ratio, seconds)


def compare(
    commit: str, files: Sequence[str], *, rounds: int, options: Sequence[str], root: Path = ROOT
) -> int:
    """Measure a commit and the tree at `root` by turns; print the ratios, return the exit code."""
    with (
        tempfile.TemporaryDirectory() as name,
        checked_out(commit, root, Path(name)) as base,
    ):
        folder = Path(name)
        here = Tree("here", root, folder / "here-links")
        for tree in (base, here):
            tree.prepare()
        measured = measure_by_turns(
            base, here, files, rounds=rounds, options=options, folder=folder
        )
    found, missing = ratios(*measured)
    print(f"\n  here / {base.name}, 95 % interval of {rounds} rounds, median of {base.name}")
    print("\n".join(each.line() for each in found))
    for each in missing:
        print(f"not compared, since not every round of both trees measured it: {each}")
    if not found:
        raise UserError(f"nothing was measured in both trees: give files that {commit} has too")
    slower = sum(each.is_regression for each in found)
    print(f"{slower} of {len(found)} slower: interval wholly above {WORST_RATIO}")
    return 1 if slower else 0


def compare_with_file(base: Path, files: Sequence[str], options: Sequence[str]) -> int:
    """Compare with a JSON file of pytest-benchmark; return pytest's exit code."""
    if not base.is_file():
        raise UserError(f"{base} is no file: give BASE=<commit> or BASE=FILE.json")
    print(
        f"warning: {base} is of another hour, and a busy neighbour counts as a regression;"
        " BASE=<commit> measures both by turns",
        flush=True,
    )
    command = [sys.executable, "-m", "pytest", *files, "--benchmark-only", *options]
    command += [f"--benchmark-compare={base}", f"--benchmark-compare-fail={WORST_OF_A_FILE}"]
    return subprocess.run(command, cwd=ROOT).returncode


def main(arguments: list[str] | None = None) -> int:
    """Compare; return 0 where nothing is slower, 1 where something is, 2 on bad input."""
    parser = argparse.ArgumentParser(description="Compare benchmarks with those of a commit.")
    parser.add_argument("base", help="a commit, or a JSON file of pytest-benchmark")
    parser.add_argument("files", nargs="*", help="benchmark files from the root; default: all")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each tree (default: 6)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--data-dir", type=Path, help="folder that holds CIFAR-10")
    args = parser.parse_args(arguments)
    files = args.files or sorted(f"bench/{path.name}" for path in ROOT.glob("bench/bench_*.py"))
    options = [f"--device={args.device}"] * bool(args.device)
    options += [f"--data-dir={args.data_dir.resolve()}"] if args.data_dir else []
    try:
        if args.rounds < 3:
            raise UserError(f"--rounds {args.rounds} tells too little of noise: give 3 at least")
        if args.base.endswith(".json"):
            return compare_with_file(Path(args.base).resolve(), files, options)
        return compare(args.base, files, rounds=args.rounds, options=options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
