"""Stages of whole runs and studies, and benchmarks of the suite, each with an end of its own."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu.findings import Call
from lion_fast.config import TrainConfig
from lion_fast.presets import PRESETS
from support.checkout import ROOT

SEEDS = (42, 123, 456, *range(1001, 1008))
"""The paper's three, then seven of no other use."""


def recipes(base: dict[str, Any]) -> dict[str, TrainConfig]:
    """Return what is run to 70 % by turns, in the order of what is most worth knowing.

    Of a rehearsal, whose base sets max_steps, every size takes a few steps.
    """
    paper, v1 = replace(PRESETS["paper"], **base), replace(PRESETS["fast-v1"], **base)
    sizes: dict[str, Any] = {"resolutions": "16:4,24:4"} if "max_steps" in base else {}
    fast = replace(PRESETS["fast"], **base, **sizes)
    # Named as earlier cards' findings are, in which fast is what fast-v1 is now.
    return {
        "fast v2 fused": replace(fast, backbone="fused"),
        "fast fused": replace(v1, backbone="fused"),
        "paper fused he": replace(paper, backbone="fused", init="he"),
        "paper fused lion_dg": replace(paper, backbone="fused", init="lion_dg"),
        "resnet he": replace(paper, arch="resnet_ds", init="he"),
        "resnet lion_dg": replace(paper, arch="resnet_ds", init="lion_dg"),
    }


def runs(call: Call, seconds: float) -> None:
    """Run to 70 % in one process: recipes by turns, seed by seed, each seed a full comparison."""
    run_by_turns(call, "runs", recipes)


def run_by_turns(
    call: Call, stage: str, recipes: Callable[[dict[str, Any]], dict[str, TrainConfig]]
) -> None:
    """Run recipes to 70 % until the stage's time is over. recipes: from what all have in common."""
    from lion_fast.training import train
    from lion_fast.training.step.reuse import StepCache

    cache = StepCache(capacity=8)
    base: dict[str, Any] = {
        "data_dir": call.data_dir, "out": Path(tempfile.mkdtemp(prefix="card_runs_")),
        "device": "cuda", "stop_at_target": True, "checkpoint_every": 0,
        **({"max_steps": 16} if call.rehearse else {}),
    }  # fmt: skip
    for seed in SEEDS[:1] if call.rehearse else SEEDS:
        for name, config in recipes(base).items():
            try:
                found = train(replace(config, seed=seed), reuse=cache)
            except Exception as error:  # whatever it is, the other recipes are still to be run
                call.say(stage, recipe=name, seed=seed, error=f"{type(error).__name__}: {error}")
                continue
            call.say(
                stage, recipe=name, init=config.init, seed=seed, steps=found.steps_to_target,
                seconds=found.seconds_to_target, train_seconds=found.train_seconds,
                setup=found.setup_seconds, ms=found.step_milliseconds_median,
                val=found.val_accuracy, resolved=found.resolved,
            )  # fmt: skip


def _suite(call: Call, stage: str) -> None:
    """Run a stage of bench/gpu/suite.py; what it measured by its limit lies beside the findings."""
    command = [sys.executable, str(ROOT / "bench/gpu/suite.py"), "--stage", stage]
    command += ["--out", str(call.out)]
    for flag, value in (("--data-dir", call.data_dir), ("--commit", call.commit)):
        command += [flag, str(value)] if value else []
    done = subprocess.run([*command, "--rehearse"] if call.rehearse else command, cwd=ROOT)
    call.say(stage, code=done.returncode)


def launches(call: Call, seconds: float) -> None:
    """Time each launch of the fused backbone alone."""
    _suite(call, "backbone")


def table1(call: Call, seconds: float) -> None:
    """Run the paper's table 1 as a study, and report on it."""
    _suite(call, "study")


def loaders(call: Call, seconds: float) -> None:
    """Time the loaders, DALI among them where it is installed."""
    _suite(call, "loaders")


def batches(call: Call, seconds: float) -> None:
    """Time steps of every engine, loader, precision and batch size."""
    _suite(call, "step")
