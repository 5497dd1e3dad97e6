"""A process whose peers no longer answer in the middle of training says so, hears, gives up."""

import json
import os
import signal
import subprocess
import sys

import pytest
from run_results import table
from test_world import command_line, environment, finish, free_port

from lion_fast.cli import main
from lion_fast.training.folder.checkpoint import load_checkpoint
from lion_fast.training.machine.guards import StopSignals
from lion_fast.training.ranks import patience as patience_module
from lion_fast.training.ranks.patience import Patience
from lion_fast.training.ranks.torchrun import Ranks

STEPS, CHECKPOINT = 12, 5
# Says at once that it waits and, once its peer is about to stop, gives up soon.
WAITS = """
import os, sys
from lion_fast.training.ranks import patience, sharing
patience.PATIENCE = 0.5
waiting = sharing.Sharing.waiting
def soon(self):
    if GIVES_UP and os.path.exists(os.environ["MARKER"]):
        self.most_seconds = 2.0
    return waiting(self)
sharing.Sharing.waiting = soon
from lion_fast.cli import main
sys.exit(main(sys.argv[1:]))
"""
# Leaves a marker before step 7, and stops after it as a whole, as a machine that has frozen.
STOPS = """
import os, signal, sys
from lion_fast.training.step import step
call = step.TrainStep.__call__
def stopping(self, batch, row):
    if self.steps_done == 6:
        open(os.environ["MARKER"], "w").close()
    call(self, batch, row)
    if self.steps_done == 7 and os.path.exists(os.environ["MARKER"]):
        os.kill(os.getpid(), signal.SIGSTOP)
step.TrainStep.__call__ = stopping
from lion_fast.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def pair(tmp_path, stripes):
    """Start a rank that waits and one that stops, which goes on and is waited for at the end."""
    processes = []

    def start(waiting_rank, gives_up):
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        flags = ["--max-steps", STEPS, "--checkpoint-every", CHECKPOINT, "--log-every", 1]
        arguments = command_line(tmp_path, stripes, *flags)[2:]
        codes = [WAITS.replace("GIVES_UP", str(gives_up)), STOPS]
        marker = {"MARKER": str(tmp_path / "marker")}
        for rank, code in enumerate(codes if waiting_rank == 0 else codes[::-1]):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", code, *arguments],
                    env=environment(rank, 2) | address | marker,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        waits, stops = processes if waiting_rank == 0 else processes[::-1]
        return waits, stops, f"127.0.0.1:{address['MASTER_PORT']}"

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def run_of(tmp_path):
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    return run


def until(stream, words):
    """Return the first line that has them."""
    read = []
    for line in stream:
        read.append(line)
        if words in line:
            return line
    raise AssertionError("".join(read))


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_who_waits_in_a_step_hears_a_signal_and_keeps_the_checkpoint(
    number, pair, tmp_path, capsys
):
    waits, stops, place = pair(0, gives_up=False)
    line = until(waits.stderr, "in step 8")
    assert line == (
        f"lion-fast: rank 0 waits for the other 1 of 2 processes, met at {place}, in step 8, for"
        " 600 s at most\n"
    )
    waits.send_signal(number)
    output, errors = waits.communicate(timeout=60)  # gloo itself would wait for half an hour
    assert waits.returncode == 128 + number, errors
    run = run_of(tmp_path)
    assert output.splitlines()[-1] == (
        f"the other processes do not answer; the checkpoint of step {CHECKPOINT} is kept: go on"
        f" with --resume {run}"
    )
    stops.send_signal(signal.SIGCONT)
    (_, errors, code) = finish([stops])[0]
    assert code == 2 and "rank 1 lost another process of the run" in errors
    assert len(load_checkpoint(run)["history"]) == CHECKPOINT
    if number == signal.SIGINT:
        assert main(["train", "--resume", str(run)]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == STEPS
        assert [int(row["step"]) for row in table(run)] == list(range(1, STEPS + 1))


def test_who_has_waited_long_enough_in_a_step_gives_up(pair, tmp_path):
    waits, stops, place = pair(1, gives_up=True)
    line = until(waits.stderr, "gives up")
    assert line == (
        f"lion-fast: rank 1 waits for the other 1 of 2 processes, met at {place}, in step 8 for"
        " more than 2 s, and gives up: start all again, with --resume where there is a checkpoint\n"
    )
    waits.communicate(timeout=60)
    assert waits.returncode == 2
    stops.send_signal(signal.SIGCONT)
    (_, errors, code) = finish([stops])[0]
    assert code == 2 and "rank 0 lost another process of the run" in errors
    assert len(load_checkpoint(run_of(tmp_path))["history"]) == CHECKPOINT


@pytest.fixture
def patience(monkeypatch):
    """A process that waits in a step; `ends` has the code that it would end with."""
    with StopSignals():
        found = Patience(Ranks(0, 2, 0, 2))
        found._heeded = {signal.SIGTERM}
        ends = []
        monkeypatch.setattr(found, "_end", ends.append)
        with found.waiting("in step 3", 600.0):
            yield found, ends


def looks(patience, seconds, cpu_share=0.0):
    for _ in range(round(seconds / 0.2) + 1):
        patience._look(patience._wait, 0.2, 0.2 * cpu_share)


def test_a_step_that_computes_is_no_waiting(patience, capsys):
    waits, ends = patience
    waits._hear(bytes([signal.SIGTERM]))
    waits._heard -= 100
    looks(waits, 700, cpu_share=0.5)
    assert (ends, capsys.readouterr().err) == ([], "")
    looks(waits, 2)
    assert set(ends) == {128 + signal.SIGTERM}


def test_who_waits_for_a_processor_is_busy(monkeypatch):
    monkeypatch.setattr(patience_module.time, "process_time", lambda: 3.0)
    monkeypatch.setattr(patience_module.Path, "read_text", lambda *_, **__: "7 2500000000 9\n")
    assert patience_module._busy_seconds() == 5.5
    monkeypatch.setattr(patience_module.Path, "read_text", lambda *_, **__: "")
    assert patience_module._busy_seconds() == 3.0


def test_a_process_that_stood_still_itself_has_not_waited(patience):
    waits, ends = patience
    waits._look(waits._wait, 10_000.0, 0.0)
    assert ends == []


def test_the_end_of_a_worker_is_no_signal_to_stop(patience):
    waits, ends = patience
    waits._hear(bytes([signal.SIGCHLD]))
    looks(waits, 20)
    assert ends == []


def test_what_may_be_a_compiler_is_neither_said_nor_given_up(patience, capsys):
    waits, ends = patience
    waits._wait = waits._wait._replace(where=None)
    looks(waits, 700)
    assert (ends, capsys.readouterr().err) == ([], "")


def test_a_signal_that_is_the_callers_own_does_not_end_a_wait():
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with StopSignals(), Patience(Ranks(0, 2, 0, 2)) as waits:
            assert signal.SIGUSR1 not in waits._heeded and signal.SIGTERM in waits._heeded
            os.kill(os.getpid(), signal.SIGUSR1)
            assert waits._signal is None
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signal.set_wakeup_fd(-1) == -1
