"""DenseNet-DS's fused backbone against its modules: a whole step, and launch by launch.

The first test decides where `backbone auto` takes the op: both as captured graphs of compiled
steps, side by side. The others time each launch of the op alone, in a graph that repeats it, so
that what it reads lies in L2 where it fits; beside what a model predicted before any GPU had run
them. A
prediction is 2.5 us for a dependent launch in a graph, 1 us for its prologue, and its bytes
(`support/dense_traffic.py`) at 80 % of an H100's L2, taken as 5.5 TB/s. It counts no instruction,
so a launch that issues more than it moves takes longer.

On a CPU, `TRITON_INTERPRET=1 pytest bench/bench_backbone.py --benchmark-disable` runs tiny sizes
once.
"""

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch

from lion_fast.config import TrainConfig
from lion_fast.kernels.dense.aot import DENSENET, step_names
from lion_fast.kernels.dense.launch import (
    empty_forward,
    forward_launches,
    pack_launch,
    running_statistics_launch,
)
from lion_fast.kernels.dense.launch_backward import backward_launches, gradient_size
from lion_fast.kernels.dense.plan import SHIPPED, Options, Plan
from lion_fast.kernels.launch import Launch
from support.dense_traffic import launch_bytes
from support.training import Training

BENCHMARK = {
    "title": "Fused backbone",
    "order": 80,
    "stage": "backbone",
    "ours": ("fused", "triton"),
}

TINY = Plan(batch=2, height=16, width=16, stem_channels=24, growth_rate=8, block_layers=1)
_LAUNCH_SECONDS, _PROLOGUE_SECONDS = 2.5e-6, 1.0e-6
_L2_BYTES_PER_SECOND = 0.8 * 5.5e12
# Reckoned to keep the stage under five minutes: 49 launches of a second each, and two steps.
NUM_STEPS, ROUNDS = 2_500_000 // 128, 20


def predicted_seconds(num_bytes: int) -> float:
    """Return the model's prediction for one launch. Nothing here is measured."""
    return _LAUNCH_SECONDS + _PROLOGUE_SECONDS + num_bytes / _L2_BYTES_PER_SECOND


def needs_kernels(bench: Any) -> None:
    """Skip where the kernels cannot run, or would be timed in the interpreter."""
    if bench.device.type == "cuda":
        if torch.cuda.get_device_capability(bench.device) < (8, 0):
            pytest.skip("needs a GPU of compute capability 8.0 or newer")
    elif not (bench.quick and os.environ.get("TRITON_INTERPRET") == "1"):
        pytest.skip("needs a CUDA GPU, or TRITON_INTERPRET=1 to run once and untimed")


def test_step_fused_against_modules(bench, image_set) -> None:
    """Time whole steps of both; record the modules' time over the fused backbone's."""
    if bench.device.type != "cuda":
        pytest.skip("needs a CUDA GPU: engine graph")
    needs_kernels(bench)
    fused = TrainConfig(
        device=str(bench.device), engine="graph", backbone="fused", **bench.fewer_layers
    )
    modules = replace(fused, backbone="modules")
    with ExitStack() as stack:
        trainings = {
            config.backbone: stack.enter_context(
                Training(config, image_set, num_steps=64 if bench.quick else NUM_STEPS)
            )
            for config in (fused, modules)
        }
        first = trainings["fused"]
        samples = bench.compare(
            trainings, rounds=ROUNDS, op="train_step", impl="fused",
            shape=f"B{fused.batch_size}x3x32x32", dtype=first.resolved.precision, mode="train",
        )  # fmt: skip
        bench.record_ratio(samples, "modules", "fused")
        dense = sum(map(predicted_seconds, launch_bytes(DENSENET, 2).values()))
        measured = samples.median("fused") / first.steps_per_call
        bench.note(steps_per_call=first.steps_per_call, step_milliseconds=1e3 * measured)
        bench.note(predicted_backbone_milliseconds=1e3 * dense)
        print(f"step {1e3 * measured:.3f} ms; backbone predicted {1e3 * dense:.3f} ms")


def make_launches(
    plan: Plan, dtype: torch.dtype, device: torch.device, options: Options = SHIPPED
) -> dict[str, Launch]:
    """Return the launches of a step by name, in order, on buffers that the earlier ones filled."""

    def random(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, device=device)

    images = random(plan.batch, 3, plan.height, plan.width).to(
        dtype, memory_format=torch.channels_last
    )
    convs = [random(*s).to(memory_format=torch.channels_last) for s in plan.conv_shapes]
    norms = {
        name: [1 + random(channels) for channels in plan.norm_channels]
        for name in ("gammas", "betas", "means", "variances")
    }
    out = empty_forward(plan, images)
    d_pooled = [random(plan.batch, block.channels) for block in plan.blocks]
    grads = torch.empty(gradient_size(plan), device=device)
    launches = [
        pack_launch(plan, out, convs, norms["gammas"], norms["betas"], True),
        *forward_launches(plan, out, images, 1e-5, options),
        running_statistics_launch(plan, out.statistics, norms["means"], norms["variances"], 0.1),
        *backward_launches(plan, grads, d_pooled, images, out, 1e-5, True, options),
    ]
    for launch in launches:
        launch.run(device_of=images)
    return dict(zip(step_names(plan.block_layers), launches, strict=True))


@pytest.fixture(scope="module")
def launches(device: torch.device) -> dict[str, Launch]:
    """Return the launches that all tests of this file time; each may run any number of times."""
    on_gpu = device.type == "cuda"
    return make_launches(
        DENSENET if on_gpu else TINY, torch.bfloat16 if on_gpu else torch.float32, device
    )


@pytest.mark.parametrize("name", step_names(DENSENET.block_layers))
def test_launch(bench, request, name) -> None:
    """Time one launch, many times in one graph, beside its prediction."""
    needs_kernels(bench)
    launches = request.getfixturevalue("launches")
    if name not in launches:
        pytest.skip("of a layer that the tiny network has not")
    on_gpu = bench.device.type == "cuda"
    plan = DENSENET if on_gpu else TINY
    num_bytes = launch_bytes(plan, 2 if on_gpu else 4)[name]
    launch, like = launches[name], torch.empty(0, device=bench.device)
    predicted = predicted_seconds(num_bytes)
    bench.note(predicted_microseconds=1e6 * predicted)
    seconds = bench.time(
        lambda: launch.run(device_of=like), graph=True, op=f"dense_backbone {name}", impl="triton",
        shape=f"B{plan.batch}x3x{plan.height}x{plan.width}",
        dtype="bfloat16" if on_gpu else "float32", mode="train", bytes_moved=num_bytes,
    )  # fmt: skip
    if seconds is not None:
        print(f"{name}: measured {1e6 * seconds:.1f} us, predicted {1e6 * predicted:.1f} us")
