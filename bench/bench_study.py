"""Seconds that a study adds to each of its runs: process, claims, transaction, bookkeeping.

The stand-in for a trainer leaves a run folder of the paper's 3,000 steps and returns, so that all
the time there is is the study's own; the writing of that folder is taken off. The goal is 1 % of a
run when Table 1's 48 runs take 10 minutes.
"""

import csv
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lion_fast.config import TrainConfig
from lion_fast.report.results import read_study
from lion_fast.study.grid import Study, grid
from lion_fast.study.runner import run_study
from support.processes import run_python, state, stated

BENCHMARK = {
    "title": "Studies",
    "order": 100,
    "stage": "overhead",
}

NUM_STEPS = 3000
COLUMNS = ("step", "loss", "loss_head0", "loss_head1", "loss_head2", "train_accuracy",
           "accuracy_head0", "accuracy_head1", "accuracy_head2", "train_accuracy_windowed",
           "seconds", "images_per_second")  # fmt: skip


class Outcome:
    """What a study uses of a Summary."""

    resolved = {"device": "cuda"}

    def __init__(self, run: Path, seconds: float) -> None:
        self.run, self.seconds = run, seconds

    def to_dict(self) -> dict[str, Any]:
        """Return the entries that the study's messages show."""
        return {
            "run": str(self.run),
            "steps": NUM_STEPS,
            "target_accuracy": 0.7,
            "steps_to_target": NUM_STEPS,
            "seconds_to_target": self.seconds,
            "step_milliseconds_median": None,
            "init_seconds": 0.0,
            "setup_seconds": 0.0,
            "train_seconds": self.seconds,
            "total_seconds": self.seconds,
            "val_accuracy": 0.8,
            "val_accuracy_per_head": [0.8],
            "resolved": self.resolved,
            "environment": {},
        }


def leave_a_run(config: TrainConfig, resume: Path | None, jobs: int) -> Outcome:
    """Write what a run leaves behind, and time that."""
    start = time.perf_counter()
    folder = config.out / "run"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    with open(folder / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(
            [step, *[1 / step] * (len(COLUMNS) - 1)] for step in range(1, 1 + NUM_STEPS)
        )
    return Outcome(folder, time.perf_counter() - start)


def machinery_study(num_seeds: int) -> Study:
    """Return a study of twice as many runs."""
    return Study(
        name="machinery",
        title="Machinery",
        base=TrainConfig(dataset="cifar10"),
        variants=grid(init=("he", "lion_dg")),
        seeds=tuple(range(num_seeds)),
    )


@stated
def test_study_machinery(benchmark, tmp_path) -> None:
    """State the seconds per run, over a whole study with one worker."""
    study = machinery_study(1 if benchmark.disabled else 24)
    start = time.perf_counter()
    outcome = run_study(study, tmp_path, trainer=leave_a_run, say=lambda text: None)
    seconds = time.perf_counter() - start
    num_runs = len(study.cells())
    assert outcome.num_done == num_runs
    runs = read_study(study, tmp_path).runs
    assert all(len(run.metrics["step"]) == NUM_STEPS for run in runs)
    writing = sum(run.summary["total_seconds"] for run in runs)
    state(
        benchmark,
        [(seconds - writing) / num_runs],
        op="study",
        impl="runner",
        shape=f"{num_runs} runs of {NUM_STEPS} steps",
        dtype="",
        mode="per run",
        goals={"seconds": "below 0.125: 1 % of a run, 48 of them in 10 minutes"},
    )


def run_on_ray(out: str, num_seeds: int) -> None:
    """Print, for every run after the first of a single slot, its seconds but for the writing."""
    from lion_fast.study.pools.cluster import ray_pool

    # The digits come with the package: no data set is looked for.
    study = machinery_study(num_seeds).override(dataset="digits")
    ends: list[float] = []

    def listen(text: str) -> None:
        if "  done " in text:
            ends.append(time.perf_counter())

    pool = ray_pool("local", jobs=1)
    outcome = run_study(study, Path(out), trainer=leave_a_run, say=listen, make_pool=pool)
    assert outcome.num_done == len(ends) == len(study.cells())
    writing = [run.summary["total_seconds"] for run in read_study(study, Path(out)).runs]
    print(json.dumps((ends[-1] - ends[0] - sum(writing[1:])) / (len(ends) - 1)))


@stated
def test_study_machinery_on_ray(benchmark, tmp_path) -> None:
    """State the seconds per run after the first of a slot, with Ray on this machine."""
    if find_spec("ray") is None:
        pytest.skip("needs Ray: pip install 'lion-fast[ray]'")
    num_seeds = 1 if benchmark.disabled else 24
    here = str(Path(__file__).parent)  # nodes import the trainer from it
    call = f"import bench_study; bench_study.run_on_ray({str(tmp_path)!r}, {num_seeds})"
    seconds = float(run_python("-c", call, env={"PYTHONPATH": here}).stdout.splitlines()[-1])
    state(
        benchmark,
        [seconds],
        op="study",
        impl="ray",
        shape=f"{2 * num_seeds} runs of {NUM_STEPS} steps",
        dtype="",
        mode="per run after a slot's first",
        goals={"seconds": "at most 0.15"},
    )
