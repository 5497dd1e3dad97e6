import time

import pytest
import torch

from lion_fast.training.step.clock import TrainingClock


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
