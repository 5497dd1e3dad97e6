"""DataLoader workers where /dev/shm is small, as in a container: one line, no traceback."""

import errno
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from test_loaders import make

from lion_fast.data import workers
from lion_fast.data.workers import WorkersFailed, WorkersLoader
from lion_fast.errors import UserError

SCRIPT = Path(__file__).parent / "support" / "small_shared_memory.py"


def in_small_shared_memory(*arguments):
    """What the script prints in a mount namespace of its own, with 3 MiB of shared memory."""
    inner = f"mount -t tmpfs -o size=3m tmpfs /dev/shm && exec {sys.executable} {SCRIPT} "
    ran = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", inner + " ".join(arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "unshare" in ran.stderr or "mount" in ran.stderr:
        pytest.skip(f"needs a mount namespace: {ran.stderr.strip()[:100]}")
    return ran.stdout


def test_batches_that_would_not_fit_are_refused_before_the_first(tmp_path):
    assert in_small_shared_memory() == (
        "the batches of 2 workers take 30 MiB of /dev/shm, which has 3 free: enlarge it (docker run"
        " --shm-size=2g), or lower --num-workers or --batch-size\n"
    )


def test_shared_memory_that_runs_out_after_all_ends_in_the_same_advice():
    printed = in_small_shared_memory("unchecked")
    assert printed.startswith("a DataLoader worker ") and printed.count("\n") == 1
    assert "/dev/shm" in printed and "--shm-size=2g" in printed


def test_without_workers_no_shared_memory_is_needed():
    assert in_small_shared_memory("without") == "fine\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "too many open files: raise the limit"),
        (RuntimeError("received 0 items of ancdata"), "too many open files"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>"), "no room in"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error."), "no room in"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."), "worker died"),
        (EOFError(), "worker died, .*: lower --num-workers"),
    ],
)
def test_what_torch_says_of_failing_workers_is_one_line_of_advice(monkeypatch, error, words):
    def fail():
        raise error
        yield

    with closing(make(WorkersLoader, num_workers=0)) as loader:
        loader._batches = fail()
        with pytest.raises(WorkersFailed, match=words) as caught:
            loader.next()
        assert isinstance(caught.value, UserError)
        assert len(str(caught.value).splitlines()) == 1


def test_shared_memory_that_nobody_knows_is_taken_to_be_enough(monkeypatch):
    monkeypatch.setattr(workers, "_SHARED_MEMORY", os.path.join("/", "nowhere"))
    with closing(make(WorkersLoader, num_workers=1)) as loader:
        loader.next()
