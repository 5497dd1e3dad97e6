"""Two processes of one thread each against one of one thread: images a second, and the numbers.

Rounds of one and of two processes take turns, in balanced order, on the CPU: a machine with several
GPUs has not been at hand. The network is the paper's, on the embedded 16x16 digits, in engine
eager, and the seconds are the run's own, so that start-up does not count.
"""

import csv
import os
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest

from support.processes import Finished, run_python, state, stated

BENCHMARK = {
    "title": "Two processes",
    "order": 95,
    "stage": "overhead",
    "ours": ("2 processes",),
}

BATCH_SIZE, NUM_STEPS, ROUNDS = 256, 40, 4
TINY = ["--growth-rate", "2", "--block-layers", "1"]
ENV = {
    "OMP_NUM_THREADS": "1",
    # As the README says of --standalone.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
GOALS = {"ratio": "at least 1.7: images a second of two processes over those of one"}


def train(num_processes: int, folder: Path, *flags: object) -> dict[str, Any]:
    """Return the summary of a run of `lion-fast train` on so many processes of one thread."""
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(num_processes)]
    command = ["train", "--dataset", "digits", "--device", "cpu", "--engine", "eager"]
    command += ["--checkpoint-every", "0", "--out", str(folder), *map(str, flags)]
    # torchrun starts this interpreter without -P, which would find the checkout's lion_fast first.
    env = ENV | {"PYTHONSAFEPATH": "1"}
    done: Finished = run_python(*launcher, "-m", "lion_fast", *command, folder=folder, env=env)
    return done.last_json()


@pytest.fixture(autouse=True)
def on_two_cores(device) -> None:
    """Skip where the numbers would say nothing."""
    if device.type != "cpu":
        pytest.skip("two processes are compared on the CPU")
    if len(os.sched_getaffinity(0)) < 2 or sys.platform != "linux":
        pytest.skip("two processes need two cores")


@stated
@pytest.mark.parametrize("batch_norm", ["global", "local"])
def test_images_per_second(benchmark, tmp_path, batch_norm: str) -> None:
    """State the seconds of a step on two processes, and how many times one's images that is."""
    steps, rounds, extra = NUM_STEPS, ROUNDS, []
    if benchmark.disabled:
        if batch_norm == "local":
            pytest.skip("quick mode starts processes once")
        steps, rounds, extra = 2, 1, TINY
    flags = ["--batch-size", BATCH_SIZE, "--max-steps", steps, "--batch-norm", batch_norm, *extra]
    rates: dict[int, list[float]] = {1: [], 2: []}
    for round_number in range(rounds):
        order = (1, 2) if round_number % 2 == 0 else (2, 1)
        for number in order:
            summary = train(number, tmp_path, *flags)
            assert summary["world_size"] == number
            rates[number].append(BATCH_SIZE * 1000 / summary["step_milliseconds_median"])
    state(
        benchmark,
        [BATCH_SIZE / rate for rate in rates[2]],
        op="shared_step",
        impl="2 processes",
        shape=f"densenet_ds B{BATCH_SIZE}x3x16x16",
        dtype="fp32",
        mode=batch_norm,
        images_per_second={str(number): median(found) for number, found in rates.items()},
        ratio=median(rates[2]) / median(rates[1]),
        goals=GOALS,
    )


@stated
def test_agreement(benchmark, tmp_path) -> None:
    """Two ranks of 64 images with global statistics follow one process with 128."""
    if benchmark.disabled:
        pytest.skip("tests/test_world.py says so of a tiny network")
    steps = 100
    flags = ["--preset", "quickstart", "--batch-size", 128, "--max-steps", steps]
    flags += ["--target-accuracy", 0.5, "--window", 1, "--no-stop-at-target"]
    one, two = (train(number, tmp_path, *flags) for number in (1, 2))
    pairs = list(zip(losses(one), losses(two), strict=True))
    first = abs(pairs[0][0] - pairs[0][1])
    difference = mean(abs(ours - theirs) / ours for ours, theirs in pairs)
    crossings = [summary["steps_to_target"] for summary in (one, two)]
    state(
        benchmark,
        [two["train_seconds"] / steps],
        op="shared_step",
        impl="2 processes",
        shape="densenet_ds B128x3x16x16",
        dtype="fp32",
        mode="agreement",
        first_loss_difference=first,
        mean_relative_difference=difference,
        crossings=crossings,
    )
    assert first <= 5e-6
    assert difference <= 2e-3
    assert abs(crossings[0] - crossings[1]) <= 3


def losses(summary: dict[str, Any]) -> list[float]:
    """Return the loss of every step of a run."""
    with open(Path(summary["run"]) / "metrics.csv", newline="", encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]
