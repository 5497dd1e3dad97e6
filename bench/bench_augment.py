"""augment_batch against stock PyTorch, torch.compile and torchvision at the same work and layout.

B images of a batch, gathered by random index out of the whole training set, channels_last out.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from lion_fast.data.images import ImageSet
from lion_fast.data.plan import BatchPlan
from lion_fast.kernels import augment_batch, augment_batch_ref

BENCHMARK = {
    "title": "Augmentation",
    "order": 80,
    "stage": "kernels",
    "ours": ("triton",),
}

NUM_BATCHES = 64


def torchvision_batch(
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    flips: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Do the same with torchvision's transforms on the whole batch.

    mean and std are tensors, because out of lists `normalize` makes them with a copy that waits.
    """
    batch = images[indices].permute(0, 3, 1, 2)
    batch = torch.where(flips[:, None, None, None], TF.horizontal_flip(batch), batch)
    batch = TF.normalize(TF.to_dtype(batch, torch.float32, scale=True), mean, std)
    return batch.to(out_dtype, memory_format=torch.channels_last), labels[indices]


def make_function(
    impl: str, image_set: ImageSet, device: torch.device, dtype: torch.dtype
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `function(images, labels, indices, flips)` of the implementation."""
    if impl == "torchvision":
        mean, std = (torch.tensor(v, device=device) for v in (image_set.mean, image_set.std))
        return partial(torchvision_batch, mean=mean, std=std, out_dtype=dtype)
    if impl == "compile":
        torch.compiler.reset()  # every setting is compiled afresh, below the recompilation limit
    functions: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "triton": partial(augment_batch, impl="triton"),
        "torch": augment_batch_ref,
        "compile": torch.compile(augment_batch_ref, fullgraph=True, dynamic=False),
    }
    return partial(functions[impl], mean=image_set.mean, std=image_set.std, out_dtype=dtype)


def make_batches(image_set: ImageSet, batch_size: int, device: torch.device) -> list[tuple]:
    """Return the set with each of the plan's first batches."""
    images, labels = image_set.train_images.to(device), image_set.train_labels.to(device)
    planned = BatchPlan(len(images), batch_size, seed=42).steps(0, NUM_BATCHES)
    indices = torch.from_numpy(planned.indices).int().to(device)
    flips = torch.from_numpy(planned.flips).to(device)
    return [(images, labels, *row) for row in zip(indices, flips, strict=True)]


def skip_what_needs_a_gpu(device: torch.device, reason: str) -> None:
    """Skip on the CPU."""
    if device.type != "cuda":
        pytest.skip(f"needs a CUDA GPU: {reason}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch_size", [128, 512, 2048])
@pytest.mark.parametrize("impl", ["triton", "torch", "compile", "torchvision"])
def test_augment_batch(bench, image_set, impl, batch_size, dtype):
    """Time one batch; many calls in one graph on a GPU, so that launches do not count."""
    if impl == "triton":
        skip_what_needs_a_gpu(bench.device, "on the CPU the interpreter runs the kernel")
    if batch_size > 128 or dtype != torch.float32:
        skip_what_needs_a_gpu(bench.device, "CPU runs train at batch 128 in fp32")
    height, width = image_set.image_size
    values = batch_size * height * width * 3
    bench.time(
        make_function(impl, image_set, bench.device, dtype),
        make_batches(image_set, batch_size, bench.device),
        graph=True,
        op="augment_batch",
        impl=impl,
        shape=f"B{batch_size} {height}x{width}",
        dtype=str(dtype).removeprefix("torch."),
        mode="forward",
        bytes_moved=values * (1 + dtype.itemsize) + batch_size * (4 + 1 + 2 * 8),
    )


@pytest.mark.parametrize("batch_size", [128, 2048])
def test_augment_batch_against_torch_compile(bench, image_set, batch_size):
    """Record the kernel's time over that of torch.compile, side by side."""
    skip_what_needs_a_gpu(bench.device, "on the CPU augment_batch is the reference itself")
    (batch, *_) = make_batches(image_set, batch_size, bench.device)
    samples = bench.compare(
        {
            impl: partial(make_function(impl, image_set, bench.device, torch.bfloat16), *batch)
            for impl in ("triton", "compile")
        },
        graph=True,
        op="augment_batch",
        impl="triton",
        shape=f"B{batch_size}",
        dtype="bfloat16",
        mode="forward",
    )
    bench.record_ratio(samples, "triton", "compile")
