"""On a CPU validation, evaluation and probes take no more memory than training has."""

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
def test_validation_evaluation_and_probes_stay_below_the_peak_of_training(large, tmp_path):
    peaks = {}
    for part in ("train", "whole", "probe", "eval"):
        out = tmp_path / ("whole" if part == "eval" else part)
        command = [sys.executable, "-c", CODE, part, str(large), str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks[part] = float(done.stdout.split()[-1])
    # A few MiB are of the pictures and the network's first look at other code.
    assert max(peaks.values()) < peaks["train"] + 24, peaks
