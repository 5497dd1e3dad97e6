"""Cells are run once, kept, and failed one by one."""

import csv
import subprocess
import sys
import time
from functools import partial

import pytest
from fake_study import (
    NUM_STEPS,
    STUDY,
    FakeSummary,
    events,
    fake_train,
    started,
    summaries,
    train_that_fails_on_lsuv,
    train_that_has_a_bug_on_lsuv,
    train_that_is_killed_on_lsuv,
)

from lion_fast.cli import main
from lion_fast.errors import UserError
from lion_fast.study import runner
from lion_fast.study.pools import local
from lion_fast.study.pools.local import LocalPool
from lion_fast.study.runner import run_study
from lion_fast.study.status import (
    status_lines,
)
from lion_fast.study.store import Store


def refuse(*_):
    raise UserError("database or disk is full")


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
