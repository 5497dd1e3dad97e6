"""On a CPU validation, evaluation and probes do with the memory that training has."""

import subprocess
import sys

import pytest

# Each part in a process of its own, whose peak it prints in MiB; the step is the same.
CODE = """
import sys
from pathlib import Path
from lion_fast.config import TrainConfig
from lion_fast.training import evaluate, loop, train
from lion_fast.training.machine.environment import peak_memory_mib
from lion_fast.training.measure.validate import Validation
import torch
peak = lambda: peak_memory_mib(torch.device("cpu"))
part, dataset, out = sys.argv[1:]
config = TrainConfig(dataset=dataset, block_layers=2, batch_size=64, max_steps=6, window=2,
                     device="cpu", out=out, gradient_ratio_every=3 if part == "probe" else 0)
if part == "eval":
    evaluate(next(Path(out).iterdir()), device="cpu")
else:
    if part == "train":
        loop.validate = lambda *_: Validation(0.0, (0.0, 0.0, 0.0))
    train(config)
print(peak())
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    import numpy as np

    rng = np.random.default_rng(0)
    split = lambda n: (rng.integers(0, 255, (n, 64, 64, 3)).astype("uint8"), np.arange(n) % 4)  # noqa: E731
    (x, y), (u, v) = split(256), split(1024)
    path = tmp_path_factory.mktemp("data") / "large.npz"
    np.savez(path, x_train=x, y_train=y, x_test=u, y_test=v)
    return path


@pytest.mark.slow
@pytest.mark.exhaustive
def test_validation_evaluation_and_probes_stay_below_the_peak_of_training(large, tmp_path):
    peaks = {}
    for part in ("train", "whole", "probe", "eval"):
        out = tmp_path / ("whole" if part == "eval" else part)
        command = [sys.executable, "-c", CODE, part, str(large), str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks[part] = float(done.stdout.split()[-1])
    # The same part's peak differs by up to 5 % from one process to the next, as blocks of memory
    # come to lie; validation in batches of its own size takes 1.6 times training's and more.
    assert max(peaks.values()) < 1.1 * peaks["train"], peaks


# As `lion-fast train --preset paper`, but short, and with CIFAR-10's sizes instead of its images.
PAPER = """
import sys
from dataclasses import replace
import numpy as np
import torch
from lion_fast.presets import PRESETS
from lion_fast.training import train
from lion_fast.training.machine.environment import peak_memory_mib
dataset, out = sys.argv[1:]
rng = np.random.default_rng(0)
x = rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
y = np.arange(len(x)) % 10
np.savez(dataset, x_train=x, y_train=y, x_test=x[:256], y_test=y[:256])
del x
train(replace(PRESETS["paper"], dataset=dataset, max_steps=2, window=2, device="cpu", out=out))
print(peak_memory_mib(torch.device("cpu")))
"""


@pytest.mark.slow
def test_the_papers_run_on_a_cpu_stays_below_two_gib(tmp_path):
    command = [sys.executable, "-c", PAPER, str(tmp_path / "cifar.npz"), str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 2048
