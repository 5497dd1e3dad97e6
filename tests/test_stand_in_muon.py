"""Launches of an optimizer's captured step, with the networks' own weights: none may creep in."""

import pytest
from stand_in import needs_stand_in, outcomes

pytestmark = needs_stand_in

# By our kernel, by PyTorch's kernels, by cuBLAS (one call each), and copies on the device. The
# textbook's loop takes some 15 a weight: 21 weights of DenseNet-DS, 20 of ResNet-DS.
EXPECTED = {
    "densenet_ds adamw": (0, 2, 0, 0),
    "densenet_ds muon": (1, 2, 0, 0),
    "densenet_ds sgd": (0, 1, 0, 0),
    "resnet_ds adamw": (0, 2, 0, 0),
    "resnet_ds muon": (1, 46, 67, 15),
    "resnet_ds sgd": (0, 1, 0, 0),
}


@pytest.mark.slow
def test_a_captured_step_launches_exactly_what_it_did_and_waits_for_nothing(kernel_cache):
    found = outcomes("stand_in_muon.py", "H100", cache=kernel_cache)
    kinds = ("ours", "pytorch", "cublas", "copy")
    assert {
        name: tuple(row.get(kind, 0) for kind in kinds) for name, row in found.items()
    } == EXPECTED
    assert all(set(row) <= {*kinds, "syncs"} and row["syncs"] == 0 for row in found.values())
