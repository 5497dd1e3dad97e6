"""AOT_CASES of dense_backbone: every launch of a training step of this project's network."""

import torch

from ..aot_case import AotCase, case_of
from ..launch import Launch
from .launch import empty_forward, forward_launches, pack_launch, running_statistics_launch
from .launch_backward import backward_launches, gradient_size
from .plan import NUM_BLOCKS, Plan

DENSENET = Plan(
    batch=128, height=32, width=32, stem_channels=24, growth_rate=8, block_layers=6
)  # fmt: skip
_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def step_launches(plan: Plan, dtype: torch.dtype) -> dict[str, Launch]:
    """Return the launches of a whole step in order, by name, from tensors without data."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    images = torch.empty(
        (plan.batch, 3, plan.height, plan.width), dtype=dtype, device="meta"
    ).to(memory_format=torch.channels_last)  # fmt: skip
    convs = [empty(*shape) for shape in plan.conv_shapes]
    norms = [empty(channels) for channels in plan.norm_channels]
    out = empty_forward(plan, images)
    pooled = [empty(plan.batch, sum(b.channels for b in plan.blocks))] * NUM_BLOCKS
    grads = empty(gradient_size(plan))
    launches = [
        pack_launch(plan, out, convs, norms, norms, True),
        *forward_launches(plan, out, images, 1e-5),
        running_statistics_launch(plan, out.statistics, norms, norms, 0.1),
        *backward_launches(plan, grads, pooled, images, out, 1e-5, True),
    ]
    return dict(zip(step_names(plan.block_layers), launches, strict=True))


def step_cases(plan: Plan, dtype: torch.dtype) -> list[AotCase]:
    """Return what a whole step launches, in order."""
    head = f"dense {_NAMES[dtype]}"
    launches = step_launches(plan, dtype)
    cases = [case_of(f"{head} {name}", launch) for name, launch in launches.items()]
    # Before 8.0 products would leave the tensor cores: `dense_obstacle` refuses it.
    return [case._replace(min_capability=80) for case in cases]


def step_names(layers: int) -> list[str]:
    """Return the names of the launches of a step, in order."""
    names = ["pack"]
    for block in range(1, NUM_BLOCKS + 1):
        names.append("stem" if block == 1 else f"transition {block - 1}")
        names += [f"block {block} layer {u}" for u in range(layers)]
    names += ["taps", "running statistics"]
    for block in range(NUM_BLOCKS, 0, -1):
        names += [f"block {block} group {u} backward" for u in reversed(range(layers))]
        names += [f"block {block} input backward", f"block {block} weights backward"]
    return [*names, "reduce"]


def _shipped() -> list[AotCase]:
    """Return every launch in bf16, and in fp16 the widest of each kernel."""
    widest = ("stem", "layer 5", "transition 1", "block 1 input", "block 2 input", "2 weights")
    half = step_cases(DENSENET, torch.float16)
    return [
        *step_cases(DENSENET, torch.bfloat16),
        *(case for case in half if any(name in case.name for name in widest)),
    ]


AOT_CASES = _shipped()
