"""A study on the stand-in: two workers share one GPU, and each sets up its step once."""

import csv
import subprocess
import sys

import pytest
from stand_in import needs_stand_in, noting_environment

pytestmark = [needs_stand_in, pytest.mark.slow]

STUDY = """
preset = "quickstart"
seeds = [1, 2]
base = {engine = "graph", graph_compile = false, block_layers = 1, batch_size = 32, max_steps = 20}
axes = {init = ["he", "lion_dg"]}
"""


def test_two_workers_share_a_gpu_and_reuse_their_steps(tmp_path, kernel_cache):
    env = noting_environment("H100", kernel_cache)
    (tmp_path / "small.toml").write_text(STUDY, encoding="utf-8")
    command = [sys.executable, "-P", "-m", "lion_fast.cli", "study", "small.toml"]
    command += ["--device", "cuda"]

    def study(*flags):
        done = subprocess.run(
            [*command, *flags], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    study("--jobs", "2")
    assert study("--status").count("done") >= 4
    study("--export", "exported")
    with open(tmp_path / "exported" / "summaries.csv", newline="", encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    assert [run["steps"] for run in runs] == ["20"] * 4
    # Of four runs alike, only the first of each worker is set up.
    assert sum(run["reused"] == "True" for run in runs) >= 2
