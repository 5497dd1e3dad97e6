"""A study whose runs take no time, its trainers, and what they leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from study_runs import summary

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.study.grid import Study, grid
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
    """Add a line to the log, in one write: in `data_dir`, else beside all run folders."""
    line = f"{event} {config.init} {config.seed} {os.getpid()}\n"
    with open((config.data_dir or config.out.parent) / "log.txt", "a", encoding="utf-8") as file:
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


def events(tmp_path):
    """What the fake trainers did: event, initialisation, seed, process."""
    text = (tmp_path / "fake" / "runs" / "log.txt").read_text(encoding="utf-8")
    return [tuple(line.split()) for line in text.splitlines()]


def started(tmp_path):
    return Counter(event[1:3] for event in events(tmp_path) if event[0].startswith("from"))


def summaries(tmp_path):
    with Store.open(tmp_path / "fake") as store:
        return [stored.summary for _, stored in store.of(STUDY)]


SCRIPT = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import fake_study as t
from lion_fast.study.runner import run_study
from lion_fast.study.stopping import signal_of
from pathlib import Path
try:
    outcome = run_study(t.STUDY, Path(sys.argv[1]), jobs=2, trainer=t.slow_train)
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


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
