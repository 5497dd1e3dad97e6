"""A few minutes on a GPU: `python bench/gpu/card.py --minutes 12 [--data-dir DIR] [--out DIR]`.

Stages in the order of what is most worth knowing, each with a budget in seconds; what does not fit
into the minutes is left out from the end, and said so. Nothing else runs beside a stage that times;
kernels and Inductor's code are made beside stages that look at values. A stage out of time is
ended, and the next begins. Every finding is a line of OUT/card.jsonl, written through to the disk.

Where a GPU is reached by calls of limited length, `--call 1 --seconds 550`, then `--call 2`, ... of
the same minutes go on where the last one ended: what has ended is noted beside the caches.
`--rehearse` takes every stage to its end in seconds, at full size; its numbers mean nothing.

torch is imported once: every stage is a fork of this process, which never uses the GPU itself.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gpu.findings import Call, leave
from support.checkout import ROOT, make_importable

FOLDER = Path(tempfile.gettempdir()) / "lion_fast_card"
"""Links to import from, caches of compiled code, data that came in parts, and what has ended."""
LEAST_SHARE = 0.5
"""Of a stage's budget: with less it is not begun."""
FAREWELL_SECONDS = (4.0, 2.0)
"""Between an interrupt and a kill, and after it."""


@dataclass(frozen=True)
class Stage:
    """What is done for at most so many seconds: the function of that name in the module gpu.X."""

    name: str
    module: str
    seconds: float
    times: bool = True
    """Whether it measures time, so that nothing may run beside it."""
    beside: bool = False
    """Whether the next stage may begin while it runs."""
    minutes: int = 12
    """In plans from so many minutes on."""
    needs_data: bool = False


# What did not come to an end on 2026-11-27 comes first: values, the tests, the heads, max-autotune.
STAGES = (
    Stage("machine", "machine", 40),
    Stage("kernels", "machine", 90, times=False),
    Stage("inductor", "machine", 180, times=False, beside=True),
    Stage("values", "values", 90, times=False),
    Stage("tests", "values", 90, times=False),
    Stage("heads", "times", 40),
    Stage("steps", "times", 100),
    Stage("profile", "times", 40),
    Stage("persistent", "persistent", 150),
    Stage("runs", "runs", 80, needs_data=True),
    Stage("overhead", "times", 40),
    Stage("rivals", "times", 170),
    Stage("launches", "runs", 150, minutes=25),
    Stage("options", "times", 60, minutes=25),
    Stage("table1", "runs", 300, minutes=25, needs_data=True),
    Stage("loaders", "runs", 240, minutes=40),
    Stage("batches", "runs", 400, minutes=40),
)
TO_COME = {
    "sanitizer": "memcheck and racecheck, from a process that loads cubins and imports no torch",
    "dense heads": "values and times of heads that give a class a pixel",
    "dali": "DALI on the GPU against resident images",
    "packed": "one to four runs at a time under MPS",
}
"""Stages whose code is not there yet."""


def plan(minutes: float, names: Sequence[str] = ()) -> list[Stage]:
    """Return the stages for so many minutes, or those that are named, in order."""
    if names:
        return [stage for stage in STAGES if stage.name in names]
    return [stage for stage in STAGES if stage.minutes <= minutes]


class Schedule:
    """Runs stages as forks until the call's seconds are over."""

    def __init__(self, call: Call, seconds: float, ended: Path) -> None:
        self.call, self.end, self._ended = call, call.start + seconds, ended
        self._running: dict[str, tuple[BaseProcess, float]] = {}

    def run(self, stages: Sequence[Stage]) -> None:
        """Run them in order, but for those that an earlier call has ended."""
        before = self._ended.read_text(encoding="utf-8").split() if self._ended.exists() else []
        try:
            for stage in stages:
                if stage.name in before:
                    continue
                if stage.needs_data and self.call.data_dir is None:
                    self._leave_out(stage, "it needs real images: --data-dir")
                    continue
                if stage.times:
                    self._finish_all()
                if self.end - time.monotonic() < LEAST_SHARE * stage.seconds:
                    self._leave_out(stage, "too little time was left")
                    continue
                self._start(stage)
                if not stage.beside:
                    self._finish(stage.name)
            self._finish_all()
        except KeyboardInterrupt:
            for process, _ in self._running.values():
                stop(process)
            raise

    def _leave_out(self, stage: Stage, why: str) -> None:
        self.call.say("schedule", left_out=stage.name, why=why)

    def _start(self, stage: Stage) -> None:
        seconds = min(stage.seconds, self.end - time.monotonic())
        self.call.say("schedule", starts=stage.name, limit=round(seconds, 1))
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_run_stage, args=(self.call, stage, seconds))
        process.start()
        self._running[stage.name] = process, time.monotonic() + stage.seconds

    def _finish(self, name: str) -> None:
        process, limit = self._running.pop(name)
        process.join(max(0.1, min(limit, self.end) - time.monotonic()))
        code: int | str | None = process.exitcode
        if code is None:
            stop(process)
            code = "out of time"
        self.call.say("schedule", ends=name, code=code)
        if code == "out of time" and limit > self.end:
            return  # the call ended before the stage did, and the next call takes it again
        with open(self._ended, "a", encoding="utf-8") as file:
            file.write(name + "\n")

    def _finish_all(self) -> None:
        for name in list(self._running):
            self._finish(name)


def _run_stage(call: Call, stage: Stage, seconds: float) -> None:
    """Be the stage: the leader of a group that holds all which it starts."""
    os.setpgrp()
    # A shell's background job starts with interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import torch

    code = 0
    if call.rehearse:
        torch.compiler.set_stance("force_eager")
    try:
        getattr(importlib.import_module(f"gpu.{stage.module}"), stage.name)(call, seconds)
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:  # whatever it was belongs to the findings
        traceback.print_exc()
        call.say(stage.name, error=f"{type(error).__name__}: {str(error)[-1500:]}")
        code = 1
    leave(code)


def stop(process: BaseProcess) -> None:
    """End a stage and all that it started."""
    assert process.pid is not None
    for sign, seconds in zip((signal.SIGINT, signal.SIGKILL), FAREWELL_SECONDS, strict=True):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        process.join(seconds)


def card_name() -> str:
    """Return the GPU's name as part of a path, asked in a fork; raise RuntimeError without one."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        name = pool.apply(_gpu_name)
    if name is None:
        raise RuntimeError("no CUDA GPU here: `make bench` measures the CPU")
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia ")).strip("-")


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def prepare(folder: Path) -> None:
    """Let this process and its forks import this checkout, and keep what they compile in one place.

    Imports what stages share, but for what would use the GPU.
    """
    links = folder / "imports"
    shutil.rmtree(links, ignore_errors=True)
    make_importable(links)
    sys.path[:0] = [str(links), str(ROOT / "tests"), str(ROOT / "tests" / "support")]
    os.environ.pop("TRITON_INTERPRET", None)
    # Asked in the usual way whether there is a GPU, the driver would be of no use after a fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(links), os.environ.get("PYTHONPATH")])
    )
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    for name in ("torch._inductor.compile_fx", "lion_fast.training", "support.training"):
        importlib.import_module(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the plan; return 0, or 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=12, help="of the whole plan: 12, 25, 40")
    parser.add_argument("--seconds", type=float, help="of this call; default: the minutes'")
    parser.add_argument("--call", type=int, default=1, help="which call of the same plan this is")
    parser.add_argument("--out", type=Path, help="default: bench/results/gpu/DATE-CARD")
    parser.add_argument("--data-dir", type=Path, help="folder that holds CIFAR-10")
    parser.add_argument("--part", type=Path, help="folder of `make gpu-pack` that came with it")
    parser.add_argument("--commit", help="commit to state where git cannot tell")
    parser.add_argument("--stages", help="only these, by comma")
    parser.add_argument("--rehearse", action="store_true", help="to see that every stage runs")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    start = time.monotonic()
    options.folder.mkdir(parents=True, exist_ok=True)
    prepare(options.folder)
    try:
        name = card_name()
    except RuntimeError as error:
        print(error)
        return 2
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    base = ROOT / ("rehearsal" if options.rehearse else "bench/results") / "gpu"
    out = (options.out or base / f"{date}-{name}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    ended = options.folder / "ended.txt"
    if options.call == 1:
        ended.unlink(missing_ok=True)
    data = options.data_dir and options.data_dir.resolve()
    if options.part is not None:
        from gpu.pack import unpack_part

        data = unpack_part(options.part, options.folder / "data") or data
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    call = Call(out, options.rehearse, data, options.commit, start)
    names = options.stages.split(",") if options.stages else ()
    call.say("schedule", minutes=options.minutes, call=options.call, arguments=json.dumps(names))
    seconds = options.seconds or 60 * options.minutes
    Schedule(call, seconds, ended).run(plan(options.minutes, names))
    for each, what in TO_COME.items():
        call.say("schedule", to_come=each, what=what)
    return 0


if __name__ == "__main__":
    sys.exit(main())
