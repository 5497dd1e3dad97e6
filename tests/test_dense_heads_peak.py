"""dense_supervision_loss holds the maps' gradients and little more, counted at a sixteenth."""

import pytest
import torch
from bench_dense_heads import LOSSES, SETTINGS, forward_backward, make_inputs

from support.allocated import peak_allocated_bytes

# GB that two reads of every map, its gradient and partial sums come to at full size, as counted
# for kernels that hold no logits at all; the bar for blocks of them is 1.3 times that.
COUNTED = {
    "2-D 512^2 B8 K21": 0.26,
    "2-D 512^2 B8 K150": 0.33,
    "3-D 128^3 B2 K4": 0.36,
    "3-D 128^3 B2 K16": 0.37,
    "3-D 128^3 B2 K118": 0.45,
}
SIXTEENTH = 1e9 / 16


def peak(impl, name):
    inputs = make_inputs(SETTINGS[name], torch.device("cpu"))
    return peak_allocated_bytes(lambda: forward_backward(LOSSES[impl], *inputs))


@pytest.mark.parametrize("name", SETTINGS)
def test_peak_memory_is_that_of_the_maps_gradients_and_little_more(name):
    """With Dice, which takes the most."""
    assert peak("chunked + Dice", name) <= 1.3 * COUNTED[name] * SIXTEENTH


def test_the_account_sees_the_logits_that_stock_code_holds():
    name = "2-D 512^2 B8 K21"
    assert peak("eager", name) > 1.5 * 1.3 * COUNTED[name] * SIXTEENTH


@pytest.mark.parametrize("impl", sorted(LOSSES.keys() - {"compile", "upsampled", "MONAI"}))
def test_rivals_compute_the_loss_that_they_are_compared_with(impl):
    """nnU-Net's is less by Dice's constant; logits at full resolution are another loss."""
    if impl == "linear_cross_entropy" and not hasattr(torch.nn.functional, impl):
        pytest.skip("needs torch 2.13")
    setting = SETTINGS["3-D 128^3 B2 K4"]
    levels, target, weights = make_inputs(setting, torch.device("cpu"), tiny=True)
    ours = "chunked + Dice" if impl in ("chunked + Dice", "nnU-Net") else "chunked"
    with torch.no_grad():
        wanted = LOSSES[ours](levels, target, weights)
        found = LOSSES[impl](levels, target, weights)
    constant = weights.sum() if impl == "nnU-Net" else 0
    torch.testing.assert_close(found + constant, wanted, rtol=0, atol=0.02)
