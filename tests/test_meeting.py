"""A process that waits for others says so, hears signals, and gives up in time."""

import os
import signal
import socket
import subprocess
import sys

import pytest

SMALL = "--growth-rate 2 --block-layers 1 --batch-size 32 --device cpu --max-steps 2".split()


def heed_hangups():
    """Not as after nohup, which would have the suite's processes ignore them."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def alone(rank, tmp_path, *flags):
    """Start one of two processes, without the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lion_fast", "train", *SMALL, "--out", str(tmp_path), *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | ranks | place, preexec_fn=heed_hangups,
    )  # fmt: skip
    return process, f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("rank", "number"), [(0, signal.SIGINT), (0, signal.SIGHUP), (1, signal.SIGTERM)]
)
def test_who_waits_says_for_whom_and_where_and_hears_a_signal(rank, number, tmp_path):
    process, place = alone(rank, tmp_path)
    line = next(line for line in process.stderr if line.startswith("lion-fast:"))
    assert line.startswith(
        f"lion-fast: rank {rank} waits for the other 1 of 2 processes at {place}"
    )
    process.send_signal(number)
    process.communicate(timeout=300)  # it would wait for ten minutes
    assert process.returncode == 128 + number


def test_who_has_waited_long_enough_gives_up_and_says_how_to_wait_longer(tmp_path):
    process, place = alone(0, tmp_path, "--rendezvous-timeout", "2")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("lion-fast:")]
    assert f"rank 0 cannot meet the other processes at {place}" in line
    assert "wait longer with --rendezvous-timeout" in line
    assert not list(tmp_path.iterdir())
