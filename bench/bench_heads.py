"""deep_supervision_loss against eager PyTorch, torch.compile and Liger's fused linear loss.

Heads only: taps in, loss and gradients of taps, weights and biases out. Maps are channels_last, as
in training, unless a test says otherwise. Shapes: B images, K classes, the taps of both networks.

On a CPU, `TRITON_INTERPRET=1 pytest bench/bench_heads.py --benchmark-disable` runs the kernels too.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lion_fast.kernels import deep_supervision_loss, deep_supervision_loss_ref

BENCHMARK = {
    "title": "Heads and losses",
    "order": 70,
    "stage": "kernels",
    "ours": ("triton",),
}

TAPS = {
    "densenet": ((72, 32, 32), (84, 16, 16), (90, 8, 8)),
    "resnet": ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)),
}
"""network -> (channels, height, width) of each tap"""

Loss = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Tensor, Tensor], Tensor]


def eager_loss(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
) -> Tensor:
    """Return the loss as people write it today: low-precision maps pooled, linear layer in fp32."""
    losses = [
        F.cross_entropy(F.linear(feature.mean((2, 3)).float(), weight, bias), target)
        for feature, weight, bias in zip(features, weights, biases, strict=True)
    ]
    return (torch.stack(losses) * loss_weights).sum()


def op_loss(*inputs: object, impl: str) -> Tensor:
    """Return the loss of `deep_supervision_loss`."""
    return deep_supervision_loss(*inputs, impl=impl).loss


def reference_loss(*inputs: object) -> Tensor:
    """Return the loss of `deep_supervision_loss_ref`."""
    return deep_supervision_loss_ref(*inputs).loss


def liger_loss(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
) -> Tensor:
    """Return the loss with Liger's fused linear cross-entropy behind PyTorch's pooling."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    fused = LigerFusedLinearCrossEntropyLoss()
    losses = [
        fused(weight, feature.mean((2, 3)).float(), target, bias)
        for feature, weight, bias in zip(features, weights, biases, strict=True)
    ]
    return (torch.stack(losses) * loss_weights).sum()


def make_loss(impl: str) -> Loss:
    """Return the loss of the implementation."""
    if impl == "compile":
        torch.compiler.reset()  # every setting is compiled afresh, below the recompilation limit
        # Without CUDA graphs of its own: the harness records every implementation in one.
        return torch.compile(
            reference_loss, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs"
        )
    if impl == "liger" and importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("needs liger_kernel, which is not installed")
    losses: dict[str, Loss] = {
        "triton": partial(op_loss, impl="triton"),
        "eager": eager_loss,
        "liger": liger_loss,
    }
    return losses[impl]


def make_inputs(
    network: str,
    batch_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    num_classes: int = 10,
    memory_format: torch.memory_format = torch.channels_last,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor]:
    """Return features, fp32 weights and biases, target and loss weights."""
    taps = TAPS[network]

    def parameter(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).requires_grad_()

    features = [
        torch.randn(batch_size, *tap, device=device, dtype=dtype)
        .contiguous(memory_format=memory_format)
        .requires_grad_()
        for tap in taps
    ]
    weights = [parameter(num_classes, tap[0]) for tap in taps]
    biases = [parameter(num_classes) for _ in taps]
    target = torch.randint(num_classes, (batch_size,), device=device)
    loss_weights = torch.tensor([0.3] * (len(taps) - 1) + [1.0], device=device)
    return features, weights, biases, target, loss_weights


def step(loss: Loss, mode: str) -> Callable[..., object]:
    """Return `loss` alone or with its gradients, which are returned, not accumulated."""
    if mode == "forward":
        return torch.no_grad()(loss)

    def forward_backward(features, weights, biases, target, loss_weights):
        value = loss(features, weights, biases, target, loss_weights)
        return torch.autograd.grad(value, [*features, *weights, *biases])

    return forward_backward


def settle_size(bench, impl: str, batch_size: int, dtype: torch.dtype) -> int:
    """Return the batch size to run; skip what a CPU cannot show."""
    if bench.device.type == "cuda":
        return batch_size
    if impl == "liger":
        pytest.skip("needs a CUDA GPU: Liger's kernels run nowhere else")
    if batch_size > 128 or dtype != torch.float32:
        pytest.skip("needs a CUDA GPU: CPU runs train at batch 128 in fp32")
    if impl == "triton" and not (bench.quick and os.environ.get("TRITON_INTERPRET") == "1"):
        pytest.skip("needs a CUDA GPU, or TRITON_INTERPRET=1 to run once and untimed")
    return 4 if bench.quick else batch_size


def tap_bytes(network: str, batch_size: int, dtype: torch.dtype) -> int:
    """Return the bytes of the taps: what a forward must read; a backward need move none of it."""
    return sum(c * h * w for c, h, w in TAPS[network]) * batch_size * dtype.itemsize


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch_size", [128, 512, 2048])
@pytest.mark.parametrize("network", ["densenet", "resnet"])
@pytest.mark.parametrize("impl", ["triton", "eager", "compile", "liger"])
def test_heads(bench, impl, network, batch_size, dtype, mode):
    """Time the heads alone; many calls in one graph on a GPU, so that launches do not count.

    Liger's op waits for the device, so it cannot be recorded and its launches do count.
    """
    batch_size = settle_size(bench, impl, batch_size, dtype)
    make = partial(make_inputs, network, batch_size, dtype, bench.device)
    bench.time(
        step(make_loss(impl), mode),
        bench.rotate(make),
        graph=impl != "liger",
        op="deep_supervision_loss",
        impl=impl,
        shape=f"{network} B{batch_size} K10",
        dtype=str(dtype).removeprefix("torch."),
        mode=mode,
        bytes_moved=tap_bytes(network, batch_size, dtype),
    )


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_heads_by_layout_and_classes(bench, layout, num_classes):
    """Time the kernels' forward in both layouts and at both class counts."""
    batch_size, dtype = 512, torch.bfloat16
    if bench.device.type != "cuda":
        batch_size, dtype = settle_size(bench, "triton", 128, torch.float32), torch.float32
    make = partial(
        make_inputs,
        "densenet",
        batch_size,
        dtype,
        bench.device,
        num_classes=num_classes,
        memory_format=getattr(
            torch, "contiguous_format" if layout == "contiguous" else "channels_last"
        ),
    )
    bench.time(
        step(make_loss("triton"), "forward"),
        bench.rotate(make),
        graph=True,
        op="deep_supervision_loss",
        impl="triton",
        shape=f"densenet B{batch_size} K{num_classes} {layout}",
        dtype=str(dtype).removeprefix("torch."),
        mode="forward",
        bytes_moved=tap_bytes("densenet", batch_size, dtype),
    )


@pytest.mark.parametrize("batch_size", [128, 512, 2048])
@pytest.mark.parametrize("network", ["densenet", "resnet"])
def test_heads_against_eager_and_torch_compile(bench, network, batch_size):
    """Record the kernels' time over theirs, side by side, forward and backward in bf16."""
    if bench.device.type != "cuda":
        pytest.skip("needs a CUDA GPU: on the CPU the op is the reference itself")
    inputs = make_inputs(network, batch_size, torch.bfloat16, bench.device)
    impls = ("triton", "eager", "compile")
    samples = bench.compare(
        {impl: partial(step(make_loss(impl), "forward+backward"), *inputs) for impl in impls},
        graph=True,
        op="deep_supervision_loss",
        impl="triton",
        shape=f"{network} B{batch_size} K10",
        dtype="bfloat16",
        mode="forward+backward",
    )
    bench.record_ratio(samples, "triton", "eager")
    bench.record_ratio(samples, "triton", "compile")


def test_choosing_an_implementation_costs_nothing_on_the_cpu(bench):
    """Record `impl="auto"` over the reference called by hand; the target is at most 1.02."""
    if bench.device.type != "cpu":
        pytest.skip("about the CPU path: run with --device cpu")
    inputs = make_inputs("densenet", 128, torch.float32, bench.device)
    samples = bench.compare(
        {
            "auto": partial(step(partial(op_loss, impl="auto"), "forward+backward"), *inputs),
            "reference": partial(step(reference_loss, "forward+backward"), *inputs),
        },
        op="deep_supervision_loss",
        impl="auto",
        shape="densenet B128 K10",
        dtype="float32",
        mode="forward+backward",
    )
    bench.record_ratio(samples, "auto", "reference", bound=0.02)
