"""The persistent kernels reach the driver as they should: on the stand-in for a GPU."""

import torch
from stand_in import caches, needs_stand_in, outcomes

from lion_fast.kernels.persistent.aot import PAPER
from lion_fast.kernels.persistent.compile import compiled, definitions_of
from lion_fast.kernels.persistent.plan import PersistentPlan


@needs_stand_in
def test_a_step_is_launched_on_the_current_stream_and_captured(kernel_cache, monkeypatch):
    # Compiled beforehand: NVRTC crashes in a process whose driver is the stand-in.
    monkeypatch.setenv("TRITON_CACHE_DIR", caches(kernel_cache)["TRITON_CACHE_DIR"])
    definitions = definitions_of(PersistentPlan(PAPER).definitions, torch.bfloat16)
    compiled(definitions, (9, 0))
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
    assert "batch 256: an image takes a processor, and the GPU has 132" in found["refusal"]
