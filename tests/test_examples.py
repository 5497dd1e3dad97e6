"""The examples of the docs run as they stand."""

import runpy
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parent


def test_the_plain_loop_learns_with_a_head_that_starts_at_zero(capsys):
    names = runpy.run_path(str(EXAMPLES / "example_plain_loop.py"))
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[3]) for line in lines]
    assert losses == sorted(losses, reverse=True)
    # A zero head's loss is log 10.
    assert names["losses"].per_head[0] < 0.8 * torch.tensor(10.0).log()
    assert names["model"].aux_head.weight.any()
