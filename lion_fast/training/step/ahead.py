"""Kernels compiled ahead of the first step, on all cores, where a step launches many of them."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from lion_fast.data.batches import Loader
from lion_fast.kernels.ahead import compile_ahead, missing_cases, recorded
from lion_fast.training.machine.resolve import Resolved
from lion_fast.training.step.engine import rehearse
from lion_fast.training.step.history import row_width
from lion_fast.training.step.step import TrainStep

# Fewer are compiled sooner one by one: the helper imports torch first.
_LEAST_CASES = 8


def prepare_kernels(
    step: TrainStep,
    loader: Loader,
    resolved: Resolved,
    stage: Callable[[str], AbstractContextManager[None]],
) -> list[str]:
    """Compile what a step of the fused backbone launches, but for what an earlier run has compiled.

    stage: shows a text while it lasts, as `Console.stage`. Leaves training as it was, and the
    loader at another step. Returns what a run should say: nothing where all went well.
    """
    if resolved.device.type != "cuda" or resolved.backbone != "fused" or resolved.impl != "triton":
        return []
    # Ranks would compile the same side by side, and other loaders are slow to begin again.
    if step.sharing is not None or not loader.walks_on_device:
        return []
    row = torch.zeros(row_width(1 + len(step.model.heads.aux)), device=resolved.device)
    loader.seek(0)
    # Launches are the same in eager code, which need not be compiled for it.
    with recorded() as launches, torch.compiler.set_stance("force_eager"):
        rehearse(step, loader, row, num_steps=1)
    major, minor = torch.cuda.get_device_capability(resolved.device)
    cases = missing_cases(launches, 10 * major + minor)
    if len(cases) < _LEAST_CASES:
        return []
    workers = max(1, len(os.sched_getaffinity(0)))
    with stage(f"compiling {len(cases)} kernels on {workers} cores"):
        problem = compile_ahead(cases, 10 * major + minor, workers)
    if problem is None:
        return []
    return [f"kernels could not be compiled ahead, so each is at its first launch: {problem}"]
