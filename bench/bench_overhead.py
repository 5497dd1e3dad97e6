"""He-init against LION-DG: the same step time, and the same peak memory to the byte.

That the step is the same work (parameters, optimizer state, compiled code, operators in order) is
proven in `tests/test_overhead.py`; `bench_init.py` has the price of the initialisation itself.
The time fails the bench when its interval does not contain 1.00 or leaves the stated bound.
"""

import gc
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from lion_fast.config import Init, TrainConfig
from lion_fast.data.images import ImageSet
from support.harness import interleaved, synchronize
from support.training import Training, new_step

BENCHMARK = {
    "title": "Overhead of LION-DG",
    "order": 20,
    "stage": "overhead",
    "ours": ("lion_dg",),
}

INITS: tuple[Init, Init] = ("lion_dg", "he")
BOUND = {"cuda": 0.01, "cpu": 0.03}
TINY: dict[str, Any] = {"growth_rate": 2, "block_layers": 1, "base_width": 8, "batch_size": 8}
CPU_BATCH_SIZE = {"densenet_ds": 128, "resnet_ds": 16}  # a step of either takes half a second
NUM_STEPS = 64  # each round rewinds


class FirstSteps:
    """The first steps of a training from given weights, as often as it is called.

    Every initialisation runs in one and the same training, so that neither the place of tensors in
    memory nor the choice of an algorithm can tell two apart, and from its first step, where LION-DG
    differs most: the heads leave zero with the first update.
    """

    def __init__(self, training: Training, weights: list[Tensor]) -> None:
        self.training, self.weights = training, weights
        step = training.step
        self._parameters: list[Tensor] = list(step.model.parameters())
        self._optimizer_state = [
            tensor for entries in step.optimizer.state.values() for tensor in entries.values()
        ]

    @torch.no_grad()
    def __call__(self) -> None:
        """Restore weights, optimizer and loader; enqueue a call of the training."""
        torch._foreach_copy_(self._parameters, self.weights)
        torch._foreach_zero_(self._optimizer_state)
        self.training.rewind()
        with torch.enable_grad():
            self.training()


def allocation_sizes(run: Callable[[], object]) -> list[int]:
    """Return every allocation of CPU memory in `run`, in order: bytes, negative when freed."""
    gc.collect()
    gc.disable()  # garbage is collected at no fixed step
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
    finally:
        gc.enable()
    events = profiler.profiler.kineto_results.experimental_event_tree()
    allocations = [event for event in _flat(events) if event.tag == _EventType.Allocation]
    allocations.sort(key=lambda event: event.start_time_ns)
    return [
        event.extra_fields.alloc_size
        for event in allocations
        if event.extra_fields.device == torch.device("cpu")
    ]


def _flat(events: list[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _flat(event.children)


def peak_memory_of(config: TrainConfig, image_set: ImageSet, device: torch.device) -> int:
    """Return the peak of bytes requested of the device's allocator by a training, set-up included.

    Requested, not allocated: on CUDA an allocated block is as large as a free one happened to be.
    """

    def train() -> None:
        with Training(config, image_set, num_steps=NUM_STEPS) as training:
            training()
            synchronize(device)

    if device.type == "cpu":
        return max(accumulate(allocation_sizes(train)))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_stats(device)["requested_bytes.all.current"]
    train()
    return torch.cuda.memory_stats(device)["requested_bytes.all.peak"] - before


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("arch", ["densenet_ds", "resnet_ds"])
def test_lion_dg_costs_nothing(bench, image_set, arch, engine) -> None:
    """Compare peak memory, then step time, of LION-DG with He-init."""
    device = bench.device
    if engine == "graph" and device.type == "cpu":
        pytest.skip("engine graph needs a CUDA GPU")
    batch_size = CPU_BATCH_SIZE[arch] if device.type == "cpu" else 128
    size = TINY if bench.quick else {"batch_size": batch_size, **bench.fewer_layers}
    configs = {
        init: TrainConfig(init=init, arch=arch, engine=engine, device=str(device), **size)
        for init in INITS
    }
    if device.type == "cuda":
        peak_memory_of(configs["he"], image_set, device)  # libraries allocate for themselves once
    peaks = {init: peak_memory_of(configs[init], image_set, device) for init in INITS}
    assert peaks["lion_dg"] == peaks["he"]

    with Training(configs["he"], image_set, num_steps=NUM_STEPS) as training:
        starts: dict[str, FirstSteps] = {
            init: FirstSteps(training, list(new_step(config, image_set).model.parameters()))
            for init, config in configs.items()
        }
        side = "x".join(map(str, image_set.image_size))
        samples = bench.compare(
            starts,
            rounds=30 if device.type == "cpu" else 100,
            op="train_step",
            impl=engine,
            shape=f"{arch} B{configs['he'].batch_size}x3x{side}",
            dtype=training.resolved.precision,
            mode="lion_dg against he",
            arch=arch,
            data=image_set.name,
            steps_per_call=training.steps_per_call,
            peak_memory_bytes_of_training=peaks,
        )
        bound = BOUND[device.type]
        ratio = bench.record_ratio(samples, *INITS, bound)
        if not bench.judges_time:
            return
        if not (ratio.contains(1.0) and ratio.within(bound)):
            # One interval in twenty misses by chance, more on a busy machine. The second, longer
            # look decides; the row shows both.
            again = interleaved(starts, 2 * ratio.num_rounds, device=device)
            ratio = bench.record_ratio(again, *INITS, bound)
        assert ratio.contains(1.0), f"the interval misses 1.00: {ratio}"
        assert ratio.within(bound), f"the interval leaves 1 +- {bound}, on a busy machine?: {ratio}"
