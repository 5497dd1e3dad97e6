"""What is timed on a card, by name: configurations of the trainer, and loops of other people."""

from collections.abc import Sequence
from typing import Any

import torch

from gpu.findings import Call
from lion_fast.config import TrainConfig
from lion_fast.data.images import ImageSet
from lion_fast.presets import PRESETS
from support.rivals import HandLoop, PlainScript
from support.training import Training, new_step

_MUON: dict[str, Any] = {
    name: getattr(PRESETS["fast"], name)
    for name in ("optimizer", "muon_lr", "weight_decay", "schedule", "lr_cooldown_steps")
}
CONFIGS: dict[str, dict[str, Any]] = {
    "fused": {"engine": "graph", "backbone": "fused"},
    "fast_fused": {"engine": "graph", "backbone": "fused", **_MUON},
    "graph": {"engine": "graph", "backbone": "modules"},
    "graph_eager": {"engine": "graph", "backbone": "modules", "graph_compile": False},
    "eager": {"engine": "eager", "backbone": "modules"},
    "resnet": {"engine": "graph", "arch": "resnet_ds"},
}
"""name, as report/card_page.py has it in words -> fields of a TrainConfig"""
HAND_STEPS, PLAIN_STEPS = 8, 64


def config_of(name: str) -> TrainConfig:
    """Return the configuration, on the current GPU over resident images."""
    return TrainConfig(device="cuda", loader="resident", **CONFIGS[name])


def synthetic_images(call: Call) -> ImageSet:
    """Return noise in CIFAR-10's shape, fewer images of it in a rehearsal."""
    generator = torch.Generator().manual_seed(0)

    def split(num: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.randint(256, (num, 32, 32, 3), dtype=torch.uint8, generator=generator)
        return images, torch.randint(10, (num,), generator=generator)

    sizes = (2_048, 256) if call.rehearse else (50_000, 10_000)
    names, mean, std = tuple(map(str, range(10))), (0.5,) * 3, (0.289,) * 3
    return ImageSet("synthetic", *split(sizes[0]), *split(sizes[1]), names, mean, std)


def make_training(call: Call, name: str, images: ImageSet, num_steps: int) -> Training:
    """Return the trainer's steps, warmed up."""
    return Training(config_of(name), images, num_steps=4_096 if call.rehearse else num_steps)


def plain_script(
    call: Call, images: ImageSet, num_workers: int, compile_mode: str | None = None
) -> PlainScript:
    """Return what most people would write, 64 steps a call; to be closed."""
    config = TrainConfig(
        device="cuda", engine="eager", precision="fp32", backbone="modules", num_workers=num_workers
    )
    return PlainScript(
        new_step(config, images).model,
        images,
        config,
        torch.device("cuda"),
        steps_per_call=1 if call.rehearse or not num_workers else PLAIN_STEPS,
        compile_mode=compile_mode,
    )


class HandLoopIn:
    """The hand-written loop under autocast over resident batches, as an expert has it.

    Warmed up by a call. mode: put the network through torch.compile in that mode.
    """

    def __init__(self, call: Call, images: ImageSet, mode: str | None = None) -> None:
        config = TrainConfig(device="cuda", engine="eager", backbone="modules")
        with Training(config, images, num_steps=64) as training:
            batches: Sequence[Any] = training.first_batches(HAND_STEPS)
        model: Any = new_step(config, images).model
        compiled: Any = torch.compile(model, mode=mode) if mode else model
        steps = 1 if call.rehearse else HAND_STEPS
        self.steps_per_call = steps
        self._loop = HandLoop(compiled, batches, config, steps)
        self()

    def __call__(self) -> None:
        """Take `steps_per_call` steps."""
        with torch.autocast("cuda", dtype=torch.bfloat16):
            self._loop()
