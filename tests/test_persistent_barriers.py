"""Each barrier of the persistent kernels is needed: without it, a race is found."""

import re

import emulator
import pytest
import torch
from emulator.backbone import How
from emulator.runs import Setting, run

pytestmark = emulator.needs_compiler

# Layers of 16 channels, so that every loop is gone through more than once.
SETTING = Setting(2, 16, 40, 16, 2, torch.float16)
BARRIERS = [
    (path.name, i)
    for path in sorted(emulator.SOURCES.iterdir())
    if path.name != "primitives.h"
    for i, line in enumerate(path.read_text().splitlines(), 1)
    if re.match(r" +synchronise\(\);", line)
]


def test_nothing_is_found_where_none_is_left_out():
    run(SETTING, How(seed=1, is_checked=True))
    assert len(BARRIERS) > 20


@pytest.mark.parametrize("barrier", BARRIERS, ids=lambda b: f"{b[0]}:{b[1]}")
def test_a_barrier_that_is_left_out_is_missed(barrier):
    for seed in (1, 2, 3):
        try:
            run(SETTING, How(seed, is_checked=True, skip=barrier))
        except emulator.Fault as fault:
            assert re.match(r"race: |unwritten: ", str(fault))
            return
    pytest.fail(f"nothing was found without the barrier at {barrier[0]}:{barrier[1]}")
