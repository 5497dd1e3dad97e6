import _thread
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lion_fast.cli import main
from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.study import runner
from lion_fast.study.grid import Study, grid
from lion_fast.study.runner import run_study
from lion_fast.study.status import cell_states, clock, seconds_left, status_lines
from lion_fast.study.store import Store

TESTS = Path(__file__).parent
STUDY = Study(
    name="fake",
    title="Fake",
    base=TrainConfig(max_steps=8, log_every=1),
    variants=grid(init=("he", "lion_dg", "lsuv")),
    seeds=(1, 2),
)
NUM_STEPS = 8


class FakeSummary:
    """What `run_study` uses of a Summary, without the seconds that importing torch takes."""

    resolved = {"device": "cpu"}

    def __init__(self, run, resumed_at):
        self.run, self.resumed_at = run, resumed_at

    def to_dict(self):
        return {
            "run": str(self.run),
            "steps": NUM_STEPS,
            "target_accuracy": 0.7,
            "steps_to_target": 5,
            "seconds_to_target": 0.5,
            "total_seconds": 2.0,
            "train_seconds": 1.0,
            "val_accuracy": 0.8,
            "resumed_at": self.resumed_at,
            "resolved": self.resolved,
        }


def log(config, event):
    """Add a line to the log beside all run folders, in one write."""
    line = f"{event} {config.init} {config.seed} {os.getpid()}\n"
    with open(config.out.parent / "log.txt", "a", encoding="utf-8") as file:
        file.write(line)


def fake_train(config, resume, jobs, seconds_per_step=0.0):
    """Train for NUM_STEPS steps, each of which is checkpointed."""
    folder = resume or config.out / "run"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    checkpoint = folder / "checkpoint.pt"
    resumed_at = int(checkpoint.read_text()) if checkpoint.exists() else 0
    log(config, f"from-{resumed_at}")
    try:
        for step in range(resumed_at + 1, NUM_STEPS + 1):
            time.sleep(seconds_per_step)
            (folder / "checkpoint.tmp").write_text(str(step))
            os.replace(folder / "checkpoint.tmp", checkpoint)
            log(config, f"step-{step}")
    except KeyboardInterrupt:
        log(config, "saved")
        raise
    rows = [f"{step},{config.seed + 1 / step}" for step in range(1, NUM_STEPS + 1)]
    (folder / "metrics.csv").write_text("\n".join(["step,loss", *rows]) + "\n")
    log(config, "finished")
    return FakeSummary(folder, resumed_at)


def slow_train(config, resume, jobs):
    return fake_train(config, resume, jobs, seconds_per_step=0.03)


def train_that_fails_on_lsuv(config, resume, jobs):
    if config.init == "lsuv":
        raise UserError("loss is nan at step 3: lower --lr")
    return fake_train(config, resume, jobs)


def train_that_has_a_bug_on_lsuv(config, resume, jobs):
    if config.init == "lsuv":
        raise RuntimeError("illegal memory access")
    return fake_train(config, resume, jobs)


def train_that_is_killed_on_lsuv(config, resume, jobs):
    if config.init == "lsuv":
        os.kill(os.getpid(), signal.SIGKILL)
    return fake_train(config, resume, jobs)


def refuse(*_):
    raise UserError("database or disk is full")


def train_that_fills_the_disk(config, resume, jobs):
    Store.finish = refuse  # in the worker's process alone
    return fake_train(config, resume, jobs)


def events(tmp_path):
    """What the fake trainers did: event, initialisation, seed, process."""
    text = (tmp_path / "fake" / "runs" / "log.txt").read_text(encoding="utf-8")
    return [tuple(line.split()) for line in text.splitlines()]


def started(tmp_path):
    return Counter(event[1:3] for event in events(tmp_path) if event[0].startswith("from"))


def summaries(tmp_path):
    with Store.open(tmp_path / "fake") as store:
        return [stored.summary for _, stored in store.of(STUDY)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_study_runs_every_cell_once_and_then_nothing(tmp_path, jobs):
    said = []
    outcome = run_study(STUDY, tmp_path, jobs=jobs, trainer=fake_train, say=said.append)
    assert (outcome.num_done, outcome.num_failed, outcome.num_elsewhere) == (6, 0, 0)
    assert all(summary["val_accuracy"] == 0.8 for summary in summaries(tmp_path))
    assert len({event[3] for event in events(tmp_path)}) <= jobs
    again = run_study(STUDY, tmp_path, trainer=fake_train, say=said.append)
    assert again.num_done == 0
    assert started(tmp_path) == dict.fromkeys(started(tmp_path), 1)
    assert "[6/6]" in "\n".join(said)


def test_the_store_holds_a_runs_metrics_and_its_checkpoints_are_dropped(tmp_path):
    run_study(STUDY, tmp_path, trainer=fake_train, say=str)
    with Store.open(tmp_path / "fake") as store:
        for cell, stored in store.of(STUDY):
            rows = [(s, cell.config.seed + 1 / s) for s in range(1, NUM_STEPS + 1)]
            assert store.table("metrics", stored.id) == (["step", "loss"], rows)
    assert list(tmp_path.rglob("metrics.csv"))
    assert not list(tmp_path.rglob("checkpoint*"))


def test_new_seeds_run_and_old_results_stay(tmp_path):
    run_study(STUDY, tmp_path, trainer=fake_train, say=str)
    outcome = run_study(STUDY.override(seeds=(1, 2, 3)), tmp_path, trainer=fake_train, say=str)
    assert outcome.num_done == 3
    assert set(started(tmp_path).values()) == {1}


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (train_that_fails_on_lsuv, "loss is nan at step 3: lower --lr"),
        (train_that_has_a_bug_on_lsuv, "RuntimeError: illegal memory access"),
        (train_that_is_killed_on_lsuv, "its process was killed by SIGKILL"),
    ],
)
def test_a_cell_that_fails_is_recorded_and_the_rest_goes_on(tmp_path, trainer, words, capfd):
    outcome = run_study(STUDY, tmp_path, trainer=trainer, say=str)
    assert (outcome.num_done, outcome.num_failed) == (4, 2)
    with Store.open(tmp_path / "fake") as store:
        for cell, stored in store.of(STUDY):
            failed = cell.config.init == "lsuv"
            assert (stored.summary is None) == failed
            assert words in (stored.error or "") or not failed
    assert sum(words in line for line in status_lines(STUDY, tmp_path)) == 2
    # Started again, what failed is tried again.
    assert run_study(STUDY, tmp_path, trainer=fake_train, say=str).num_done == 2
    assert None not in summaries(tmp_path)


def test_a_store_that_cannot_be_written_ends_the_study_and_the_run_is_not_lost(tmp_path):
    with pytest.raises(UserError, match="disk is full"):
        run_study(STUDY, tmp_path, trainer=train_that_fills_the_disk, say=str)
    assert len(started(tmp_path)) == 1
    run_study(STUDY, tmp_path, trainer=fake_train, say=str)
    assert [summary["resumed_at"] for summary in summaries(tmp_path)] == [NUM_STEPS, 0, 0, 0, 0, 0]


SCRIPT = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import test_study_runner as t
from pathlib import Path
try:
    outcome = t.run_study(t.STUDY, Path(sys.argv[1]), jobs=2, trainer=t.slow_train)
except KeyboardInterrupt:
    sys.exit(130)
print(outcome)
"""


def start(tmp_path):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_processes_on_one_study_never_run_the_same_cell(tmp_path):
    processes = [start(tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
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
    output = start(tmp_path).communicate(timeout=120)
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


def test_ctrl_c_lets_runs_in_flight_save_and_exits_130(tmp_path):
    process = start(tmp_path)
    log = tmp_path / "fake" / "runs" / "log.txt"
    wait_for(lambda: log.exists() and len(events(tmp_path)) >= 2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == ""
    assert "interrupted" in output
    last = list({event[3]: event[0] for event in events(tmp_path)}.values())  # of every worker
    assert set(last) <= {"saved", "finished"}
    assert "saved" in last


def test_a_worker_that_has_just_finished_is_deaf_to_an_interrupt(tmp_path, monkeypatch):
    def serve_and_be_interrupted(*_):
        _thread.interrupt_main()  # flagged now, raised at the next call

    monkeypatch.setattr(runner, "_serve", serve_and_be_interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        runner._work(None, tmp_path, 1, fake_train)
        _thread.interrupt_main()
        time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_terminals_ctrl_c_reaches_each_run_once(tmp_path):
    process = start(tmp_path)
    log = tmp_path / "fake" / "runs" / "log.txt"
    wait_for(lambda: log.exists() and len(events(tmp_path)) >= 2)
    os.killpg(process.pid, signal.SIGINT)  # a terminal signals workers too
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "saved" in {event[0] for event in events(tmp_path)}


def test_status_shows_runs_in_progress_and_the_time_left(tmp_path):
    process = start(tmp_path)
    lines = []

    def both_seen():
        lines[:] = status_lines(STUDY, tmp_path)
        return {"done", "running"} <= {line.split()[0] for line in lines}

    wait_for(both_seen)
    process.communicate(timeout=60)
    assert "left" in lines[-1]
    assert status_lines(STUDY, tmp_path)[-1] == "fake: 6 runs: 6 done"


def test_the_time_left_counts_steps_and_jobs(tmp_path):
    with Store.create(STUDY, tmp_path) as store:
        assert seconds_left(cell_states(STUDY, store)) is None
        store.finish(1, FakeSummary(tmp_path, 0).to_dict(), {})
        partly = tmp_path / "fake" / "runs" / STUDY.cells()[1].key / "run"
        partly.mkdir(parents=True)
        (partly / "metrics.csv").write_text("step,loss\n1,2.0\n2,2.0\n3,2.")
        states = cell_states(STUDY, store)
        assert (states[1].state, states[1].step) == ("missing", 2)
        # Five runs of 2 s are left, one of them at step 2 of 8.
        assert seconds_left(states) == pytest.approx(2 * (4 + 6 / 8))
        assert seconds_left(states, jobs=2) == pytest.approx(4 + 6 / 8)
    assert clock(3661.4) == "1:01:01"


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    out = tmp_path / "studies"
    assert main(["study", "table1", "--dry-run", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 49
    assert lines[-1] == "table1: 48 runs: 48 missing"
    assert not out.exists()


def test_jobs_below_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="jobs is 0"):
        run_study(STUDY, tmp_path, jobs=0)


def test_a_real_study_runs_end_to_end(tmp_path, stripes, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(
        f"""
        title = "Tiny"
        seeds = [1, 2]
        [base]
        dataset = "{stripes}"
        device = "cpu"
        growth_rate = 4
        block_layers = 1
        batch_size = 32
        max_steps = 3
        window = 2
        gradient_ratio_every = 1
        [axes]
        init = ["he", "lion_dg"]
        [[cells]]
        init = "he"
        batch_size = 9999
        """
    )
    command = ["study", str(path), "--out", str(tmp_path / "studies")]
    assert main(command) == 1  # 9,999 images a batch are more than there are
    said = capsys.readouterr().out
    assert said.count("done   ") == 4
    assert said.count("batch_size is 9999, beyond the 500 training images") == 2
    assert main([*command, "--status"]) == 0
    assert "6 runs: 4 done, 2 failed" in capsys.readouterr().out
    assert main([*command, "--export", str(tmp_path / "csv")]) == 0
    with open(tmp_path / "csv" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"] * 4
    first = {row["init"]: float(row["gradient_ratio"]) for row in rows if row["step"] == "1"}
    assert first["lion_dg"] == 0 < first["he"]  # Proposition 1, through the whole machinery


def test_starting_a_study_does_not_wait_for_torch():
    code = "import lion_fast.study.runner, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
