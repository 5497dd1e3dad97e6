"""Triton's own launcher, on every specialisation of the project's kernels, and per card."""

from importlib.metadata import version

import pytest
from stand_in import needs_stand_in, outcomes

from lion_fast.kernels.launch import Launch

pytestmark = [
    needs_stand_in,
    pytest.mark.skipif(
        not hasattr(Launch, "options"), reason="needs every kernel to be launched by Launch"
    ),
]

LAUNCHES = {"H100": 60, "A100": 60, "V100": 42}  # no bf16 on a V100


@pytest.mark.slow
@pytest.mark.parametrize(
    "card",
    ["H100", *(pytest.param(card, marks=pytest.mark.exhaustive) for card in ("A100", "V100"))],
)
def test_the_driver_gets_what_was_passed_and_runs_what_was_compiled_ahead(card, kernel_cache):
    found = outcomes("stand_in_launches.py", card, cache=kernel_cache)
    assert found["problems"] == []
    assert found["launches"] == LAUNCHES[card]
    # Half of the launches repeat one that came before, and augment_batch has no backward.
    assert LAUNCHES[card] / 2 <= found["specialisations"] < LAUNCHES[card]
    assert len(found["kernels"]) == 4


@pytest.mark.slow
def test_another_triton_launches_the_same(request, tmp_path):
    """Of `pip install --no-deps --target DIR triton==3.6.0`, given as --triton-dir DIR."""
    folder = request.config.getoption("--triton-dir")
    if folder is None:
        pytest.skip("needs another Triton: --triton-dir")
    env = {"PYTHONPATH": str(folder)}
    found = outcomes("stand_in_launches.py", "H100", cache=tmp_path, env=env)
    assert found["triton"] != version("triton")
    assert (found["problems"], found["launches"]) == ([], LAUNCHES["H100"])
