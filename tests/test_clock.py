import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from lion_fast.training.step.clock import Standstill, TrainingClock


def test_the_clock_counts_while_it_runs_and_not_while_it_is_paused(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = TrainingClock(torch.device("cpu"), seconds=5.0)
    assert not clock.running
    clock.start()
    now = 102.0
    mark = clock.mark()
    now = 103.0
    assert mark() == 7.0  # a mark tells its own moment, whenever it is asked
    clock.pause()
    clock.pause()
    now = 200.0
    clock.start()
    now = 201.0
    assert clock.mark()() == 9.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: device events")
def test_on_a_gpu_the_clock_follows_the_device_and_marking_does_not_wait():
    device = torch.device("cuda")
    clock = TrainingClock(device)
    torch.cuda._sleep(1_000_000)
    torch.cuda.synchronize()
    clock.start()
    started = time.perf_counter()
    torch.cuda._sleep(500_000_000)
    mark = clock.mark()
    assert time.perf_counter() - started < 0.05
    assert mark() > 0.1


def test_a_process_that_stood_still_is_told_from_one_that_computed_or_waited(monkeypatch):
    now = [100.0, 0.0, 0.0]
    monkeypatch.setattr(Standstill, "_now", staticmethod(lambda: tuple(now)))
    watch = Standstill()

    def after(wall, cpu, asleep=0.0):
        for index, seconds in enumerate((wall, cpu, asleep)):
            now[index] += seconds
        return watch.seconds()

    assert after(0.25, 0.0) == 0  # a beat while the process waits for its data
    assert after(30.0, 29.0) == 0  # a step that let no beat pass
    assert after(1.0, 0.0) == 0  # a busy machine
    assert after(20.25, 0.01) == pytest.approx(20, abs=0.2)
    assert after(0.25, 0.2, 600.0) == pytest.approx(20, abs=0.2)
    assert watch.total() == pytest.approx(620, abs=0.2)
    watch.close()
    assert after(50.0, 0.0) == pytest.approx(20, abs=0.2)  # after training nothing is watched


def test_what_stood_still_is_in_no_training_seconds(monkeypatch):
    now, stopped = 100.0, 3.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = TrainingClock(torch.device("cpu"), 0.0, lambda: stopped)
    clock.start()
    now, stopped = 132.0, 33.0
    assert clock.mark()() == 2.0
    clock.pause()
    stopped = 50.0
    clock.start()
    now = 133.0
    assert clock.mark()() == 3.0


def test_a_run_that_was_stopped_says_so_and_keeps_its_seconds(tmp_path):
    command = [sys.executable, "-m", "lion_fast", "train", "--growth-rate", "2", "--out", tmp_path]
    command += ["--block-layers", "1", "--batch-size", "32", "--max-steps", "60", "--device", "cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--log-every", "1"], stdout=subprocess.PIPE, text=True, env=env
    )
    for line in process.stdout:
        if line.split()[0] == "5":
            break
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=600)
    summary = json.loads(output.splitlines()[-1])
    assert 2.5 < summary["stopped_seconds"] < summary["total_seconds"]
    assert "stood still for" in output
    assert summary["train_seconds"] < summary["total_seconds"] - 3
    (metrics,) = tmp_path.glob("*/metrics.csv")
    seconds = [float(row.split(",")[-2]) for row in metrics.read_text().splitlines()[1:]]
    steps = [after - before for before, after in zip(seconds, seconds[1:], strict=False)]
    assert max(steps) < 4
