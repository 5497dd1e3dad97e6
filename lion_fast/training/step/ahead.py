"""Kernels compiled before the first step, on all cores, where a step launches many or big ones."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from lion_fast.data.batches import Loader
from lion_fast.kernels import persistent_compilation
from lion_fast.kernels.ahead import compile_ahead, missing_cases, recorded
from lion_fast.models import DenseNetDS
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
    image_size: tuple[int, int],
    sides: Sequence[int | None],
    stage: Callable[[str], AbstractContextManager[None]],
) -> list[str]:
    """Compile what a step launches that an earlier run has not compiled.

    image_size: (height, width). sides: of the images to come, as in `Loader.next`. stage: shows a
    text while it lasts, as `Console.stage`. Leaves training as it was, and the loader at another
    step. Returns what a run should say: nothing where all went well.
    """
    if resolved.device.type != "cuda" or resolved.impl != "triton":
        return []
    if resolved.backbone == "persistent":
        shown = [side for side in sides if side not in resolved.modules_at]
        sizes = [image_size if side is None else (side, side) for side in shown]
        _prepare_persistent(step, loader, resolved, sizes, stage)
    if resolved.backbone != "fused":
        return []
    # Ranks would compile the same side by side, and other loaders are slow to begin again.
    if step.sharing is not None or not loader.walks_on_device:
        return []
    row = torch.zeros(row_width(1 + len(step.model.heads.aux)), device=resolved.device)
    loader.seek(0)
    # Launches are the same in eager code, which need not be compiled for it.
    with recorded() as launches, torch.compiler.set_stance("force_eager"):
        for side in sides:
            if side not in resolved.modules_at:
                rehearse(step, loader, row, num_steps=1, side=side)
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


def _prepare_persistent(
    step: TrainStep,
    loader: Loader,
    resolved: Resolved,
    image_sizes: Sequence[tuple[int, int]],
    stage: Callable[[str], AbstractContextManager[None]],
) -> None:
    model = step.model
    assert isinstance(model, DenseNetDS)
    network = model.stem.out_channels, model.growth_rate, model.block_layers
    for image_size in image_sizes:
        sizes = (loader.plan.local_batch_size, *image_size, *network)
        work = persistent_compilation(resolved.device, sizes, resolved.compute_dtype)
        if work is not None:
            with stage("compiling the persistent backbone's kernels"):
                work()
