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
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from study_runs import summary

from lion_fast.cli import main
from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.study import runner
from lion_fast.study.grid import Study, grid
from lion_fast.study.pools import local, worker
from lion_fast.study.pools.local import LocalPool
from lion_fast.study.runner import run_study
from lion_fast.study.status import (
    CellState,
    cell_states,
    clock,
    num_cores,
    seconds_left,
    status_lines,
    status_table,
    steps_done,
    time_left,
)
from lion_fast.study.stopping import STOPPING
from lion_fast.study.store import Store, StoredCell

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
        return summary(
            STUDY.base,
            run=str(self.run),
            steps=NUM_STEPS,
            steps_to_target=5,
            total_seconds=2.0,
            train_seconds=1.0,
            resumed_at=self.resumed_at,
            resolved=self.resolved,
        )


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


def test_a_store_that_cannot_be_written_ends_the_study_and_the_run_is_not_lost(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(UserError, match="disk is full"):
        patch.setattr(Store, "finish", refuse)
        run_study(STUDY, tmp_path, trainer=fake_train, say=str)
    assert len(started(tmp_path)) == 1
    run_study(STUDY, tmp_path, trainer=fake_train, say=str)
    assert [summary["resumed_at"] for summary in summaries(tmp_path)] == [NUM_STEPS, 0, 0, 0, 0, 0]


class LossyPool(LocalPool):
    """Loses its slots, as a cluster does whose nodes die, `losses` times."""

    def __init__(self, losses, trainer):
        super().__init__(1, trainer)
        self.losses = losses

    def hear(self, seconds):
        if not self.losses:
            return super().hear(seconds)
        self.losses -= 1
        slot = next(iter(self.workers.values()))
        slot.process.kill()
        ((_, ended),) = super().hear(seconds)
        return [(slot, ended._replace(manner="its node has gone", is_lost=True))]


@pytest.mark.parametrize(("losses", "num_failed"), [(2, 0), (runner.MOST_ATTEMPTS, 1)])
def test_a_cell_that_is_lost_is_tried_again_but_not_for_ever(tmp_path, losses, num_failed):
    said = []
    study = STUDY.override(seeds=(1,))
    outcome = run_study(
        study,
        tmp_path,
        trainer=fake_train,
        say=said.append,
        make_pool=partial(LossyPool, losses),
    )
    assert (outcome.num_done, outcome.num_failed) == (3 - num_failed, num_failed)
    assert sum("lost    he" in text for text in said) == losses - num_failed
    with Store.open(tmp_path / "fake") as store:
        errors = [each.error for _, each in store.of(study)]
    assert errors == ["its node has gone" if num_failed else None, None, None]


SCRIPT = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import test_study_runner as t
from lion_fast.study.stopping import signal_of
from pathlib import Path
try:
    outcome = t.run_study(t.STUDY, Path(sys.argv[1]), jobs=2, trainer=t.slow_train)
except KeyboardInterrupt as stop:
    sys.exit(128 + signal_of(stop))
print(outcome)
"""


def start(tmp_path, hang_up=signal.SIG_DFL):
    """Start a study that hears a hang-up as in a terminal, even where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, hang_up)
    try:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGHUP, before)


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_runs_in_flight_save_and_is_the_exit_code(tmp_path, number):
    process = start(tmp_path)
    log = tmp_path / "fake" / "runs" / "log.txt"
    wait_for(lambda: log.exists() and len(events(tmp_path)) >= 2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
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
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, b"")
    assert list(out.glob("long/runs/*/*/checkpoint*"))


def test_a_hang_up_that_is_ignored_does_not_end_a_study(tmp_path):
    process = start(tmp_path, signal.SIG_IGN)
    log = tmp_path / "fake" / "runs" / "log.txt"
    wait_for(lambda: log.exists() and len(events(tmp_path)) >= 2)
    process.send_signal(signal.SIGHUP)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, ""), output


def test_a_study_goes_on_quietly_when_nobody_reads_what_it_says(tmp_path):
    with start(tmp_path) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert None not in summaries(tmp_path)


def test_output_onto_a_full_disk_is_lost_in_one_line(tmp_path):
    command = [sys.executable, "-m", "lion_fast.cli", "study", "table1", "--status"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    expected = "lion-fast: standard output was lost: No space left on device\n"
    assert (done.returncode, done.stderr) == (0, expected)


def test_status_into_a_pipe_that_was_closed_is_quiet(tmp_path):
    command = [sys.executable, "-m", "lion_fast.cli", "study", "table1", "--status"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_terminals_signal_reaches_each_run_once(tmp_path, number):
    process = start(tmp_path)
    log = tmp_path / "fake" / "runs" / "log.txt"
    wait_for(lambda: log.exists() and len(events(tmp_path)) >= 2)
    os.killpg(process.pid, number)  # a terminal signals workers too
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, "")
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


def test_more_jobs_than_cores_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "num_cores", lambda: 2)
    said = []
    run_study(STUDY, tmp_path, jobs=3, trainer=fake_train, say=said.append)
    assert any("oversubscribed: 3 runs at a time share 2 cores" in text for text in said)
    run_study(STUDY, tmp_path, jobs=3, trainer=fake_train, say=said.append)
    assert sum("oversubscribed" in text for text in said) == 1  # nothing was left to run


def train_in_view(config, resume, jobs):
    folder = config.out / "run"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for step in range(1, NUM_STEPS + 1):
        with open(folder / "metrics.csv", "a", encoding="utf-8") as file:
            file.write("step,loss\n" * (step == 1) + f"{step},1.0\n")
        time.sleep(0.05)
    return FakeSummary(folder, 0)


def test_a_running_cell_shows_its_step_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "PROGRESS_SECONDS", 0.02)
    said = []
    study = STUDY.override(seeds=(1,))
    run_study(study, tmp_path, trainer=train_in_view, say=said.append)
    steps = [text.split("step ")[1] for text in said if "running he" in text]
    assert steps and len(set(steps)) == len(steps)
    assert steps[-1].endswith(" of 8")


def states_of(num_done, num_running, step, jobs=1, device="cpu"):
    """States of a study whose runs last 10 s and 100 steps."""
    study = STUDY.override(seeds=tuple(range(1, 1 + num_done + num_running)))
    cells = study.cells()[:: len(study.variants)]
    done = summary(STUDY.base, steps=100, total_seconds=10.0, train_seconds=10.0, jobs=jobs)
    done["resolved"] = {"device": device}
    stored = StoredCell(1, "", STUDY.base, done, None)
    return [
        CellState(cell, stored, "done", 100)
        if index < num_done
        else CellState(cell, None, "running", step)
        for index, cell in enumerate(cells)
    ]


def test_the_time_left_is_never_nothing_while_runs_are_out():
    assert seconds_left(states_of(1, 1, step=100)) == pytest.approx(0.5)
    assert time_left(states_of(1, 1, step=5000)) == "0:00:01"
    assert time_left(states_of(2, 0, step=0)) is None
    # Four jobs are no sooner done with three runs than the slowest of them.
    assert seconds_left(states_of(1, 3, step=0, device="cuda"), jobs=4) == pytest.approx(10)


def test_the_time_left_knows_that_runs_beyond_the_cores_slow_one_another():
    jobs = 4 * num_cores()
    assert seconds_left(states_of(1, jobs, step=0), jobs=jobs) == pytest.approx(40)
    assert seconds_left(states_of(1, jobs, step=0, jobs=jobs), jobs=jobs) == pytest.approx(10)


def test_a_table_taller_than_the_terminal_keeps_running_rows_and_the_time_left():
    study = STUDY.override(seeds=tuple(range(20)))
    states = [CellState(cell, None, "missing", 0) for cell in study.cells()]
    states[40] = CellState(states[40].cell, None, "running", 3)
    done = states_of(1, 0, step=0)[0].stored
    states[0] = CellState(states[0].cell, done, "done", 100)
    console = Console(width=70, height=14, record=True, file=open(os.devnull, "w"))
    console.print(status_table(study, states, console.height))
    lines = console.export_text().splitlines()
    console.file.close()
    text = "\n".join(lines)
    assert len(lines) <= 14
    assert "running" in text and "step 3 of 8" in text
    assert "not shown: 1 done, " in text
    assert "left" in " ".join(lines[-2:])
    assert status_table(study, states).row_count == 60


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    out = tmp_path / "studies"
    for name in ("cifar10", "cifar100"):
        (tmp_path / f"{name}.npz").write_text("")
    arguments = ["--dry-run", "--out", str(out), "--data-dir", str(tmp_path)]
    assert main(["study", "table1", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 50
    assert lines[-2] == "table1: 48 runs: 48 missing"
    assert lines[-1] == "set-ups: 4 a worker for 48 runs, the rest is reused"
    assert not out.exists()


def test_a_dry_run_says_what_cannot_run(tmp_path, capsys):
    path = tmp_path / "odd.toml"
    path.write_text(
        """
        seeds = [1, 2]
        base = {device = "cpu"}
        axes = {init = ["he"]}
        cells = [
            {init = "he", engine = "graph"}, {init = "he", placement = "residual"},
            {init = "he", dataset = "absent.npz"}, {init = "he", dataset = "cifar10"},
        ]
        """
    )
    arguments = ["--dry-run", "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path)]
    assert main(["study", str(path), *arguments]) == 0
    said = capsys.readouterr().out.splitlines()[12:]
    assert [line.partition(":")[0].split(" seed")[0] for line in said] == [
        "2 runs, he graph",
        "2 runs, he residual",
        "2 runs, he absent",
        "2 runs, he cifar10",
    ]
    assert "cannot run here: engine graph needs a CUDA GPU" in said[0]
    assert "cannot run: placement is 'residual'" in said[1]
    assert "cannot run: dataset absent.npz does not exist" in said[2]
    assert f"cifar10 is not in {tmp_path}: the first run would download it" in said[3]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seeds"], "--seeds has no value"),
        (["--dry-run", "--status"], "--dry-run and --status exclude each other"),
        (["--status", "--export", "x"], "--status and --export exclude each other"),
        (["--dry-run", "--export", "x"], "--dry-run and --export exclude each other"),
        (["--force"], "--force goes with --export"),
    ],
)
def test_flags_that_would_be_dropped_are_refused_in_one_line(tmp_path, capsys, flags, words):
    assert main(["study", "quickstart", "--out", str(tmp_path / "out"), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


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
    with open(tmp_path / "csv" / "summaries.csv", newline="") as file:
        reused = [row["reused"] for row in csv.DictReader(file) if not row["error"]]
    assert sorted(reused) == ["False", "True", "True", "True"]  # one worker, one shape
    first = {row["init"]: float(row["gradient_ratio"]) for row in rows if row["step"] == "1"}
    assert first["lion_dg"] == 0 < first["he"]  # Proposition 1, through the whole machinery


def test_starting_a_study_does_not_wait_for_torch():
    code = "import lion_fast.study.runner, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
