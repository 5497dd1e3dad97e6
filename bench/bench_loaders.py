"""Loaders alone and feeding training steps: DALI by steps per run, resident, DataLoader workers.

    pytest bench/bench_loaders.py --benchmark-only --benchmark-json loaders.json
    (cd bench && python -m report ../loaders.json --out ../report)

The report draws images/s against steps per run. A row's time is that of `steps_per_call`
steps, because a loader that makes many batches at once hands most of them out for nothing.
"""

from contextlib import ExitStack, closing
from typing import Any

import pytest
import torch

from lion_fast.config import TrainConfig
from lion_fast.data.batches import BatchSpec, Loader
from lion_fast.data.dali import dali_status
from lion_fast.data.images import ImageSet
from lion_fast.data.make import make_loader
from lion_fast.data.plan import BatchPlan
from lion_fast.training.machine.resolve import resolve
from lion_fast.training.step.build import build
from lion_fast.training.step.engine import make_engine
from lion_fast.training.step.history import row_width
from lion_fast.training.step.step import TrainStep, float32_precision

BENCHMARK = {
    "title": "Loaders",
    "order": 60,
    "stage": "loaders",
    "ours": ("resident", "dali"),
}

BATCH_SIZE = 128
LOADERS: dict[str, dict[str, Any]] = {
    "resident": {"name": "resident"},
    **{f"dali-{steps}": {"name": "dali", "steps_per_run": steps} for steps in (1, 4, 16, 64)},
    **{f"workers-{num}": {"name": "workers", "num_workers": num} for num in (0, 2, 8)},
}
LOADERS_BESIDE_CPU_STEPS = ("dali-1", "dali-16", "workers-2")
STEPS_PER_CALL = 64  # whole runs of every size
# A resident loader holds its whole plan, so this bounds the rounds of a benchmark too.
NUM_STEPS = 50_000
# On the CPU a step of the paper's network is long enough to hide any loader; this one is not.
CPU_NETWORK: dict[str, Any] = {"growth_rate": 2, "block_layers": 1}
STEPS_PER_CPU_CALL = 16

pytestmark = [
    # Eight workers are measured wherever we are; with fewer cores torch says so once per loader.
    pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker processes"),
    # Python 3.12 warns of what DataLoader's workers do by default on Linux.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def open_loader(
    label: str, image_set: ImageSet, device: torch.device, dtype: torch.dtype, num_steps: int
) -> Loader:
    """Return the loader, at step 0; skip where DALI is not installed."""
    if LOADERS[label]["name"] == "dali" and dali_status().usable_on is None:
        pytest.skip(dali_status().reason)
    plan = BatchPlan(len(image_set.train_images), BATCH_SIZE, seed=42)
    return make_loader(
        image_set=image_set,
        plan=plan,
        spec=BatchSpec.of(image_set, num_steps=num_steps, device=device, dtype=dtype),
        **LOADERS[label],
    )


def note_rates(bench: Any, seconds: float | None, label: str, loader: Loader, steps: int) -> None:
    """Add the loader's setting, images/s and memory to the row."""
    host_bytes, device_bytes = loader.memory_bytes()
    bench.note(
        loader=label,
        steps_per_run=LOADERS[label].get("steps_per_run"),
        num_workers=LOADERS[label].get("num_workers"),
        steps_per_call=steps,
        images_per_second=steps * BATCH_SIZE / seconds if seconds else None,
        host_bytes=host_bytes,
        device_bytes=device_bytes,
    )


@pytest.mark.parametrize("label", LOADERS)
def test_loader_alone(bench, image_set, label):
    """Deliver batches to nobody."""
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    num_steps = STEPS_PER_CALL if bench.judges_time else 2

    def deliver() -> None:
        for _ in range(num_steps):
            loader.next()

    total = num_steps if bench.quick else NUM_STEPS
    with closing(open_loader(label, image_set, bench.device, dtype, total)) as loader:
        seconds = bench.time(
            deliver,
            op="loader",
            impl=loader.name,
            shape=f"B{BATCH_SIZE} {image_set.image_size[0]}x{image_set.image_size[1]}",
            dtype=str(dtype).removeprefix("torch."),
            mode="alone",
            data=image_set.name,
        )
        note_rates(bench, seconds, label, loader, num_steps)


class Training:
    """A training run, warmed up, whose steps are executed on demand."""

    def __init__(self, label: str, image_set: ImageSet, bench: Any) -> None:
        device = bench.device
        network = CPU_NETWORK if device.type == "cpu" else bench.fewer_layers
        config = TrainConfig(device=str(device), batch_size=BATCH_SIZE, **network)
        self.resolved = resolve(config)
        plan = BatchPlan(len(image_set.train_images), BATCH_SIZE, seed=config.seed)
        model = build(config, self.resolved, image_set, plan)
        num_steps = 64 if bench.quick else NUM_STEPS
        dtype = self.resolved.compute_dtype
        self.loader = open_loader(label, image_set, device, dtype, num_steps)
        self._engine = make_engine(
            TrainStep(model, config, self.resolved),
            self.loader,
            row_width(len(model.heads.aux) + 1),
            config,
            self.resolved,
        )
        self._engine.setup(0)
        steps_wanted = STEPS_PER_CALL if device.type == "cuda" else STEPS_PER_CPU_CALL
        self._chunks = steps_wanted // self._engine.chunk_steps if bench.judges_time else 1
        self.steps_per_call = self._chunks * self._engine.chunk_steps

    def __call__(self) -> None:
        """Train for `steps_per_call` steps."""
        for _ in range(self._chunks):
            self._engine.run(self._engine.chunk_steps)


@pytest.mark.parametrize("label", [label for label in LOADERS if label != "resident"])
def test_loader_and_step(bench, image_set, label):
    """Train from the loader and from a resident set, side by side; record the ratio."""
    if bench.device.type == "cpu" and label not in LOADERS_BESIDE_CPU_STEPS:
        pytest.skip("on a CPU the step hides what tells this loader from its neighbours")
    resolved = resolve(TrainConfig(device=str(bench.device)))
    with ExitStack() as closer:
        closer.enter_context(float32_precision(resolved))
        runs = {}
        for name in (label, "resident"):
            runs[name] = Training(name, image_set, bench)
            closer.enter_context(closing(runs[name].loader))
        samples = bench.compare(
            runs,
            rounds=40 if bench.device.type == "cuda" else 4,
            op="loader+step",
            impl=runs[label].loader.name,
            shape=f"B{BATCH_SIZE} {image_set.image_size[0]}x{image_set.image_size[1]}",
            dtype=str(resolved.compute_dtype).removeprefix("torch."),
            mode="train",
            data=image_set.name,
            arch="densenet_ds",
            network=CPU_NETWORK if bench.device.type == "cpu" else {},
            engine=resolved.engine,
        )
        bench.record_ratio(samples, label, "resident", bound=0.02)
        seconds = samples.median(label)
        note_rates(bench, seconds, label, runs[label].loader, runs[label].steps_per_call)
