"""What a step asks of a GPU, to the launch and byte: a change that adds one has to say so here."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from stand_in import TESTS, needs_stand_in

# Other versions launch other kernels; constraints.txt pins these.
PINNED = {"torch": "2.14.1", "triton": "3.8.0"}
pytestmark = [
    needs_stand_in,
    pytest.mark.skipif(
        any(not version(name).startswith(number) for name, number in PINNED.items()),
        reason=f"the exact counts are those of {PINNED}",
    ),
]

# Of `bench_counts.py --card H100 --tiny`: launches by ours, Inductor, PyTorch and cuDNN or cuBLAS;
# what the host submits or waits for; bytes by part.
COMPILED_BYTES = {"forward": 384008, "backward": 670718}
EXPECTED = {
    "loop": ((0, 0, 128, 26), 154, {"step": 1545126}),
    "eager": (
        (4, 0, 80, 17),
        101,
        {"backward": 848826, "forward": 538488, "optimizer": 83520, "other": 259700},
    ),
    "compile": ((4, 43, 6, 17), 70, COMPILED_BYTES),
    "graph": ((4, 43, 6, 17), 1, COMPILED_BYTES),
}


@pytest.mark.slow
def test_a_step_launches_and_moves_exactly_what_it_did(tmp_path: Path) -> None:
    out = tmp_path / "counts.json"
    script = TESTS.parent / "bench/bench_counts.py"
    command = [sys.executable, str(script), "--card", "H100", "--tiny", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (found,) = json.loads(out.read_text())["counts"]
    assert {
        name: (
            tuple(row["launches"][k] for k in ("ours", "inductor", "pytorch", "cudnn_cublas")),
            row["host_calls"],
            row["bytes"],
        )
        for name, row in found["engines"].items()
    } == EXPECTED
    for row in found["engines"].values():
        assert row["syncs"] == row["launches"]["copy"] == row["launches"]["fill"] == 0
