"""Triton's own launcher, on every specialisation of the project's kernels, and per card."""

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
@pytest.mark.parametrize("card", LAUNCHES)
def test_the_driver_gets_what_was_passed_and_runs_what_was_compiled_ahead(card, kernel_cache):
    found = outcomes("stand_in_launches.py", card, cache=kernel_cache)
    assert found["problems"] == []
    assert found["launches"] == LAUNCHES[card]
    # Half of the launches repeat one that came before, and augment_batch has no backward.
    assert LAUNCHES[card] / 2 <= found["specialisations"] < LAUNCHES[card]
    assert len(found["kernels"]) == 4
