"""Seconds that a study adds to each of its runs: process, claims, transaction, bookkeeping.

The stand-in for a trainer leaves a run folder of the paper's 3,000 steps and returns, so that all
the time there is is the study's own; the writing of that folder is taken off. The goal is 1 % of a
run when Table 1's 48 runs take 10 minutes.
"""

import csv
import json
import time
from pathlib import Path
from typing import Any

from _processes import state, stated

from lion_fast.config import TrainConfig
from lion_fast.report.results import read_study
from lion_fast.study.grid import Study, grid
from lion_fast.study.runner import run_study

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


@stated
def test_study_machinery(benchmark, tmp_path) -> None:
    """State the seconds per run, over a whole study with one worker."""
    seeds = range(1 if benchmark.disabled else 24)
    study = Study(
        name="machinery",
        title="Machinery",
        base=TrainConfig(dataset="cifar10"),
        variants=grid(init=("he", "lion_dg")),
        seeds=tuple(seeds),
    )
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
