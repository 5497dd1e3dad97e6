"""Kills at random moments; bench/results/kills-*.csv hold a hundred."""

import signal
import subprocess
import sys
from pathlib import Path

import kill_runs
import pytest

HERE = Path(kill_runs.__file__).parent


@pytest.mark.slow
@pytest.mark.exhaustive
def test_runs_and_studies_killed_at_random_moments_end_as_if_never_interrupted():
    command = [sys.executable, "kill_runs.py", "--kills", "5", "--studies", "1", "--seed", "1"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    assert done.stdout.endswith("5 kills, 0 faults\n")


def test_a_kill_that_loses_steps_or_says_something_else_is_a_fault():
    def faults(code, output="", errors="", number=15, before=7, kept=14):
        ended = kill_runs.Ended(code, output, errors, 1.0)
        return list(kill_runs._faults_of("here", ended, signal.Signals(number), before, kept))

    for right in (faults(143, "interrupted at step 14: go on"), faults(-15), faults(-9, number=9)):
        assert right == []
    assert "gave exit 1" in faults(1)[0]
    assert "left on stderr" in faults(143, errors="Traceback")[0]
    born = "  File, in spawn_main\nEOFError: Ran out of input\n"
    assert faults(-9, number=9, errors=born) == []
    assert "left on stderr" in faults(143, errors=born)[0]
    assert faults(143, before=15) == ["here: 14 kept where 15 were"]
    assert faults(143, "interrupted at step 13") == ["here: said step 13, kept 14"]
