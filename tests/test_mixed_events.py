"""Mishaps of every kind, a few of each; bench/results/mixed_events.csv holds two hundred."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import forks
import mixed_events
import pytest
from kill_runs import Ended

SUPPORT = Path(mixed_events.__file__).parent


def can_mount():
    """Whether a process here may have mounts of its own."""
    code = "import faulty_disks; faulty_disks.own_mounts()"
    done = subprocess.run([sys.executable, "-c", code], cwd=SUPPORT, capture_output=True)
    return done.returncode == 0


def survive(*kinds):
    """Let one event of each kind happen; each ends as if nothing had."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    command = [sys.executable, SUPPORT / "mixed_events.py", "--last", str(len(kinds)), "--kinds"]
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([*command, *kinds], capture_output=True, text=True, timeout=900, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"{len(kinds)} events, 0 faults\n")


def test_a_run_survives_signals_stops_moved_images_and_folders_that_cannot_be_synced():
    survive("signal", "stop", "nosync", "moved")


@pytest.mark.slow
def test_a_run_survives_a_disk_that_fills():
    if not can_mount():
        pytest.skip("needs a mount namespace")
    survive("full", "kill")


@pytest.mark.slow
def test_a_study_survives_its_workers_death_and_other_data():
    survive("worker", "changed")


def test_another_exit_code_and_a_traceback_are_faults():
    assert forks.faults_of(Ended(1, "", "a line", 1.0), 0, 1) == []
    assert forks.faults_of(Ended(2, "", "a line", 1.0), 0, 1) == ["exit 2: a line"]
    assert forks.faults_of(Ended(1, "", "Traceback", 1.0), 0, 1) == ["exit 1: Traceback"]


def test_every_kind_is_one_that_an_event_can_be():
    for kind in mixed_events.KINDS:
        assert callable(getattr(mixed_events.Trial, f"_{kind}"))
