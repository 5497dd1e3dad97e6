"""One training step of DenseNet-DS: engines, loaders, precisions and batch sizes; and the rivals.

A row's time is that of `steps_per_call` steps, because engine graph replays several at once;
`step_milliseconds` is that of one. In quick mode nothing is compiled and the network is tiny.

Rivals (`support/rivals.py`): a plain PyTorch script, the same through `torch.compile` in its mode
max-autotune, and a hand-written loop over batches made beforehand. Their ratios are recorded, over
the trainer's engine, beside the goals that were set for them; they fail nothing.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from lion_fast.config import TrainConfig
from lion_fast.data.dali import dali_status
from lion_fast.data.images import ImageSet
from lion_fast.errors import UserError
from lion_fast.training.machine.resolve import Resolved, resolve
from lion_fast.training.step.step import float32_precision
from support.rivals import HandLoop, PlainScript
from support.training import Training, new_step

BENCHMARK = {
    "title": "Training step",
    "order": 10,
    "stage": "step",
    "ours": ("eager", "compile", "graph", "eager_fp32_workers"),
}

TINY: dict[str, Any] = {"growth_rate": 2, "block_layers": 1, "batch_size": 8, "num_workers": 0}
ENGINES = ("eager", "compile", "graph")
LOADERS = ("resident", "dali", "workers")
BATCH_SIZES = (128, 512, 2048)
NUM_IMAGES = 2_500_000  # that a training may see in all; a resident loader plans them ahead
NUM_WORKERS = min(8, len(os.sched_getaffinity(0)))
# A rival's workers go on while others are timed, until two batches each lie ready: a round of many
# more steps still shows the rate at which they make them.
RIVAL_STEPS_PER_CALL = 64

# Python 3.12 warns of what DataLoader's workers do by default on Linux.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

GPU_CASES: list[dict[str, Any]] = [
    *(
        {"engine": engine, "loader": loader, "precision": "auto", "batch_size": batch_size}
        for batch_size in BATCH_SIZES
        for engine in ENGINES
        for loader in LOADERS
    ),
    # Every precision and batch size costs a compilation, so the product is not whole.
    *(
        {"engine": engine, "loader": "resident", "precision": precision, "batch_size": 128}
        for precision in ("fp32", "tf32", "fp16")
        for engine in ENGINES
    ),
]
CPU_CASES: list[dict[str, Any]] = [
    {"engine": engine, "loader": "resident", "precision": "fp32", "batch_size": 128}
    for engine in ("eager", "compile")
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Spread the cases that `--device` can run."""
    if "case" in metafunc.fixturenames:
        name = metafunc.config.getoption("--device")
        on_cpu = name == "cpu" or not torch.cuda.is_available()
        cases = CPU_CASES if on_cpu else GPU_CASES
        metafunc.parametrize("case", cases, ids=lambda case: "-".join(map(str, case.values())))


@pytest.fixture(scope="module", autouse=True)
def own_code_for_every_batch_size() -> Iterator[None]:
    """Compile as a fresh process would: a second batch size would else get dynamic shapes."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        yield
    torch.compiler.reset()


@pytest.fixture(autouse=True)
def compile_only_what_is_timed(bench: Any) -> Iterator[None]:
    """In quick mode, let compiled functions run eagerly."""
    with torch.compiler.set_stance("force_eager") if bench.quick else nullcontext():
        yield


def setting(config: TrainConfig, resolved: Resolved, image_set: ImageSet) -> dict[str, Any]:
    """Return what a row says of a training."""
    return {
        "op": "train_step",
        "impl": resolved.engine,
        "shape": f"B{config.batch_size}x3x{'x'.join(map(str, image_set.image_size))}",
        "dtype": resolved.precision,
        "mode": "train",
        "loader": resolved.loader,
        "backbone": resolved.backbone,
        "arch": config.arch,
        "data": image_set.name,
        "num_workers": config.most_workers if resolved.loader == "workers" else None,
    }


def note_rate(bench: Any, seconds: float | None, steps_per_call: int, batch_size: int) -> None:
    """Add the time of one step and the images per second to the row."""
    bench.note(
        steps_per_call=steps_per_call,
        step_milliseconds=1e3 * seconds / steps_per_call if seconds else None,
        images_per_second=steps_per_call * batch_size / seconds if seconds else None,
    )


def test_step_against_an_eager_loop_by_hand(bench, image_set) -> None:
    """Compare engine eager with the least that a loop can do, and with engine compile."""
    config = TrainConfig(
        device=str(bench.device), engine="eager", precision="fp32", loader="resident",
        **(TINY if bench.quick else bench.fewer_layers),
    )  # fmt: skip
    compiled = replace(config, engine="compile")
    num_steps = 64 if bench.quick else NUM_IMAGES // config.batch_size
    with ExitStack() as stack:
        eager, compile_ = (
            stack.enter_context(Training(each, image_set, num_steps=num_steps))
            for each in (config, compiled)
        )
        hand_loop = HandLoop(
            new_step(config, image_set).model, eager.first_batches(8), config, eager.steps_per_call
        )

        def by_hand() -> None:
            with float32_precision(eager.resolved):
                hand_loop()

        samples = bench.compare(
            {"eager": eager, "hand_loop": by_hand, "compile": compile_},
            rounds=20,
            **setting(config, eager.resolved, image_set),
        )
        bench.record_ratio(samples, "eager", "hand_loop")
        bench.record_ratio(samples, "eager", "compile")
        bench.note(goals={"eager / hand_loop": "at most 1.05", "eager / compile": "at least 1.3"})
        note_rate(bench, samples.median("eager"), eager.steps_per_call, config.batch_size)


# torch.compile's own CUDA graphs begin with an empty one; ours must not.
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")
def test_step_against_plain_scripts(bench, image_set) -> None:
    """Compare the trainer's fastest engine with what people write, and with its own baseline."""
    on_gpu = bench.device.type == "cuda"
    tiny = TINY if bench.quick else bench.fewer_layers
    base = TrainConfig(**{"num_workers": NUM_WORKERS, **tiny, "device": str(bench.device)})
    ours = replace(base, engine="graph" if on_gpu else "compile")
    baseline = replace(base, engine="eager", precision="fp32", loader="workers")
    num_steps = 512 if bench.quick else NUM_IMAGES // base.batch_size
    many = on_gpu and bench.judges_time
    with ExitStack() as stack:

        def train(config: TrainConfig) -> Training:
            training = Training(
                config,
                image_set,
                num_steps=num_steps,
                chunks_per_call=RIVAL_STEPS_PER_CALL // config.steps_per_replay if many else 1,
            )
            return stack.enter_context(training)

        subject = train(ours)

        def script(compile_mode: str | None = None) -> PlainScript:
            return stack.enter_context(
                closing(
                    PlainScript(
                        new_step(baseline, image_set).model,
                        image_set,
                        base,
                        bench.device,
                        steps_per_call=subject.steps_per_call,
                        compile_mode=compile_mode,
                    )
                )
            )

        contestants = {
            ours.engine: subject,
            "eager_fp32_workers": train(baseline),
            "plain": script(),
            "plain_max_autotune": script("max-autotune"),
        }
        samples = bench.compare(
            contestants,
            rounds=12 if on_gpu else 10,
            **setting(ours, subject.resolved, image_set),
            num_workers_of_rivals=base.num_workers,
        )
        for rival in list(contestants)[1:]:
            bench.record_ratio(samples, rival, ours.engine)
        if on_gpu:
            bench.note(
                goals={
                    "plain / graph": "at least 5",
                    "eager_fp32_workers / graph": "at least 5",
                    "plain_max_autotune / graph": "at least 1.5",
                }
            )
        note_rate(bench, samples.median(ours.engine), subject.steps_per_call, base.batch_size)


def test_step(bench, image_set, case) -> None:
    """Time steps of the trainer."""
    tiny = TINY if bench.quick else bench.fewer_layers
    config = TrainConfig(
        **{"num_workers": NUM_WORKERS, **case, **tiny, "device": str(bench.device)}
    )
    try:
        resolved = resolve(config)
    except UserError as error:
        pytest.skip(str(error))
    if config.loader == "dali" and dali_status().usable_on is None:
        pytest.skip(dali_status().reason)
    num_steps = 64 if bench.quick else NUM_IMAGES // config.batch_size
    with Training(config, image_set, num_steps=num_steps) as training:
        seconds = bench.time(training, **setting(config, resolved, image_set))
        note_rate(bench, seconds, training.steps_per_call, config.batch_size)
