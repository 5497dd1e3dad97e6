"""DataLoader workers where /dev/shm is small, as in a container: one line, no traceback."""

import errno
import multiprocessing
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from test_loaders import assert_planned, make

from lion_fast.data import workers
from lion_fast.data.workers import WorkersFailed, WorkersLoader
from lion_fast.errors import UserError

SCRIPT = Path(__file__).parent / "support" / "small_shared_memory.py"


def in_small_shared_memory(*arguments):
    """What the script says in a mount namespace of its own, with 3 MiB of shared memory."""
    inner = f"mount -t tmpfs -o size=3m tmpfs /dev/shm && exec {sys.executable} {SCRIPT} "
    ran = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", inner + " ".join(arguments)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if "unshare" in ran.stderr or "mount" in ran.stderr:
        pytest.skip(f"needs a mount namespace: {ran.stderr.strip()[:100]}")
    ours = [line for line in ran.stderr.splitlines(True) if line.startswith("lion-fast: ")]
    return "".join([*ours, ran.stdout])


def test_batches_that_would_not_fit_are_refused_before_the_first(tmp_path):
    assert in_small_shared_memory() == (
        "the batches of 2 workers take 30 MiB of /dev/shm, which has 3 free: enlarge it (docker run"
        " --shm-size=2g), lower --num-workers or --batch-size, or let --num-workers auto do with"
        " less\n"
    )


def test_shared_memory_that_runs_out_after_all_ends_in_the_same_advice():
    printed = in_small_shared_memory("unchecked")
    assert printed.startswith("a DataLoader worker ") and printed.count("\n") == 1
    assert "/dev/shm" in printed and "--shm-size=2g" in printed


def test_workers_that_were_not_asked_for_by_number_give_way():
    printed = in_small_shared_memory("auto")
    assert printed == (
        "lion-fast: the batches of 2 workers take 30 MiB of /dev/shm, which has 3 free: going on"
        " with none of them\nfine\n"
    )


def test_workers_that_fail_after_all_give_way_in_the_middle_and_no_batch_is_lost():
    printed = in_small_shared_memory("auto", "unchecked")
    assert printed.startswith("lion-fast: a DataLoader worker ")
    assert printed.endswith(": going on without workers\nfine\n") and printed.count("\n") == 2


@pytest.mark.parametrize(("free_batches", "words"), [(4, "1 of them"), (2, "none of them")])
def test_as_many_workers_as_there_is_room_for_are_taken(monkeypatch, capfd, free_batches, words):
    with closing(make(WorkersLoader, num_workers=0)) as loader:
        batch = loader._batch_bytes(loader._data.images)
    monkeypatch.setattr(workers, "_free_shared_memory", lambda: free_batches * batch)
    with closing(make(WorkersLoader, num_workers=2, fewer=True)) as loader:
        assert loader._loader.num_workers == int(words[0] == "1")
        for step in range(3):
            assert_planned(loader.next(), step)
    assert capfd.readouterr().err.endswith(f"going on with {words}\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOSYS, errno.EAGAIN])
def test_workers_that_cannot_be_started_are_one_line_or_done_without(monkeypatch, number, capfd):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(multiprocessing.context.Process, "start", fail)
    with pytest.raises(WorkersFailed, match="--num-workers"):
        make(WorkersLoader, num_workers=1)
    with closing(make(WorkersLoader, num_workers=1, fewer=True)) as loader:
        assert_planned(loader.next(), 0)
    error = capfd.readouterr().err
    assert error.endswith("going on without workers\n") and error.count("\n") == 1


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
