"""Studies as processes: two at once, killed, signalled, unheard."""

import _thread
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from fake_study import (
    NUM_STEPS,
    STUDY,
    events,
    fake_train,
    is_running,
    start,
    started,
    summaries,
    wait_for,
)

from lion_fast.study.pools import worker
from lion_fast.study.status import (
    steps_done,
)
from lion_fast.study.stopping import STOPPING, stop_signals
from lion_fast.study.store import Store


def test_two_processes_on_one_study_never_run_the_same_cell(tmp_path):
    processes = [start(tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert started(tmp_path) == dict.fromkeys(started(tmp_path), 1)
    assert len(started(tmp_path)) == 6
    assert None not in summaries(tmp_path)


def test_a_killed_study_leaves_no_worker_and_goes_on_where_it_stood(tmp_path):
    rng = random.Random(int.from_bytes(os.urandom(4)))
    log = tmp_path / "fake" / "runs" / "log.txt"
    finished_before = set()
    for kill in range(3):
        process = start(tmp_path)
        wait_for(lambda least=2 * kill: log.exists() and len(events(tmp_path)) > least)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.communicate()
        workers = {int(event[3]) for event in events(tmp_path)}
        wait_for(lambda workers=workers: not any(map(is_running, workers)), seconds=10)
        done = {e[1:3] for e in events(tmp_path) if e[0] == "finished"}
        stored = [summary is not None for summary in summaries(tmp_path)]
        # A run may have ended without its result being recorded; never the other way round.
        assert sum(stored) <= len(done)
        assert finished_before <= done
        finished_before = done
    output = start(tmp_path).communicate(timeout=600)
    assert None not in summaries(tmp_path), output
    for cell in started(tmp_path):
        saved = 0
        for event, *_ in (e for e in events(tmp_path) if e[1:3] == cell):
            kind, _, step = event.partition("-")
            if kind == "from":  # a kill may fall between a checkpoint and its line in the log
                assert int(step) in (saved, saved + 1)
            saved = int(step or saved)
        assert saved == NUM_STEPS
    with Store.open(tmp_path / "fake") as store:
        for _, stored in store.of(STUDY):
            assert len(store.table("metrics", stored.id).rows) == NUM_STEPS


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
)
def test_a_signal_lets_runs_in_flight_save_and_is_the_exit_code(tmp_path, number):
    process = start(tmp_path)
    log = tmp_path / "fake" / "runs" / "log.txt"
    wait_for(lambda: log.exists() and len(events(tmp_path)) >= 2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + number, errors
    assert errors == ""
    assert "interrupted" in output
    last = list({event[3]: event[0] for event in events(tmp_path)}.values())  # of every worker
    assert set(last) <= {"saved", "finished"}
    assert "saved" in last


def test_a_terminated_study_of_real_runs_goes_on_from_their_checkpoints(tmp_path, stripes):
    path = tmp_path / "long.toml"
    path.write_text(
        f"""
        seeds = [1]
        axes = {{init = ["he"]}}
        [base]
        dataset = "{stripes}"
        device = "cpu"
        growth_rate = 2
        block_layers = 1
        batch_size = 8
        max_steps = 100000
        checkpoint_every = 0
        log_every = 5
        """
    )
    out = tmp_path / "studies"
    command = [sys.executable, "-m", "lion_fast.cli", "study", str(path), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(lambda: any(map(steps_done, out.glob("long/runs/*"))))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (143, b"")
    assert list(out.glob("long/runs/*/*/checkpoint*"))


def test_a_hang_up_that_is_ignored_does_not_end_a_study(tmp_path):
    process = start(tmp_path, signal.SIG_IGN)
    log = tmp_path / "fake" / "runs" / "log.txt"
    wait_for(lambda: log.exists() and len(events(tmp_path)) >= 2)
    process.send_signal(signal.SIGHUP)
    output, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (0, ""), output


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_a_warning_that_is_ignored_or_the_callers_own_does_not_end_a_study(handler):
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with stop_signals():
            signal.raise_signal(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_study_goes_on_quietly_when_nobody_reads_what_it_says(tmp_path):
    with start(tmp_path) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert None not in summaries(tmp_path)


def test_a_worker_that_has_just_finished_is_deaf_to_an_interrupt(tmp_path, monkeypatch):
    def serve_and_be_interrupted(*_):
        _thread.interrupt_main()  # flagged now, raised at the next call

    monkeypatch.setattr(worker, "_serve", serve_and_be_interrupted)
    # What stays ignored here, every process that a later test starts would ignore too.
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        worker.work(None, 1, fake_train)
        _thread.interrupt_main()
        time.sleep(0.01)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_all_processes_reaches_each_run_once(tmp_path, number):
    process = start(tmp_path)
    log = tmp_path / "fake" / "runs" / "log.txt"
    wait_for(lambda: log.exists() and len(events(tmp_path)) >= 2)
    os.killpg(process.pid, number)  # a terminal signals workers too, and so may a cluster
    output, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (128 + number, "")
    assert "saved" in {event[0] for event in events(tmp_path)}
