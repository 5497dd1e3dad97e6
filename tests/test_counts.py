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

# Of `bench_counts.py --card H100 --arch densenet_ds --tiny`: launches by ours, Inductor, PyTorch
# and cuDNN or cuBLAS; what the host submits or waits for; bytes by part.
COMPILED_BYTES = {"forward": 3017042, "backward": 5406712}
EXPECTED = {
    "loop": ((0, 0, 132, 26), 158, {"step": 11413446}),
    "eager": (
        (4, 0, 74, 17),
        95,
        {"backward": 6619986, "forward": 4149270, "optimizer": 83520, "other": 298848},
    ),
    "compile": ((4, 53, 10, 17), 84, COMPILED_BYTES),
    "graph": ((4, 53, 10, 17), 1, COMPILED_BYTES),
}


@pytest.mark.slow
def test_a_step_launches_and_moves_exactly_what_it_did(tmp_path: Path) -> None:
    out = tmp_path / "counts.json"
    script = TESTS.parent / "bench/bench_counts.py"
    shape = ["--card", "H100", "--arch", "densenet_ds", "--tiny"]
    command = [sys.executable, str(script), *shape, "--out", str(out)]
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
