"""Shared set-up: the Triton interpreter where there is no GPU, and poisoned allocations."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import torch

if not torch.cuda.is_available():
    # Read when triton is first imported, so set before any test module is.
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest

# A shell's background job starts with Ctrl-C ignored, and so would every process a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--triton-dir", type=Path, help="folder with another Triton, to launch with")
    with suppress(ValueError):  # bench/conftest.py has it too, and one call may run both
        parser.addoption("--data-dir", type=Path, help="folder that holds CIFAR-10")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark as `gpu` what is skipped without one, by the reason that it gives."""
    for item in items:
        reasons = [mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")]
        if any(reason.startswith("needs a CUDA GPU") for reason in reasons):
            item.add_marker("gpu")


@pytest.fixture
def data_dir(request):
    """Folder with real CIFAR data, or None."""
    return request.config.getoption("--data-dir")


@pytest.fixture
def poisoned_memory():
    """Fill every torch.empty with NaN, so that an element no kernel wrote is caught."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def stripes(tmp_path_factory):
    """Four classes of noisy 8x8 images that differ in colour and in direction of stripes."""
    rng = np.random.default_rng(0)

    def split(num):
        labels = rng.integers(0, 4, num)
        rows, columns = np.mgrid[0:8, 0:8]
        pattern = np.where((labels % 2 == 0)[:, None, None], rows, columns) % 4 < 2
        images = rng.integers(0, 150, (num, 8, 8, 3))
        images[..., 0] += 100 * pattern
        images[..., 2] += 60 * (labels // 2)[:, None, None]
        return images.astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = split(500), split(200)
    path = tmp_path_factory.mktemp("data") / "stripes.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory):
    """Folder for compiled code that the test processes of one session share."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernel_cache"
