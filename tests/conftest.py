"""Shared set-up: the Triton interpreter where there is no GPU, and poisoned allocations."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = (
        "1"  # read when triton is first imported, so set before any test module
    )

import pytest


@pytest.fixture
def poisoned_memory():
    """Fill every torch.empty with NaN, so that an element no kernel wrote is caught."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
