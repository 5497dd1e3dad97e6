"""Kill runs and studies at random moments and go on with them; nothing may be lost or differ.

    python tests/support/kill_runs.py [--kills 100] [--studies 20] [--seed 1] [--log FILE.csv]

Signals (SIGKILL, SIGTERM, SIGINT) and the share of an uninterrupted run's time at which each falls
follow from the seed; the step that it meets depends on the machine. A process is a fork of one
that has torch loaded, so that a kill costs a second and seldom falls into the imports. Exits with
1 and a line for each claim that did not hold.
"""

import argparse
import csv
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from run_results import TIME_COLUMNS, TIME_KEYS, results, table

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STEPS = 40
SMALL = (
    "--dataset digits --growth-rate 2 --block-layers 1 --batch-size 32 --window 5 --log-every 10"
    f" --device cpu --max-steps {STEPS} --checkpoint-every 7 --eval-every 16"
).split()
STUDY = f"""
seeds = [1]
axes = {{init = ["he", "lion_dg"]}}
[base]
dataset = "digits"
device = "cpu"
growth_rate = 2
block_layers = 1
batch_size = 32
window = 5
max_steps = {STEPS}
checkpoint_every = 7
"""
COLUMNS = ["subject", "attempt", "signal", "after_seconds", "exit_code", "kept", "of"]


class Kill(NamedTuple):
    """One kill: a row of the log."""

    subject: str
    attempt: int
    signal: str
    after_seconds: float
    exit_code: int
    """Negative: ended by that signal itself."""
    kept: int
    """Steps in the newest checkpoint, or finished runs of the study, afterwards."""
    of: int


class Ended(NamedTuple):
    """A process of ours that is no more."""

    code: int
    output: str
    errors: str
    seconds: float


def spawned(arguments: list[str], folder: Path, kill: tuple[signal.Signals, float] | None) -> Ended:
    """Run `lion-fast` with `arguments` in a fork, and send it `kill`: a signal after seconds."""
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        _become(arguments, folder)
    if kill is not None:
        number, seconds = kill
        time.sleep(seconds)
        os.kill(pid, number)  # not yet waited for, so the pid is still its own
    _, status = os.waitpid(pid, 0)
    while _is_group(pid):  # a study's workers end with it
        time.sleep(0.02)
    output, errors = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    seconds = time.perf_counter() - started
    return Ended(os.waitstatus_to_exitcode(status), output, errors, seconds)


def _become(arguments: list[str], folder: Path) -> None:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
        os.setsid()
        for name, descriptor in (("out", 1), ("err", 2)):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
        from lion_fast.cli import main

        code = main(arguments)
    except KeyboardInterrupt:  # before `main` was reached
        code = 130
    finally:
        os._exit(code)


def _is_group(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Subject(NamedTuple):
    """What is killed: how to start it or go on, what it keeps, and what it has in the end."""

    name: str
    of: int
    command: Callable[[Path], list[str]]
    kept: Callable[[Path], int]
    result: Callable[[Path], object]


def _runs(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob("runs/*/config.json")]


def _run_command(init: str) -> Callable[[Path], list[str]]:
    def command(folder: Path) -> list[str]:
        runs = _runs(folder)
        if runs:
            return ["train", "--resume", str(runs[0])]
        return ["train", *SMALL, "--init", init, "--out", str(folder / "runs")]

    return command


def _run_kept(folder: Path) -> int:
    from lion_fast.training.folder.checkpoint import load_checkpoint

    runs = [run for run in _runs(folder) if any(run.glob("checkpoint*.pt"))]
    return len(load_checkpoint(runs[0])["history"]) if runs else 0


def _run_result(folder: Path) -> object:
    (run,) = _runs(folder)
    summary = results(run)
    del summary["config"]["out"]
    return table(run), table(run, "validation.csv"), summary


def _study_command(folder: Path) -> list[str]:
    path = folder / "killed.toml"
    path.write_text(STUDY)
    return ["study", str(path), "--out", str(folder / "studies")]


def _exported(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    from lion_fast.study.export import export_csv
    from lion_fast.study.studies import find_study

    study = find_study(_study_command(folder)[1])
    paths = export_csv(study, folder / "studies", folder / "export", force=True)
    told = {}
    for path in paths:
        with open(path, newline="", encoding="utf-8") as file:
            told[path.name] = list(csv.DictReader(file))
    return told["summaries.csv"], told["metrics.csv"]


def _study_kept(folder: Path) -> int:
    if not (folder / "studies" / "killed" / "study.sqlite").exists():
        return 0
    summaries, _ = _exported(folder)
    return sum(bool(row["steps"]) for row in summaries)


def _study_result(folder: Path) -> object:
    # Times, and how a run was set up: not what it gave.
    left_out = TIME_KEYS | TIME_COLUMNS | {"val_seconds", "reused"}
    return [
        [{k: v for k, v in row.items() if k not in left_out} for row in rows]
        for rows in _exported(folder)
    ]


def killings(
    subject: Subject, folder: Path, kills: int, rng: random.Random, faults: list[str]
) -> Iterator[Kill]:
    """Kill attempts at `subject` until it has been killed `kills` times; yield each kill.

    Whatever ends whole is held against an uninterrupted one and begun anew. Appends to `faults`.
    """
    (whole := folder / f"{subject.name}-whole").mkdir()
    ended = spawned(subject.command(whole), whole, None)
    if ended.code != 0:
        raise SystemExit(f"an uninterrupted {subject.name} ended with {ended.code}: {ended.errors}")
    expected = subject.result(whole)
    done = attempt = 0
    while True:
        attempt += 1
        (here := folder / f"{subject.name}-{attempt}").mkdir()
        kept, kill = 0, None
        while True:
            number, share = rng.choice(SIGNALS), rng.random()
            kill = (number, share * ended.seconds) if done < kills else None
            got = spawned(subject.command(here), here, kill)
            if got.code == 0:
                break
            if kill is None:
                faults.append(f"{subject.name} {attempt}: exit {got.code}: {got.errors}")
                return
            done += 1
            before, kept = kept, subject.kept(here)
            yield Kill(subject.name, attempt, number.name, kill[1], got.code, kept, subject.of)
            faults += _faults_of(
                f"{subject.name} {attempt}, kill {done}", got, number, before, kept
            )
        if subject.result(here) != expected:
            faults.append(f"{subject.name} {attempt}: differs from an uninterrupted one")
        if done >= kills:
            return


def _faults_of(
    where: str, got: Ended, number: signal.Signals, before: int, kept: int
) -> Iterator[str]:
    if got.code not in (128 + number, -number):
        yield f"{where}: {number.name} gave exit {got.code}: {got.errors}"
    # Python's own words in a worker that was being born when the study was killed outright: they
    # come before any line of ours, and nothing of the study is in it yet.
    unborn = number == signal.SIGKILL and "in spawn_main" in got.errors
    if got.errors and not (unborn and got.errors.endswith("EOFError: Ran out of input\n")):
        yield f"{where}: {number.name} left on stderr: {got.errors}"
    if kept < before:
        yield f"{where}: {kept} kept where {before} were"
    said = re.search(r"interrupted at step (\d+)", got.output)
    if said and int(said[1]) != kept:
        yield f"{where}: said step {said[1]}, kept {kept}"


def subjects(num_kills: int, num_studies: int) -> list[tuple[Subject, int]]:
    """Return what is killed and how often: two kinds of run, and a study."""
    runs = num_kills - num_studies
    share = {"he": runs - runs // 2, "lion_dg": runs // 2}
    return [
        *(
            (Subject(f"run-{init}", STEPS, _run_command(init), _run_kept, _run_result), kills)
            for init, kills in share.items()
        ),
        (Subject("study", 2, _study_command, _study_kept, _study_result), num_studies),
    ]


def main(argv: list[str] | None = None) -> int:
    """Kill, log and judge; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--studies", type=int, default=20, help="kills of studies among them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="CSV with a row a kill")
    arguments = parser.parse_args(argv)

    os.environ["OMP_NUM_THREADS"] = "1"
    # Loaded before the forks, so that these share it.
    import matplotlib.backends.backend_agg  # noqa: F401

    import lion_fast.training.run  # noqa: F401

    rng, faults, total = random.Random(arguments.seed), list[str](), 0
    log = open(arguments.log or os.devnull, "w", newline="", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, log:
        writer = csv.writer(log)
        writer.writerow(COLUMNS)
        for subject, kills in subjects(arguments.kills, arguments.studies):
            if kills == 0:
                continue
            for kill in killings(subject, Path(folder), kills, rng, faults):
                total += 1
                writer.writerow(kill._replace(after_seconds=round(kill.after_seconds, 3)))
                log.flush()
                print(*kill, flush=True)
    print("\n".join(faults))
    print(f"{total} kills, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
