"""The persistent kernels reach the driver as they should: on the stand-in for a GPU."""

import pytest
import torch
from persistent_cubins import compile_persistent
from stand_in import caches, needs_stand_in, outcomes
from test_stand_in_runs import check_run

from lion_fast.kernels.dense.plan import Plan
from lion_fast.kernels.persistent.aot import PAPER
from lion_fast.kernels.persistent.plan import PersistentPlan

IN_TURN = PersistentPlan(PAPER._replace(batch=256), 132, is_resident=False)


@needs_stand_in
def test_a_step_is_launched_on_the_current_stream_and_captured(kernel_cache):
    cache = caches(kernel_cache)["TRITON_CACHE_DIR"]
    compile_persistent(cache, torch.bfloat16)
    compile_persistent(cache, torch.bfloat16, sizes=IN_TURN)
    found = outcomes("stand_in_persistent.py", "H100", cache=kernel_cache)
    sizes = PersistentPlan(PAPER)
    expected = [
        ["dense_persistent_pack", 256, 1, 1, 256, 1, 1, 0],
        ["dense_persistent_forward", 128, 1, 1, 512, 1, 1, sizes.forward_shared],
        ["dense_persistent_backward", 128, 1, 1, 512, 1, 1, sizes.backward_shared],
    ]
    assert [launch[:-2] for launch in found["launches"]] == 2 * expected
    assert [launch[-2:] for launch in found["launches"]] == 3 * [[False, True]] + 3 * [
        [True, False]
    ]
    # More images than processors: as many programs, of less memory.
    assert [launch[:8] for launch in found["larger"]] == [
        ["dense_persistent_pack", 256, 1, 1, 256, 1, 1, 0],
        ["dense_persistent_forward", 132, 1, 1, 512, 1, 1, IN_TURN.forward_shared],
        ["dense_persistent_backward", 132, 1, 1, 512, 1, 1, IN_TURN.backward_shared],
    ]
    assert "images of 28x28: they take squares of 16, 24 or 32" in found["refusal"]


SMALL = PersistentPlan(Plan(32, 16, 16, 24, 8, 2))
RUNS = [
    f'{engine}/densenet_ds/{loader}/backbone="persistent"/growth_rate=8/block_layers=2'
    for engine, loader in (
        ("eager/bf16", "workers"),
        ("compile/fp16", "resident"),
        ("graph/bf16", "resident"),
        ("graph-eager/bf16", "workers"),
    )
]


@pytest.mark.slow
@needs_stand_in
def test_every_engine_trains_checkpoints_and_resumes_with_it(tmp_path, kernel_cache):
    cache = caches(kernel_cache)["TRITON_CACHE_DIR"]
    compile_persistent(cache, sizes=SMALL)
    found = outcomes("stand_in_runs.py", "H100", tmp_path, "doctor", *RUNS, cache=kernel_cache)
    assert "persistent kernels   NVRTC and the driver fit" in found["doctor"]["result"]
    for run in RUNS:
        assert "result" in found[run], (run, found[run])
        check_run(run, found[run]["result"])
        assert found[run]["result"]["resolved"]["backbone"] == "persistent"
