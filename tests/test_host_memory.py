"""Freed memory is kept where nobody has chosen otherwise: seen by the page faults of its reuse."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from lion_fast.training.machine.host_memory import keep_freed_memory

kept = keep_freed_memory()
SIZE = 64 * 2**20
for _ in range(16):  # glibc keeps several such blocks before it reuses them
    torch.ones(SIZE // 4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(SIZE // 4)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, faults * resource.getpagesize() / (4 * SIZE))
"""

ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES")

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="sets the allocator of glibc"
)


def share_taken_anew(**environment):
    """Return whether memory is kept, and how much of what is reused the system gives anew."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(ALLOCATOR)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],
        env=bare | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, share = done.stdout.split()
    return kept == "True", float(share)


def test_what_is_freed_is_reused_without_the_system():
    kept, share = share_taken_anew()
    assert kept and share < 0.01


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_PERTURB_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}],
    ids=["MALLOC_", "GLIBC_TUNABLES"],
)
def test_an_allocator_that_the_environment_sets_is_left_alone(environment):
    kept, share = share_taken_anew(**environment)
    assert not kept and share > 0.9
