"""What is said of a study that runs, or would: status, time left, dry run."""

import os
import subprocess
import sys

import pytest
from fake_study import STUDY, FakeSummary, start, wait_for
from rich.console import Console
from study_runs import summary

from lion_fast.cli import main
from lion_fast.study.status import (
    CellState,
    cell_states,
    clock,
    num_cores,
    seconds_left,
    status_lines,
    status_table,
    time_left,
)
from lion_fast.study.store import Store, StoredCell


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


def test_status_shows_runs_in_progress_and_the_time_left(tmp_path):
    process = start(tmp_path)
    lines = []

    def both_seen():
        lines[:] = status_lines(STUDY, tmp_path)
        return {"done", "running"} <= {line.split()[0] for line in lines}

    wait_for(both_seen)
    process.communicate(timeout=600)
    assert "left" in lines[-1]
    assert status_lines(STUDY, tmp_path)[-1] == "fake: 6 runs: 6 done; data not known of 6"


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
