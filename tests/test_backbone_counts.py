"""What a step with the fused backbone asks of a GPU, to the launch: none of it is a time."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from stand_in import TESTS, caches, needs_stand_in
from test_counts import PINNED, version

from lion_fast.kernels.dense.aot import DENSENET, step_cases, step_names
from support.dense_traffic import launch_bytes, scratch_bytes

# Of one layer a block at 16x16, batch 8.
DENSE_LAUNCHES = {
    "pack": 1, "stem": 1, "layer": 2, "layer_walk": 1, "transition": 2, "taps": 1,
    "running_statistics": 1, "group_bwd": 6, "weights_bwd": 3, "reduce": 1,
}  # fmt: skip
OTHERS = {"_augment_batch_kernel": 1, "_deep_supervision_loss_bwd_kernel": 1,
          "_deep_supervision_loss_classify_kernel": 1}  # fmt: skip


def test_the_backbone_of_the_paper_takes_49_launches_and_half_a_gigabyte():
    found = launch_bytes(DENSENET, 2)
    assert list(found) == step_names(DENSENET.block_layers)
    assert len(step_cases(DENSENET, torch.bfloat16)) == len(found) == 49
    assert 0.50e9 < sum(found.values()) < 0.55e9
    assert scratch_bytes(DENSENET, 2) < 0.06e9


def test_a_launch_moves_at_least_the_maps_that_it_makes_and_reads():
    found = launch_bytes(DENSENET, 2)
    images = 128 * 32 * 32 * 2
    assert found["block 1 layer 0"] >= (24 + 8) * images
    assert found["block 1 layer 5"] - found["block 1 layer 4"] == 8 * images
    assert found["block 1 group 4 backward"] < found["block 1 group 3 backward"]


@pytest.mark.slow
@needs_stand_in
@pytest.mark.skipif(
    any(not version(name).startswith(number) for name, number in PINNED.items()),
    reason=f"the exact counts are those of {PINNED}",
)
def test_a_captured_step_launches_what_the_plan_lists_and_nothing_waits(tmp_path, kernel_cache):
    out = tmp_path / "counts.json"
    script = TESTS.parent / "bench/gpu/count_backbone.py"
    command = [sys.executable, str(script), "--tiny", "--out", str(out)]
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env = inherited | caches(kernel_cache)
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(out.read_text())
    dense = {f"_dense_{name}_kernel": num for name, num in DENSE_LAUNCHES.items()}
    ours = {k: v for k, v in found["launches_by_name"].items() if k.startswith("_") and k[1] != "Z"}
    assert ours == dense | OTHERS
    assert Counter(found["launches"]) == Counter(ours=22, inductor=1, pytorch=7)
    assert (found["host_calls"], found["syncs"]) == (1, 0)
