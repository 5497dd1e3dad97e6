"""Counts of the fused and the persistent kernels are committed, and held: none may rise unseen."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

from gpu import count_persistent, count_sass
from gpu.rates import H200
from gpu.sass import Frame, Loop
from lion_fast.kernels.dense.aot import DENSENET, step_launches
from lion_fast.kernels.persistent.compile import compiler_obstacle

ROOT = Path(__file__).parent.parent
COUNTS = ROOT / "bench" / "results" / "counts"
AGAIN = "if it is meant: python bench/gpu/{} --out bench/results/counts/{}"


@functools.cache
def of(name):
    """The committed counts; a copy of the code that travels to a GPU has no results."""
    return json.loads((COUNTS / f"{name}.json").read_text(encoding="utf-8"))


def risen(found, committed):
    """Names of the counts that are more than what is committed; missing ones count as 0."""
    return [
        f"{name} {what}: {count:g} instead of {committed.get(name, {}).get(what, 0):g}"
        for name, counts in found.items()
        for what, count in counts.items()
        if count > committed.get(name, {}).get(what, 0) + 0.01
    ]


def needs_nvrtc():
    if problem := compiler_obstacle():
        pytest.skip(f"needs NVRTC: {problem}")
    version = count_persistent.nvrtc_version()
    if version != of("persistent-H200")["nvrtc"]:
        pytest.skip(
            f"the committed counts are NVRTC {of('persistent-H200')['nvrtc']}'s, this is {version}"
        )


def test_no_count_of_the_persistent_kernels_has_risen():
    needs_nvrtc()
    code = count_persistent.codes(triton.knobs.nvidia.nvdisasm.path)
    walks = count_persistent.passes(code)
    found, again = count_persistent.counted(walks), AGAIN.format(
        "count_persistent.py", "persistent-H200"
    )  # fmt: skip
    for name, phases in found.items():
        assert not risen(phases, of("persistent-H200")["counts"][name]), again
    assert not any(walk.unknown for walk in walks.values()), "loops without a trip count"
    # What follows from the network alone: products of 16 and of 8 channels, forward.
    layers = sum(found["forward"][f"block {b}"]["tensor"] for b in (1, 2, 3))
    channels = [[c + 8 * u for u in range(6)] for c in (24, 40, 48)]
    positions = (1024, 256, 64)
    products = sum(
        n / 16 * 9 * (c // 16 * 4 + (c % 16 > 0) * 2)
        for of_block, n in zip(channels, positions, strict=True)
        for c in of_block
    )
    assert layers == pytest.approx(products / 16)
    # The time is of the same code, and no rate makes it shorter by being worse.
    total = count_persistent.total_us(walks, H200)
    slower = H200.changed("l2", 2)
    assert total < count_persistent.total_us(count_persistent.passes(code, slower), slower)


def test_a_count_that_rises_is_named():
    committed = {"stem": {"issued": 10.0, "barriers": 2.0}}
    assert risen({"stem": {"issued": 10.0, "barriers": 1.0}}, committed) == []
    assert risen({"stem": {"issued": 11.0}}, committed) == ["stem issued: 11 instead of 10"]
    assert risen({"new": {"barriers": 3.0}}, committed) == ["new barriers: 3 instead of 0"]


COUNT = """
import json, sys, torch
from gpu import count_sass
launches = count_sass.step_launches(count_sass.DENSENET, torch.bfloat16)
names = sys.argv[1:] or list(launches)
print(json.dumps({name: count_sass.count_launch(launches[name]) for name in names}))
"""


def check_launches(*names):
    """Count launches, all where none is named, in a process where Triton compiles."""
    if not triton.__version__.startswith(of("fused-triton38")["triton"].rpartition(".")[0]):
        pytest.skip(f"the committed counts are Triton {of('fused-triton38')['triton']}'s")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "bench"), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", COUNT, *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = [
        {name: row["executed_a_warp"] | {"registers": row["registers"]} for name, row in rows}
        for rows in (json.loads(done.stdout).items(), of("fused-triton38")["launches"].items())
    ]
    assert not risen(*counts), AGAIN.format("count_sass.py", "fused-triton38 --without-timeline")


def test_no_count_of_a_quick_launch_of_the_fused_backbone_has_risen():
    check_launches("block 3 group 5 backward", "reduce")


@pytest.mark.slow
def test_no_count_of_the_fused_backbone_has_risen():
    check_launches()


def test_a_timeline_of_other_launches_is_refused(tmp_path):
    launches = step_launches(DENSENET, torch.bfloat16)
    found = count_sass.measured(count_sass.TIMELINE, launches)
    assert list(found) == list(launches) and sum(found.values()) == pytest.approx(1159, abs=1)
    other = tmp_path / "timeline.txt"
    other.write_text(count_sass.TIMELINE.read_text().replace("_dense_stem", "_dense_other"))
    with pytest.raises(ValueError, match="other launches"):
        count_sass.measured(other, launches)


def test_a_loop_that_is_not_known_is_no_loop_of_one_trip():
    with pytest.raises(KeyError):
        count_sass.trips_of({}, Loop(0, 1, (Frame("no_such_file.py", 3),)))


def test_committed_pages_say_what_is_measured_and_what_is_calculated():
    for name in ("fused-H200", "persistent-H200"):
        text = (COUNTS / f"{name}.md").read_text(encoding="utf-8")
        assert "calculated" in text and (COUNTS / f"{name}.png").exists()
    assert "measured**" not in (COUNTS / "persistent-H200.md").read_text(encoding="utf-8")
    fused = json.loads((COUNTS / "fused-H200.json").read_text(encoding="utf-8"))
    rows = fused["launches"].values()
    # The model that is quoted is the one that was held against 49 measured launches.
    ratio = sum(r["calculated_us"] for r in rows) / sum(r["measured_us"] for r in rows)
    assert 0.7 < ratio < 1.3 and fused["triton"].startswith("3.6")


def test_muon_on_tensor_cores_takes_a_sixth_of_what_fp32_takes():
    muon = json.loads((COUNTS / "muon-triton38.json").read_text(encoding="utf-8"))
    calculated, measured = muon["calculated_us"], muon["measured_fp32"]["us"]
    # The model is right where a card has measured: fp32's way took 82 us.
    assert calculated["fp32"] == pytest.approx(measured, rel=0.1)
    assert calculated["tensor cores"] < calculated["fp32"] / 6
    assert all(
        row["spilled_bytes"] == 0 for row in muon["rows_of_a_block"]["tensor cores"].values()
    )
