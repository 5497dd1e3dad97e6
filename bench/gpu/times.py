"""Stages that time: alone on the card, side by side in interleaved rounds, a line a round."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import torch

from gpu.configs import CONFIGS, HandLoopIn, make_training, plain_script, synthetic_images
from gpu.findings import Call
from lion_fast.kernels.launch import Launch
from support.harness import interleaved_rounds, no_garbage_collection, side_stream
from support.training import Training

Contestants = Mapping[str, tuple[Callable[[], object], int]]
"""name -> (a call, steps in it)"""
DEVICE = torch.device("cuda", 0)
NUM_STEPS = 60_000
MAX_ROUNDS = 100


def time_by_turns(
    call: Call, stage: str, contestants: Contestants, seconds: float, *, graph: bool = False
) -> None:
    """Write milliseconds a step of every contestant, a line a round, until the seconds are over."""
    rounds = 2 if call.rehearse else MAX_ROUNDS
    # A round of each lasts as long as lets some sixty rounds fit.
    least = 0.0 if call.rehearse else min(0.05, seconds / (60 * len(contestants)))
    functions = {name: run for name, (run, _) in contestants.items()}
    source = interleaved_rounds(functions, DEVICE, graph=graph, min_seconds=least)
    end = time.monotonic() + seconds
    with no_garbage_collection():
        for number in range(rounds):
            row = next(source)
            steps = {name: 1e3 * row[name] / contestants[name][1] for name in row}
            call.say(stage, round=number, round_ms={k: round(v, 6) for k, v in steps.items()})
            if time.monotonic() > end:
                break


def heads(call: Call, seconds: float) -> None:
    """Time pooling, heads and losses, forward and backward, against eager code, in one graph."""
    from bench_heads import make_inputs, make_loss, step

    for network in ("densenet", "resnet"):
        inputs = make_inputs(network, 128, torch.bfloat16, DEVICE)
        with side_stream(DEVICE):
            contestants = {
                f"{network} heads, {impl}": (partial(step(make_loss(impl), "both"), *inputs), 1)
                for impl in ("triton", "eager")
            }
            time_by_turns(call, f"heads {network}", contestants, seconds / 4, graph=True)


def steps(call: Call, seconds: float) -> None:
    """Time every configuration's step, and an expert's loops; one that fails is left out."""
    images, started = synthetic_images(call), time.monotonic()
    contestants: dict[str, tuple[Callable[[], object], int]] = {}

    def enter(name: str, make: Callable[[], Any]) -> None:
        start = time.monotonic()
        try:
            made = make()
            made()
            torch.cuda.synchronize()
        except Exception as error:  # whatever it is, the others are still to be timed
            call.say("steps", config=name, error=f"{type(error).__name__}: {str(error)[-800:]}")
            return
        contestants[name] = made, made.steps_per_call
        took = round(time.monotonic() - start, 1)
        precision = made.resolved.precision if hasattr(made, "resolved") else "bf16"
        call.say("steps", config=name, setup_seconds=took, precision=precision)

    for name in CONFIGS:
        enter(name, partial(make_training, call, name, images, NUM_STEPS))
    enter("hand_loop", partial(HandLoopIn, call, images))
    enter("stock", partial(HandLoopIn, call, images, mode="reduce-overhead"))
    left = max(10.0, seconds - (time.monotonic() - started) - 5)
    time_by_turns(call, "steps", contestants, left)


def rivals(call: Call, seconds: float) -> None:
    """Time a plain script, and the same through max-autotune, against the fused backbone's step."""
    images, started = synthetic_images(call), time.monotonic()
    workers = 0 if call.rehearse else 8
    with ExitStack() as stack:
        ours = stack.enter_context(make_training(call, "fused", images, NUM_STEPS))
        contestants: dict[str, tuple[Callable[[], object], int]] = {
            "fused": (ours, ours.steps_per_call)
        }
        for name, mode in (("plain", None), ("plain_max_autotune", "max-autotune")):
            start = time.monotonic()
            script = stack.enter_context(closing(plain_script(call, images, workers, mode)))
            script()
            torch.cuda.synchronize()
            contestants[name] = script, 1 if call.rehearse else 64
            call.say("rivals", config=name, setup_seconds=round(time.monotonic() - start, 1))
            left = seconds - (time.monotonic() - started) - 5
            # What has been set up is timed at once: the next one may not come to its end.
            time_by_turns(call, f"rivals with {name}", contestants, min(20.0, max(5.0, left)))


def options(call: Call, seconds: float) -> None:
    """Time the fused backbone's launches of a step with each launch option, and without."""
    from bench_backbone import make_launches

    from lion_fast.kernels.dense.aot import DENSENET
    from lion_fast.kernels.dense.launch_backward import run_beside
    from lion_fast.kernels.dense.plan import SHIPPED, Options

    beside, images = torch.cuda.Stream(), torch.empty(0, device=DEVICE)

    def step(launches: Sequence[Launch], chosen: Options) -> None:
        if chosen.weights_beside:
            run_beside(launches, images, beside)
        else:
            for launch in launches:
                launch.run(images)

    contestants: dict[str, tuple[Callable[[], object], int]] = {}
    gradients: dict[str, torch.Tensor] = {}
    with side_stream(DEVICE):
        for name in ("shipped", *Options._fields):
            torch.manual_seed(0)  # the same images and weights
            chosen = SHIPPED if name == "shipped" else SHIPPED._replace(**{name: True})
            try:
                launches = make_launches(DENSENET, torch.bfloat16, DEVICE, chosen)
                contestants[name] = partial(step, list(launches.values()), chosen), 1
                contestants[name][0]()
            except Exception as error:  # whatever it is, the others are still to be timed
                contestants.pop(name, None)
                text = f"{type(error).__name__}: {str(error)[-800:]}"
                call.say("options", config=name, error=text)
                continue
            gradients[name] = launches["reduce"].args["grads"].clone()
            shipped = gradients.get("shipped", gradients[name])
            differs = (gradients[name] - shipped).norm() / shipped.norm()
            call.say("options", config=name, gradients_differ=differs.item())
        time_by_turns(call, "options", contestants, seconds - 15, graph=True)


def profile(call: Call, seconds: float) -> None:
    """Write every kernel's microseconds in one replay: where a step's time goes."""
    images = synthetic_images(call)
    for name in ("fused", "fast_fused", "graph"):
        with make_training(call, name, images, 256) as training:
            profile_replay(call, name, training)


def profile_replay(call: Call, name: str, training: Training) -> None:
    """Write every kernel's microseconds in one call of a training."""
    from torch.profiler import ProfilerActivity, profile as profiled

    for _ in range(3):
        training()
    torch.cuda.synchronize()
    with profiled(activities=[ProfilerActivity.CUDA]) as profiler:
        training()
        torch.cuda.synchronize()
    on_card = torch.autograd.DeviceType.CUDA
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events()
        if event.device_type == on_card
    )
    if spans:
        call.say("profile", config=name, **_summary(spans, training.steps_per_call))
    else:
        call.say("profile", config=name, problem="the profiler saw no kernel")


def _summary(spans: list[tuple[float, float, str]], steps: int) -> dict[str, Any]:
    """Return launches and microseconds a step, by kernel, and the last step launch by launch."""
    totals: dict[str, tuple[int, float]] = {}
    for start, end, kernel in spans:
        count, busy = totals.get(kernel, (0, 0.0))
        totals[kernel] = count + 1, busy + end - start
    last = spans[len(spans) // steps * (steps - 1) :]
    return {
        "launches": len(spans) / steps,
        "busy_us": sum(end - start for start, end, _ in spans) / steps,
        "wall_us": (spans[-1][1] - spans[0][0]) / steps,
        "kernels": [
            [kernel[:70], count / steps, round(busy / steps, 2)]
            for kernel, (count, busy) in sorted(totals.items(), key=lambda item: -item[1][1])
        ],
        "timeline": [
            [round(start - last[0][0], 1), round(end - start, 1), kernel[:60]]
            for start, end, kernel in last
        ],
    }


def overhead(call: Call, seconds: float) -> None:
    """Time a step of LION-DG against one of He-init, from the first step on, in one training."""
    from bench_overhead import FirstSteps

    from lion_fast.config import Init, TrainConfig
    from support.training import new_step

    images = synthetic_images(call)
    inits: tuple[Init, Init] = ("lion_dg", "he")
    for arch, prefix in (("densenet_ds", ""), ("resnet_ds", "resnet ")):

        def config(init: Init, arch: Any = arch) -> TrainConfig:
            return TrainConfig(device="cuda", engine="graph", arch=arch, init=init)

        with Training(config("he"), images, num_steps=64) as training:
            contestants: dict[str, tuple[Callable[[], object], int]] = {}
            for init in inits:
                model = new_step(config(init), images).model
                weights: list[torch.Tensor] = list(model.parameters())
                starts = FirstSteps(training, weights)
                contestants[prefix + init] = starts, training.steps_per_call
            time_by_turns(call, f"overhead {arch}", contestants, seconds / 3)
