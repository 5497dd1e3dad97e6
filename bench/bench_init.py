"""The price of an initialisation before the first step: LION-DG's zeroing against its rivals.

Images are random normal; the work of every method depends on their number alone, but for LSUV's
corrections (one a layer as a rule) and for GradInit's choice of objective.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from lion_fast.init import gradinit_, he_, lion_dg_, lion_lsuv_, lsuv_
from lion_fast.models import DeeplySupervised, densenet_ds, resnet_ds

BENCHMARK = {
    "title": "Initialisation",
    "order": 40,
    "stage": "overhead",
}

NUM_LSUV_IMAGES = 256
GRADINIT_ITERATIONS = 390
GRADINIT_BATCH = 128
ARCHITECTURES: dict[str, Callable[[], DeeplySupervised]] = {
    "densenet_ds": densenet_ds,
    "resnet_ds": resnet_ds,
}


def seeded() -> torch.Generator:
    """Return a fresh generator, so that every call draws the same weights."""
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("method", ["he", "lion_dg", "lsuv", "lion_lsuv"])
def test_price_of_initialisation(bench, method: str, arch: str) -> None:
    """Time one initialisation; `lion_dg` is the zeroing alone, which comes on top of any other."""
    takes_seconds = bench.device.type == "cpu" and arch == "resnet_ds" and "lsuv" in method
    num_images = 8 if bench.quick else NUM_LSUV_IMAGES
    images = torch.randn(num_images, 3, 32, 32, generator=seeded()).to(bench.device)
    model = ARCHITECTURES[arch]().to(bench.device)
    methods: dict[str, Callable[[], nn.Module]] = {
        "he": lambda: he_(model, seeded()),
        "lion_dg": partial(lion_dg_, model),
        "lsuv": lambda: lsuv_(model, images, generator=seeded()),
        "lion_lsuv": lambda: lion_lsuv_(model, images, generator=seeded()),
    }
    bench.time(
        methods[method],
        op="init",
        impl=method,
        shape=f"{arch} N{num_images}x3x32x32" if "lsuv" in method else arch,
        dtype="float32",
        mode="init",
        arch=arch,
        rounds=3 if takes_seconds else None,
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_price_of_gradinit(bench, arch: str) -> None:
    """Time GradInit: all its iterations on a GPU, one on the CPU; the row says how many."""
    on_cpu = bench.device.type == "cpu"
    if arch == "resnet_ds" and on_cpu and not bench.quick:
        pytest.skip("GradInit on resnet_ds takes minutes on the CPU")
    iterations = 1 if on_cpu or not bench.judges_time else GRADINIT_ITERATIONS
    batch_size = 4 if bench.quick else GRADINIT_BATCH
    images = torch.randn(4 * batch_size, 3, 32, 32, generator=seeded()).to(bench.device)
    labels = torch.randint(10, (len(images),), generator=seeded()).to(bench.device)
    model = ARCHITECTURES[arch]().to(bench.device)

    def run() -> None:
        gradinit_(
            model,
            images,
            labels,
            iterations=iterations,
            batch_size=batch_size,
            generator=seeded(),
        )

    median = bench.time(
        run,
        op="init",
        impl="gradinit",
        shape=f"{arch} B{batch_size}x3x32x32",
        dtype="float32",
        mode="init",
        arch=arch,
        rounds=3,
        iterations=iterations,
        iterations_in_full=GRADINIT_ITERATIONS,
    )
    if median is not None:
        bench.note(seconds_per_iteration=median / iterations)
