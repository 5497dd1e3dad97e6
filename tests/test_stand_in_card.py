"""`make gpu MINUTES=12` runs whole, at the sizes of a run, on the stand-in for a GPU."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from persistent_cubins import compile_persistent
from stand_in import TESTS, needs_stand_in, noting_environment

from gpu.card import TO_COME, plan
from report.card_page import cards_page

pytestmark = [needs_stand_in, pytest.mark.slow]
# Nothing computes there: its cuBLAS has no product in fp64, and a loss, or an image whose patches
# whiten a stem, is what lay in memory.
LACKING = re.compile(r"CUBLAS_STATUS_NOT|UserError: (loss is|.*whiten)")


def test_every_stage_of_twelve_minutes_comes_to_its_end_and_makes_a_page(tmp_path, kernel_cache):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, num in (("train", 2048), ("test", 256)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (num, 32, 32, 3), np.uint8)
        arrays[f"y_{split}"] = np.arange(num) % 10
    np.savez(tmp_path / "cifar10.npz", **arrays)
    out = tmp_path / "2027-01-01-h100"
    command = [sys.executable, str(TESTS.parent / "bench" / "gpu" / "card.py"), "--rehearse"]
    command += ["--minutes", "12", "--out", str(out), "--data-dir", str(tmp_path)]
    command += ["--commit", "abc", "--folder", str(tmp_path / "folder")]
    env = noting_environment("H100", kernel_cache)
    compile_persistent(env["TRITON_CACHE_DIR"])
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    found = [json.loads(line) for line in (out / "card.jsonl").read_text().splitlines()]

    ended = {line["ends"]: line["code"] for line in found if "ends" in line}
    assert ended == dict.fromkeys((stage.name for stage in plan(12)), 0)
    errors = [line for line in found if "error" in line and not LACKING.search(line["error"])]
    assert errors == []
    # Only ncu, around a process of its own, tells why warps wait.
    assert [line["left_out"] for line in found if "left_out" in line] == ["why warps wait"]
    assert {line["to_come"] for line in found if "to_come" in line} == TO_COME.keys()
    (counts,) = [line for line in found if line["stage"] == "tests"]
    assert counts["tests"] > 0 and counts["errors"] == 0

    timed = {name for line in found for name in line.get("round_ms", ())}
    assert {"fused", "graph", "stock", "plain_max_autotune", "lion_dg", "resnet he"} <= timed
    seen = {(line["recipe"], line["seed"]) for line in found if line["stage"] == "runs"}
    assert ("fast fused", 42) in seen and len(seen) == 6
    page = "\n".join(cards_page([out]))
    assert "### stand-in H100, 2027-01-01" in page and "lion_dg / he" in page
