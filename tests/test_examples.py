"""The examples of the docs run as they stand."""

import runpy
from pathlib import Path

import pytest
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


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("monai", "monai"),
        ("nnunet", "dynamic_network_architectures"),
        ("mmseg", "torch"),
        ("transformers", "transformers"),
        ("lightning", "lightning"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_a_frameworks_own_way_ends_with_auxiliary_logits_of_0(name, package):
    pytest.importorskip(package, reason=f"{package} is not installed")
    example = EXAMPLES / f"example_{name}.py"
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 25
    names = runpy.run_path(str(example))
    assert names["auxiliary"] and not any(logits.any() for logits in names["auxiliary"])
    assert names.get("main", torch.ones(1)).any()
