"""Let mishaps of every kind befall runs and studies, and go on; nothing may be lost or differ.

    python tests/support/mixed_events.py [--first 0] [--last 200] [--seed 1] [--log FILE.csv]

An event is a run or a study of its own, one mishap, and what it takes to go on. The kinds take
turns, and the moment follows from the seed and the event's number, so that ranges can be run apart.
Kinds: kill, signal (SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2), stop (SIGSTOP, then SIGCONT), full
(a tmpfs that fills, in a mount namespace), nosync (folders that cannot be synced, by LD_PRELOAD,
and a kill), moved (a kill, and images that lie elsewhere when the run goes on), worker (a study's
worker is killed), changed (likewise, and the study's data are others from then on). Needs root or
user namespaces, and a C compiler. Exits with 1 and a line for each claim that did not hold.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from faulty_disks import UNSYNCED, enlarge, environment_with_shim, mount_small, own_mounts
from forks import STOPPING, faults_of, forked, kill_workers, lion_fast
from kill_runs import Ended, _run_kept, _runs
from run_results import results, table

# A study's worker loads torch anew, so that its death takes long to try.
KINDS = ("kill", "signal", "stop", "full", "nosync", "moved") * 2 + ("worker", "changed")
STEPS = 24
SMALL = (
    "--growth-rate 2 --block-layers 1 --batch-size 32 --window 5 --log-every 10 --device cpu"
    f" --max-steps {STEPS} --checkpoint-every 5 --eval-every 9"
).split()
STUDY = """
seeds = [1]
axes = {{init = ["he", "lion_dg"]}}
[base]
dataset = "{dataset}"
device = "cpu"
growth_rate = 2
block_layers = 1
batch_size = 32
window = 5
max_steps = 24
checkpoint_every = 5
"""
COLUMNS = ["number", "kind", "detail", "after_seconds", "exit_code", "kept", "of", "fault"]


class Event(NamedTuple):
    """One mishap: a row of the log."""

    number: int
    kind: str
    detail: str
    after_seconds: float
    exit_code: int
    kept: int
    """Steps in the newest checkpoint after the mishap."""
    of: int
    fault: str
    """What was lost or differs; empty where nothing is."""


def images(path: Path, seed: int = 0) -> None:
    """Write 500 noisy images of four classes, and 200 to test on."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, number in (("train", 500), ("test", 200)):
        labels = rng.integers(0, 4, number)
        pixels = rng.integers(0, 150, (number, 8, 8, 3)) + 30 * labels[:, None, None, None]
        arrays |= {f"x_{split}": pixels.astype(np.uint8), f"y_{split}": labels}
    np.savez(path, **arrays)


def outcome(folder: Path) -> object:
    """Return all that a run has given, but for its clock, its place and its place's images."""
    (run,) = _runs(folder)
    summary = results(run)
    for name in ("out", "dataset"):
        del summary["config"][name]
    del summary["environment"]["commit"]  # of a tree that somebody may be editing
    for name in ("resumed", "stopped_seconds"):
        del summary[name]
    return table(run), table(run, "validation.csv"), summary


class Trial:
    """Where events take place: the images, and what is uninterrupted there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.others = folder, folder / "images.npz", folder / "others.npz"
        images(self.data)
        images(self.others, seed=1)
        for name in ("first", "whole"):  # the first also loads what later ones share
            (whole := folder / name).mkdir()
            ended = forked(whole, lambda whole=whole: lion_fast(*self.start(whole)), None)
            if ended.code != 0:
                raise SystemExit(f"an uninterrupted run ended with {ended.code}: {ended.errors}")
        self.expected, self.seconds = outcome(whole), ended.seconds
        (run,) = _runs(whole)
        self.bytes = sum(path.stat().st_size for path in run.iterdir())

    @cached_property
    def whole_study(self) -> tuple[list[dict[str, str]], float]:
        """What a study of the images exports, and the seconds that it takes."""
        return self._whole_study("study", self.data)

    @cached_property
    def study_of_others(self) -> list[dict[str, str]]:
        """What a study of the other images exports."""
        return self._whole_study("study-of-others", self.others)[0]

    def _whole_study(self, name: str, data: Path) -> tuple[list[dict[str, str]], float]:
        (here := self.folder / name).mkdir()
        ended = forked(here, lambda: lion_fast(*self.study(here, data)), None)
        if ended.code != 0:
            raise SystemExit(f"an uninterrupted study ended with {ended.code}: {ended.errors}")
        return self.exported(here), ended.seconds

    def start(self, folder: Path, data: Path | None = None) -> list[str]:
        return [
            *("train", *SMALL, "--dataset", str(data or self.data)),
            *("--out", str(folder / "runs")),
        ]

    def go_on(self, folder: Path, *flags: str, data: Path | None = None) -> list[str]:
        runs = _runs(folder)
        if not runs:
            return self.start(folder, data)
        moved = ["--dataset", str(data)] if data else []
        return ["train", "--resume", str(runs[0]), *moved, *flags]

    def study(self, folder: Path, data: Path, *flags: str) -> list[str]:
        path = folder / "mixed.toml"
        path.write_text(STUDY.format(dataset=data))
        return ["study", str(path), "--out", str(folder / "studies"), *flags]

    def exported(self, folder: Path) -> list[dict[str, str]]:
        from lion_fast.study.export import export_csv
        from lion_fast.study.studies import find_study

        study = find_study(str(folder / "mixed.toml"))
        paths = export_csv(study, folder / "studies", folder / "export", force=True)
        (metrics,) = (path for path in paths if path.name == "metrics.csv")
        with open(metrics, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        # Beside the clocks the key, which says where the data lie.
        left_out = {"seconds", "val_seconds", "images_per_second", "key"}
        return [{k: v for k, v in row.items() if k not in left_out} for row in rows]

    def event(self, number: int, seed: int, kinds: Sequence[str]) -> Event:
        """Let one mishap happen and go on."""
        rng = random.Random(f"{seed} {number}")
        kind, share = kinds[number % len(kinds)], rng.random()
        (here := self.folder / f"event-{number}").mkdir()
        return getattr(self, f"_{kind}")(number, here, share, rng)

    def _kill(self, number: int, here: Path, share: float, rng: random.Random) -> Event:
        return self._signalled(number, "kill", here, share, signal.SIGKILL)

    def _signal(self, number: int, here: Path, share: float, rng: random.Random) -> Event:
        return self._signalled(number, "signal", here, share, rng.choice(STOPPING))

    def _nosync(self, number: int, here: Path, share: float, rng: random.Random) -> Event:
        os.environ[UNSYNCED] = "1"
        try:
            return self._signalled(number, "nosync", here, share, signal.SIGKILL)
        finally:
            del os.environ[UNSYNCED]

    def _moved(self, number: int, here: Path, share: float, rng: random.Random) -> Event:
        data = here / "first.npz"
        shutil.copy(self.data, data)
        moved = here / "elsewhere" / "second.npz"
        moved.parent.mkdir()
        number_of = rng.choice((signal.SIGKILL, signal.SIGTERM))
        return self._signalled(number, "moved", here, share, number_of, data, moved)

    def _signalled(
        self, number: int, kind: str, here: Path, share: float, sent: signal.Signals,
        data: Path | None = None, moved: Path | None = None,
    ) -> Event:  # fmt: skip
        after = share * self.seconds

        def act(pid: int) -> None:
            time.sleep(after)
            os.kill(pid, sent)

        got = forked(here, lambda: lion_fast(*self.start(here, data)), act)
        faults = []
        if got.code not in (0, 128 + sent, -sent):
            faults.append(f"exit {got.code}: {got.errors}")
        if got.errors and not (kind == "nosync" and "cannot sync folders" in got.errors):
            faults.append(f"stderr: {got.errors}")
        kept = _run_kept(here)
        if got.code == 128 + sent and _runs(here) and f"step {kept}" not in got.output:
            faults.append(f"said another step than the {kept} it kept: {got.output[-200:]}")
        if data is not None and moved is not None:
            data.rename(moved)
        return self._end(number, kind, sent.name, after, got, here, faults, moved)

    def _end(
        self, number: int, kind: str, detail: str, after: float, got: Ended, here: Path,
        faults: list[str], data: Path | None = None,
    ) -> Event:  # fmt: skip
        """Go on to the end and compare."""
        kept = _run_kept(here)
        if got.code != 0 or not (_runs(here)):
            last = forked(here, lambda: lion_fast(*self.go_on(here, data=data)), None)
            if last.code != 0:
                faults.append(f"went on to exit {last.code}: {last.errors}")
        if not faults and outcome(here) != self.expected:
            faults.append("differs from an uninterrupted run")
        fault = " ".join("; ".join(faults).split())
        return Event(number, kind, detail, round(after, 3), got.code, kept, STEPS, fault)

    def _stop(self, number: int, here: Path, share: float, rng: random.Random) -> Event:
        after, still = share * self.seconds, rng.choice((0.3, 1.5, 2.5))

        def act(pid: int) -> None:
            time.sleep(after)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(still)
            os.kill(pid, signal.SIGCONT)

        got = forked(here, lambda: lion_fast(*self.start(here)), act)
        faults = [f"exit {got.code}: {got.errors}"] if got.code or got.errors else []
        return self._end(number, "stop", f"SIGSTOP {still} s", after, got, here, faults)

    def _full(self, number: int, here: Path, share: float, rng: random.Random) -> Event:
        size = max(4096, int(1.5 * share * self.bytes))
        told = here / "told"

        def body() -> int:
            runs = here / "runs"
            runs.mkdir()
            own_mounts()
            mount_small(runs, size)
            code = lion_fast(*self.start(here))
            enlarge(runs, 2**26)
            told.write_text(f"{code} {_run_kept(here)}")
            last = code
            if code != 0 or not _runs(here):
                last = lion_fast(*self.go_on(here))
            shutil.copytree(runs, here / "kept")
            return last

        got = forked(here, body, None)
        faults = [f"went on to exit {got.code}: {got.errors}"] if got.code else []
        code, kept = map(int, told.read_text().split()) if told.exists() else (got.code, 0)
        if code not in (0, 2) or "Traceback" in got.errors:
            faults.append(f"exit {code}: {got.errors}")
        if not faults:
            shutil.rmtree(here / "runs")
            (here / "kept").rename(here / "runs")
            if outcome(here) != self.expected:
                faults.append("differs from an uninterrupted run")
        fault = " ".join("; ".join(faults).split())
        return Event(number, "full", f"tmpfs of {size} bytes", 0.0, code, kept, STEPS, fault)

    def _worker(self, number: int, here: Path, share: float, rng: random.Random) -> Event:
        expected, seconds = self.whole_study
        after = _in_training(share) * seconds

        def act(pid: int) -> None:
            time.sleep(after)
            kill_workers(pid)

        got = forked(here, lambda: lion_fast(*self.study(here, self.data)), act)
        faults = faults_of(got, 0, 1)
        if got.code == 1:
            last = forked(here, lambda: lion_fast(*self.study(here, self.data)), None)
            faults += faults_of(last, 0)
        if not faults and self.exported(here) != expected:
            faults.append("differs from an uninterrupted study")
        fault = " ".join("; ".join(faults).split())
        return Event(number, "worker", "SIGKILL", round(after, 3), got.code, 0, STEPS, fault)

    def _changed(self, number: int, here: Path, share: float, rng: random.Random) -> Event:
        """Kill the worker and change the data, at once or when the study has ended.

        Started again, the study either takes nothing of the data before or refuses, and loses
        nothing by it; with `--rerun changed` it ends as one of the data that are there now.
        """
        expected, seconds = self.whole_study
        after, at_once = _in_training(share) * seconds, rng.random() < 0.5
        data = Path(shutil.copy(self.data, here / "images.npz"))

        def change() -> None:
            other = shutil.copy(self.others, here / "new.npz")
            os.replace(other, data)

        def act(pid: int) -> None:
            time.sleep(after)
            kill_workers(pid)
            if at_once:
                change()

        got = forked(here, lambda: lion_fast(*self.study(here, data)), act)
        faults = faults_of(got, 0, 1)
        if not at_once:
            change()
        before = self.exported(here)
        again = forked(here, lambda: lion_fast(*self.study(here, data)), None)
        faults += faults_of(again, 0, 1, 2)
        wanted, left = self.study_of_others, self.exported(here)
        if again.code == 0 and left != wanted:
            faults.append("took runs of other data for its own")
        if again.code == 2 and (left != before or "--rerun changed" not in again.errors):
            faults.append(f"refused, and changed or advised otherwise: {again.errors}")
        if mixed := [row for row in left if row not in wanted and row not in expected]:
            faults.append(f"a run of both data: {mixed[0]}")
        last = forked(here, lambda: lion_fast(*self.study(here, data, "--rerun", "changed")), None)
        faults += faults_of(last, 0)
        if not faults and self.exported(here) != wanted:
            faults.append("differs from an uninterrupted study of the new data")
        fault = " ".join("; ".join(faults).split())
        when = "at once" if at_once else "afterwards"
        detail = f"SIGKILL and other data {when}: exit {again.code}"
        return Event(number, "changed", detail, round(after, 3), got.code, 0, STEPS, fault)


def _in_training(share: float) -> float:
    """Return a share of a study's time after its worker's first seconds, in which torch loads."""
    return 0.4 + 0.6 * share


def main(argv: list[str]) -> int:
    """Run the events, log and judge; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=200, help="one beyond the last event's number")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=set(KINDS), default=KINDS)
    parser.add_argument("--log", type=Path, help="CSV with a row an event, appended to")
    arguments = parser.parse_args(argv)
    if environment := environment_with_shim():
        os.execve(sys.executable, [sys.executable, __file__, *argv], environment)

    # Loaded before the forks, so that these share it.
    import matplotlib.backends.backend_agg  # noqa: F401

    import lion_fast.cli
    import lion_fast.training.run  # noqa: F401

    path, faults = arguments.log or Path(os.devnull), 0
    is_new = not path.exists() or path.stat().st_size == 0
    with tempfile.TemporaryDirectory() as folder, open(path, "a", newline="") as log:
        writer = csv.writer(log)
        if is_new:
            writer.writerow(COLUMNS)
        trial = Trial(Path(folder))
        for number in range(arguments.first, arguments.last):
            event = trial.event(number, arguments.seed, arguments.kinds)
            faults += bool(event.fault)
            writer.writerow(event)
            log.flush()
            print(*event, flush=True)
            shutil.rmtree(Path(folder) / f"event-{number}")
    print(f"{arguments.last - arguments.first} events, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
