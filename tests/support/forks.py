"""The command in a fork of a process that has torch loaded, so that it starts at once."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from kill_runs import Ended, _is_group

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


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
    """Run the command; return its exit code."""
    from lion_fast.cli import main

    return main(list(arguments))


def faults_of(ended: Ended, *codes: int) -> list[str]:
    """Return what is wrong with how a study has ended, which should be one of `codes`."""
    if ended.code in codes and "Traceback" not in ended.errors:
        return []
    return [f"exit {ended.code}: {ended.errors}"]


def kill_workers(pid: int) -> None:
    """Kill what runs the cells of the study that is process `pid`."""
    for child in _children(pid):
        os.kill(child, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    """Return the processes that run cells, not the tracker of multiprocessing's resources."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        line = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"spawn_main" in line:
            found.append(int(child))
    return found
