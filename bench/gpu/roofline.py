"""A floor under one training step.

    python bench/gpu/roofline.py [--device cuda] [--arch resnet_ds]

Counts the operations of every part and the least bytes that it must move, measures copy bandwidth
and matrix-product rate in the same run, and prints measured time over floor. The floor of a part is
the longer of bytes / bandwidth and operations / rate. What the bytes assume:

- A map is written once by the convolution that makes it and read once by each that consumes it;
  backward reads a convolution's input and its output's gradient and writes its input's gradient.
- Batch norm, ReLU, pooling, addition and concatenation ride along with those reads and writes.
- Parameters and their gradients are float32. AdamW reads parameter, gradient and two moments and
  writes all but the gradient. Heads read every tap once and write its gradient once.

No step that runs convolution by convolution moves less; a cache that holds a map from its producer
to its consumer can still beat the floor. On CUDA, parts are replayed from a CUDA graph, so that the
launches, which are no work of the step, do not count.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.init import initialize_
from lion_fast.kernels import augment_batch
from lion_fast.models import DeeplySupervised, build_model
from lion_fast.training.machine.resolve import Resolved, resolve
from lion_fast.training.step.step import autocast, float32_precision
from support.harness import copy_bandwidth, matmul_rate, prepare_round, side_stream
from support.machine import machine_info

IMAGE_SIZE = (32, 32)
NUM_CLASSES = 10
NUM_IMAGES = 10_000
NUM_ROUNDS = 20
PARTS = ("augment", "forward", "heads", "backward", "optimizer")


class Work(NamedTuple):
    """What a part must do at least."""

    operations: int
    """Floating-point operations of convolutions and matrix products."""
    bytes_moved: int

    def floor_seconds(self, operations_per_second: float, bytes_per_second: float) -> float:
        """Return the time below which the part cannot end."""
        return max(self.operations / operations_per_second, self.bytes_moved / bytes_per_second)


def num_bytes(*tensors: Tensor) -> int:
    """Return the bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def convolution_traffic(model: nn.Module, item_bytes: int) -> Iterator[dict[str, int]]:
    """Count, under the module's assumptions, the bytes of each convolution that runs inside.

    item_bytes: size of an activation. The first convolution makes no gradient of its input.
    """
    traffic = {"forward": 0, "backward": 0}

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        weight = num_bytes(*layer.parameters())
        read, written = inputs[0].numel() * item_bytes, output.numel() * item_bytes
        traffic["forward"] += read + weight + written
        input_gradient = read if inputs[0].requires_grad else 0
        traffic["backward"] += read + written + weight + input_gradient + weight

    hooks = [
        layer.register_forward_hook(count)
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    try:
        yield traffic
    finally:
        for hook in hooks:
            hook.remove()


def count_operations(run: Callable[[], object]) -> int:
    """Return the floating-point operations of convolutions and products inside `run`."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class Step:
    """One training step, apart: everything that a part reads is made beforehand."""

    def __init__(self, config: TrainConfig, resolved: Resolved) -> None:
        device = resolved.device
        self.resolved, self.aux_weight = resolved, config.aux_weight
        generator = torch.Generator(device).manual_seed(0)
        model = build_model(config, NUM_CLASSES, IMAGE_SIZE)
        initialize_(model, config.init, generator=torch.Generator().manual_seed(0))
        self.model: DeeplySupervised = model.to(device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        draw = partial(torch.randint, device=device, generator=generator)
        self.stored = draw(256, (NUM_IMAGES, *IMAGE_SIZE, 3), dtype=torch.uint8)
        self.labels = draw(NUM_CLASSES, (NUM_IMAGES,))
        self.indices = draw(NUM_IMAGES, (config.batch_size,), dtype=torch.int32)
        self.flips = draw(2, (config.batch_size,)).bool()
        self.images, self.target = self.augment()
        taps = self.forward()
        self.taps = [tap.detach().requires_grad_() for tap in taps]
        self.tap_gradients = self.heads()[: len(taps)]
        self.backbone = list(self.model.backbone_parameters())
        self.backward = partial(
            torch.autograd.grad, taps, self.backbone, self.tap_gradients, retain_graph=True
        )
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def augment(self) -> tuple[Tensor, Tensor]:
        """Make a batch from stored uint8 images."""
        return augment_batch(
            self.stored,
            self.labels,
            self.indices,
            self.flips,
            (0.5, 0.5, 0.5),
            (0.25, 0.25, 0.25),
            out_dtype=self.resolved.compute_dtype,
            impl=self.resolved.impl,
        )

    def forward(self) -> list[Tensor]:
        """Run the backbone up to the taps."""
        with autocast(self.resolved):
            return self.model.taps(self.images)

    def heads(self) -> tuple[Tensor, ...]:
        """Run all heads and the loss, forward and back to the taps and the heads' parameters."""
        with autocast(self.resolved):
            losses = self.model.loss_from_taps(
                self.taps, self.target, self.aux_weight, impl=self.resolved.impl
            )
        return torch.autograd.grad(losses.loss, [*self.taps, *self.model.heads.parameters()])

    def run(self) -> dict[str, Callable[[], object]]:
        """Return every part as a function."""
        parts = (self.augment, self.forward, self.heads, self.backward, self.optimizer.step)
        return dict(zip(PARTS, parts, strict=True))

    def count(self) -> dict[str, Work]:
        """Count the work of every part."""
        parameters = num_bytes(*self.model.parameters())
        head_parameters = num_bytes(*self.model.heads.parameters())
        tap_bytes = num_bytes(*self.taps)
        image_bytes = self.images.numel() + num_bytes(self.images)
        head_products = sum(
            2 * self.images.shape[0] * head.output_layer.weight.numel() for head in self.model.heads
        )
        with convolution_traffic(self.model, self.images.element_size()) as traffic:
            forward = count_operations(self.forward)
        return {
            "augment": Work(0, image_bytes),
            "forward": Work(forward, traffic["forward"]),
            # Backward multiplies twice per product: by the weight and by the input.
            "heads": Work(3 * head_products, 2 * (tap_bytes + head_parameters)),
            "backward": Work(count_operations(self.backward), traffic["backward"]),
            "optimizer": Work(0, 7 * parameters),
        }


def measure(step: Step, device: torch.device) -> dict[str, float]:
    """Return the median seconds of every part."""
    seconds = {}
    for name, function in step.run().items():
        round_ = prepare_round(function, [()], device, graph=True)
        seconds[name] = float(np.median([round_.time(device) for _ in range(NUM_ROUNDS)]))
    return seconds


def report(config: TrainConfig) -> dict[str, Any]:
    """Count and measure a step of the configuration; return everything as JSON-ready values."""
    resolved = resolve(config)
    device = resolved.device
    with ExitStack() as stack:
        stack.enter_context(float32_precision(resolved))
        stack.enter_context(side_stream(device))
        bandwidth = copy_bandwidth(device)
        rate = matmul_rate(device, resolved.compute_dtype)
        step = Step(config, resolved)
        work = step.count()
        seconds = measure(step, device)
    parts = {
        name: {
            **work[name]._asdict(),
            "floor_seconds": work[name].floor_seconds(rate, bandwidth),
            "seconds": seconds[name],
        }
        for name in PARTS
    }
    return {
        "machine_info": machine_info(device),
        "setting": {"arch": config.arch, "batch_size": config.batch_size, **resolved.to_dict()},
        "copy_bytes_per_second": bandwidth,
        "matmul_operations_per_second": rate,
        "parts": parts,
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield the report as aligned text."""
    info, setting = result["machine_info"], result["setting"]
    bandwidth, rate = result["copy_bytes_per_second"], result["matmul_operations_per_second"]
    where = info["gpu"] or f"{info['cpu_model']}, {info['num_threads']} threads"
    yield f"{where}, torch {info['torch']}, commit {info['commit']}"
    yield " ".join(f"{name}={value}" for name, value in setting.items())
    yield f"copy {bandwidth / 1e9:.1f} GB/s, matrix product {rate / 1e12:.2f} TFLOP/s"
    yield f"{'part':<10} {'GFLOP':>9} {'MB':>9} {'floor ms':>10} {'ms':>10} {'ms / floor':>10}"
    total = dict.fromkeys(("operations", "bytes_moved", "floor_seconds", "seconds"), 0.0)
    for name, part in result["parts"].items():
        yield part_line(name, part)
        total = {key: value + part[key] for key, value in total.items()}
    yield part_line("sum", total)


def part_line(name: str, part: dict[str, float]) -> str:
    """Return a part's line of the table."""
    return (
        f"{name:<10} {part['operations'] / 1e9:>9.3f} {part['bytes_moved'] / 1e6:>9.2f}"
        f" {1e3 * part['floor_seconds']:>10.4f} {1e3 * part['seconds']:>10.4f}"
        f" {part['seconds'] / part['floor_seconds']:>10.1f}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the report of the command line's setting; return 2 on a setting that cannot run."""
    parser = argparse.ArgumentParser(description="Measured time over floor of a training step.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--arch", choices=["densenet_ds", "resnet_ds"], default="densenet_ds")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=["auto", "fp32", "tf32", "bf16", "fp16"])
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    args = parser.parse_args(arguments)
    try:
        result = report(
            TrainConfig(
                device=args.device,
                arch=args.arch,
                batch_size=args.batch_size,
                precision=args.precision or "auto",
                backbone="modules",
            )
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(lines(result)))
    if args.json:
        args.json.write_text(json.dumps(result, indent=4) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
