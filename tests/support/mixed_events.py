"""Let mishaps of every kind befall runs and studies, and go on; nothing may be lost or differ.

    python tests/support/mixed_events.py [--first 0] [--last 200] [--seed 1] [--log FILE.csv]

An event is a run or a study of its own, one mishap, and what it takes to go on; its kind and moment
follow from the seed and its number, so that ranges can be run apart. Kinds: kill, signal (SIGINT,
SIGTERM, SIGHUP, SIGUSR1, SIGUSR2), stop (SIGSTOP, then SIGCONT), full (a tmpfs that fills, in a
mount namespace), nosync (folders that cannot be synced, by LD_PRELOAD, and a kill), moved (a kill,
and images that lie elsewhere when the run goes on), worker (a study's worker is killed). Needs root
or user namespaces, and a C compiler. Exits with 1 and a line for each claim that did not hold.
"""

import argparse
import csv
import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from kill_runs import Ended, _is_group, _run_kept, _runs
from run_results import results, table

# A study's worker loads torch anew, so that its death takes long to try.
KINDS = ("kill", "signal", "stop", "full", "nosync", "moved") * 2 + ("worker",)
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
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
_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_PRIVATE, _REMOUNT = 0x44000, 32  # MS_REC | MS_PRIVATE, MS_REMOUNT


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


def forked(folder: Path, body: Callable[[], int], act: Callable[[int], None] | None) -> Ended:
    """Run `body` in a fork, its output in `folder`, and let `act` befall its process."""
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number in STOPPING:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setsid()
            for name, descriptor in (("out", 1), ("err", 2)):
                file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, descriptor)
            code = body()
        except KeyboardInterrupt:  # before the command was reached
            code = 130
        finally:
            os._exit(code)
    if act is not None:
        act(pid)
    _, status = os.waitpid(pid, 0)
    while _is_group(pid):
        time.sleep(0.02)
    output, errors = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    return Ended(os.waitstatus_to_exitcode(status), output, errors, time.perf_counter() - started)


def lion_fast(*arguments: str) -> int:
    from lion_fast.cli import main

    return main(list(arguments))


def images(path: Path) -> None:
    """Write 500 noisy images of four classes, and 200 to test on."""
    rng = np.random.default_rng(0)
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
    """Where events take place: the images, and what an uninterrupted run and study give."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "images.npz"
        images(self.data)
        (whole := folder / "whole").mkdir()
        ended = forked(whole, lambda: lion_fast(*self.start(whole)), None)
        if ended.code != 0:
            raise SystemExit(f"an uninterrupted run ended with {ended.code}: {ended.errors}")
        self.expected, self.seconds = outcome(whole), ended.seconds
        (run,) = _runs(whole)
        self.bytes = sum(path.stat().st_size for path in run.iterdir())
        (study := folder / "study").mkdir()
        ended = forked(study, lambda: lion_fast(*self.study(study)), None)
        if ended.code != 0:
            raise SystemExit(f"an uninterrupted study ended with {ended.code}: {ended.errors}")
        self.study_expected, self.study_seconds = self.exported(study), ended.seconds

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

    def study(self, folder: Path) -> list[str]:
        path = folder / "mixed.toml"
        path.write_text(STUDY.format(dataset=self.data))
        return ["study", str(path), "--out", str(folder / "studies")]

    def exported(self, folder: Path) -> list[dict[str, str]]:
        from lion_fast.study.export import export_csv
        from lion_fast.study.studies import find_study

        study = find_study(str(folder / "mixed.toml"))
        paths = export_csv(study, folder / "studies", folder / "export", force=True)
        (metrics,) = (path for path in paths if path.name == "metrics.csv")
        with open(metrics, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        clocks = {"seconds", "val_seconds", "images_per_second"}
        return [{k: v for k, v in row.items() if k not in clocks} for row in rows]

    def event(self, number: int, seed: int) -> Event:
        """Let one mishap happen and go on."""
        rng = random.Random(f"{seed} {number}")
        kind, share = rng.choice(KINDS), rng.random()
        (here := self.folder / f"event-{number}").mkdir()
        return getattr(self, f"_{kind}")(number, here, share, rng)

    def _kill(self, number: int, here: Path, share: float, rng: random.Random) -> Event:
        return self._signalled(number, "kill", here, share, signal.SIGKILL)

    def _signal(self, number: int, here: Path, share: float, rng: random.Random) -> Event:
        return self._signalled(number, "signal", here, share, rng.choice(STOPPING))

    def _nosync(self, number: int, here: Path, share: float, rng: random.Random) -> Event:
        os.environ["NO_FOLDER_SYNC"] = "1"
        try:
            return self._signalled(number, "nosync", here, share, signal.SIGKILL)
        finally:
            del os.environ["NO_FOLDER_SYNC"]

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
            _own_mounts()
            _tmpfs(runs, size, 0)
            code = lion_fast(*self.start(here))
            _tmpfs(runs, 2**26, _REMOUNT)
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
        after = share * self.study_seconds

        def act(pid: int) -> None:
            time.sleep(after)
            for child in _children(pid):
                os.kill(child, signal.SIGKILL)

        got = forked(here, lambda: lion_fast(*self.study(here)), act)
        faults = []
        if got.code not in (0, 1) or "Traceback" in got.errors:
            faults.append(f"exit {got.code}: {got.errors}")
        if got.code == 1:
            last = forked(here, lambda: lion_fast(*self.study(here)), None)
            if last.code != 0:
                faults.append(f"went on to exit {last.code}: {last.errors}")
        if not faults and self.exported(here) != self.study_expected:
            faults.append("differs from an uninterrupted study")
        fault = " ".join("; ".join(faults).split())
        return Event(number, "worker", "SIGKILL", round(after, 3), got.code, 0, STEPS, fault)


def _children(pid: int) -> list[int]:
    """Return the processes that run cells, not the tracker of multiprocessing's resources."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        line = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"spawn_main" in line:
            found.append(int(child))
    return found


def _own_mounts() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS) or libc.mount(b"none", b"/", None, _PRIVATE, None):
        raise OSError(ctypes.get_errno(), "no mount namespace")


def _tmpfs(path: Path, size: int, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size}".encode()
    if libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", flags, options):
        raise OSError(ctypes.get_errno(), f"no tmpfs on {path}")


def _with_shim(argv: list[str]) -> None:
    """Begin again with the shim loaded, unless it is."""
    if "no_folder_sync" in os.environ.get("LD_PRELOAD", ""):
        return
    shim = Path(tempfile.mkdtemp()) / "no_folder_sync.so"
    source = Path(__file__).with_name("no_folder_sync.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    env = os.environ | {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, __file__, *argv], env)


def main(argv: list[str]) -> int:
    """Run the events, log and judge; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=200, help="one beyond the last event's number")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="CSV with a row an event, appended to")
    arguments = parser.parse_args(argv)
    _with_shim(argv)

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
            event = trial.event(number, arguments.seed)
            faults += bool(event.fault)
            writer.writerow(event)
            log.flush()
            print(*event, flush=True)
            shutil.rmtree(Path(folder) / f"event-{number}")
    print(f"{arguments.last - arguments.first} events, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
