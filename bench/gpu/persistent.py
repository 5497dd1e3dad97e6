"""Stage `persistent`: the first questions to a GPU that runs the backbone in two launches.

In this order, for each needs those before: are its values right and its bits the same; how long is
an exchange between programs; how long are networks of one layer a block more and more; does it live
beside other kernels, ten thousand times; then a step by turns with the fused one, what a replay
consists of, and runs to 70 %. A configuration of its own, in no other stage: who hangs, hangs here.
"""

import ctypes
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu.configs import config_of, synthetic_images
from gpu.findings import Call
from gpu.runs import recipes, run_by_turns
from gpu.times import DEVICE, NUM_STEPS, profile_replay, time_by_turns
from gpu.values import compare_backbone
from lion_fast.config import TrainConfig
from support.harness import side_stream
from support.training import Training

EXCHANGE = Path(__file__).with_name("exchange.cu")
ROUNDS = 21
"""Layers, transitions and the last tap of the paper's network: how often words are exchanged."""
REPLAYS = 10_000
BATCH = 128


def persistent(call: Call, seconds: float) -> None:
    """Ask them all; one that fails does not keep the others."""
    for ask in (_values, _exchange, _depths, _beside, _steps, _runs):
        try:
            ask(call, seconds / 6)
        except Exception as error:  # whatever it is, the others are still to be asked
            found = f"{type(error).__name__}: {str(error)[-1500:]}"
            call.say("persistent", asked=ask.__name__.strip("_"), error=found)
    call.say(
        "persistent", left_out="why warps wait",
        why="ncu reads it around a process of its own: ncu -k regex:dense_persistent --set full",
    )  # fmt: skip


def _values(call: Call, seconds: float) -> None:
    """At the run's own size, errors against fp64 beside autocast's, and bits, 40 times."""

    def backbone(model: Any, images: Tensor, layers: int) -> list[Tensor]:
        from dense_runs import parameters_of

        from lion_fast.kernels import persistent_backbone

        return persistent_backbone(images, *parameters_of(model), block_layers=layers)

    compare_backbone(call, "persistent", backbone)


class Rounds(ctypes.Structure):
    """See exchange.cu."""

    _fields_ = [("words", ctypes.c_void_p), ("out", ctypes.c_void_p), ("rounds", ctypes.c_int)]


def _exchange(call: Call, seconds: float) -> None:
    """Time one round and as many as a forward has: the difference is what a round takes."""
    from lion_fast.kernels.persistent.compile import compiled_file
    from lion_fast.kernels.persistent.driver import function_of, launch

    cubin = compiled_file(str(EXCHANGE), {"HALF_IS_FP16": 0}, torch.cuda.get_device_capability())
    function = function_of(cubin, "dense_persistent_rounds", 0, DEVICE.index)
    words = torch.zeros(ROUNDS, BATCH, dtype=torch.int64, device=DEVICE)
    out = torch.empty(BATCH, device=DEVICE)

    def make(rounds: int) -> Callable[[], None]:
        arguments = Rounds(words.data_ptr(), out.data_ptr(), rounds)

        def run() -> None:
            words.zero_()
            launch(function, arguments, BATCH, 512, 0, cooperative=True, device=DEVICE)

        return run

    with side_stream(DEVICE):
        make(ROUNDS)()
        torch.cuda.synchronize()
        right = bool((out == (BATCH - 1) / 2).all())
        call.say("persistent", what="exchange", right=right, of_programs=BATCH)
        contestants = {f"{rounds} rounds": (make(rounds), 1) for rounds in (1, ROUNDS)}
        time_by_turns(call, "persistent exchange", contestants, seconds / 2, graph=True)


def _step_of(layers: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Return the forward, and forward and backward, of a network of the paper's widths."""
    from lion_fast.models import densenet_ds

    model: Any = densenet_ds(block_layers=layers).to(DEVICE)
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, 32, 32, device=DEVICE, dtype=torch.bfloat16)
    images = images.contiguous(memory_format=torch.channels_last)
    parameters = list(model.backbone_parameters())

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return model.pooled_taps(images, persistent=True)

    def both() -> list[Tensor]:
        pooled = model.pooled_taps(images, persistent=True)
        return list(torch.autograd.grad(pooled, parameters, [torch.ones_like(p) for p in pooled]))

    return {"forward": forward, "both": both}


def _depths(call: Call, seconds: float) -> None:
    """Time networks of fewer and more layers a block: what a layer takes is the difference."""
    depths = (6,) if call.rehearse else (1, 2, 4, 6)
    with side_stream(DEVICE):
        contestants = {
            f"{name}, {layers} layers": (run, 1)
            for layers in depths
            for name, run in _step_of(layers).items()
        }
        time_by_turns(call, "persistent layers", contestants, seconds / 2, graph=True)


def _beside(call: Call, seconds: float) -> None:
    """Replay forward and backward beside another stream's products, and compare the bits."""
    run = _step_of(6)["both"]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    noise = torch.randn(1024, 1024, device=DEVICE)
    graph.replay()
    first = [grad.clone() for grad in found]
    replays, differing = 3 if call.rehearse else REPLAYS, 0
    every = math.ceil(replays / 10)
    for replay in range(replays):
        with torch.cuda.stream(side):
            noise @ noise
        graph.replay()
        if replay % every == every - 1:  # in between nothing waits for the device
            differing += not all(map(torch.equal, first, found))
    torch.cuda.synchronize()
    call.say("persistent", what="beside", replays=replays, looks_that_differ=differing)


def _config() -> TrainConfig:
    return replace(config_of("fused"), backbone="persistent")


def _steps(call: Call, seconds: float) -> None:
    """Time whole steps by turns with the fused backbone's, then profile one replay."""
    images = synthetic_images(call)
    num_steps = 4_096 if call.rehearse else NUM_STEPS
    configs = {"fused": config_of("fused"), "persistent": _config()}
    with (
        Training(configs["fused"], images, num_steps=num_steps) as fused,
        Training(configs["persistent"], images, num_steps=num_steps) as ours,
    ):
        contestants: dict[str, tuple[Callable[[], object], int]] = {
            "fused": (fused, fused.steps_per_call), "persistent": (ours, ours.steps_per_call)
        }  # fmt: skip
        time_by_turns(call, "persistent steps", contestants, seconds)
        profile_replay(call, "persistent", ours)


def _runs(call: Call, seconds: float) -> None:
    """Run to 70 % by turns with the fused backbone, until the stage's time is over.

    That one under a name of its own: stage `runs` has the same seeds of it.
    """
    if call.data_dir is None:
        call.say("persistent", left_out="runs", why="they need real images: --data-dir")
        return

    def pairs(base: dict[str, Any]) -> dict[str, TrainConfig]:
        fused = recipes(base)["fast fused"]
        ours = replace(fused, backbone="persistent")
        return {"fast fused beside": fused, "fast persistent": ours}

    run_by_turns(call, "persistent runs", pairs)
