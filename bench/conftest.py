"""The benchmark harness: pytest-benchmark rows of device time, with their setting.

How to write a benchmark::

    @pytest.mark.parametrize("impl", ["triton", "torch"])
    def test_heads_forward(bench, impl):
        inputs = bench.rotate(lambda: make_inputs(bench.device))  # tuples, beyond the cache
        bench.time(
            partial(deep_supervision_loss, impl=impl), inputs, graph=True,
            op="deep_supervision_loss", impl=impl, shape="B128", dtype="float32", mode="forward",
            bytes_moved=num_bytes,
        )

    def test_lion_dg_costs_nothing(bench):
        samples = bench.compare(
            {"lion_dg": step_a, "he": step_b}, rounds=60,
            op="train_step", impl="eager", shape="B128", dtype="float32", mode="step",
        )
        ratio = bench.record_ratio(samples, "lion_dg", "he", bound=0.03)
        if not bench.quick:
            assert ratio.contains(1.0) and ratio.within(0.03)

- One `bench.time` or `bench.compare` per test: it makes the row. `compare` runs its functions side
  by side in balanced order, as every claim that is a ratio must; the row's time is its first's.
- `bench.device` comes from `--device`. `bench.quick` is true under `--benchmark-disable`: each
  function then runs once, ratios mean nothing, and no test may assert anything of time.
- Seconds are per call. Every row's `extra_info` holds op, impl, shape, dtype, mode, bytes moved,
  GB/s, percent of the measured copy bandwidth, peak memory (null on the CPU), and any further
  keyword argument (`loader=...`).
- `graph=True` records many calls in one CUDA graph: for kernels that end before their launch does.
  Tests run on a side stream so that a backward pass can be recorded too. Never synchronise or call
  `.item()` in what is timed.
- Under `--rehearse` all of this happens, in two short rounds of the fewest cases that show every
  value of every parameter, and trained networks have the `fewer_layers` that compile sooner; no
  test may assert anything of time then either (`judges_time`).
- `image_set` is CIFAR-10 from `--data-dir`, else synthetic (`image_set.name` says which).
- `support/harness.py` holds the timers and statistics, for scripts without pytest.
"""

import math
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

if not torch.cuda.is_available():
    # Kernels then run once, untimed, in quick mode. Read when triton is first imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from pytest_benchmark.logger import PytestBenchmarkWarning

from lion_fast.config import TrainConfig
from lion_fast.data.images import DecodedSet, ImageSet
from lion_fast.data.open import load_image_set
from support import machine
from support.harness import (
    MIN_ROUND_SECONDS,
    RatioEstimate,
    Samples,
    cache_bytes,
    collect,
    copy_bandwidth,
    interleaved_rounds,
    no_garbage_collection,
    num_input_sets,
    peak_memory_bytes,
    prepare_round,
    side_stream,
    tensor_bytes,
    time_round,
)

T = TypeVar("T", bound=tuple)
MAX_ROUNDS = 200
REHEARSAL_ROUNDS = 2
REHEARSAL_INPUTS = 2


class RoundClock:
    """The clock that pytest-benchmark reads: each round advances it by its seconds per call."""

    __name__ = "seconds_per_call"

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the seconds accumulated so far."""
        return self.seconds


CLOCK = RoundClock()


class Bench:
    """What the `bench` fixture offers; the module's docstring shows its use."""

    def __init__(self, benchmark: Any, device: torch.device, config: pytest.Config) -> None:
        self.device = device
        self.quick: bool = benchmark.disabled
        self.rehearsal: bool = config.getoption("rehearse")
        self._round_seconds = 0.0 if self.rehearsal else MIN_ROUND_SECONDS
        self._benchmark = benchmark
        self._min_rounds: int = config.getoption("benchmark_min_rounds")
        self._max_seconds = float(config.getoption("benchmark_max_time"))

    @property
    def judges_time(self) -> bool:
        """Whether a test may assert anything of time."""
        return not (self.quick or self.rehearsal)

    @property
    def fewer_layers(self) -> dict[str, int]:
        """Fields of a TrainConfig that a rehearsal changes: setting up grows with the layers."""
        return {"block_layers": 1} if self.rehearsal else {}

    def rotate(self, make: Callable[[], T]) -> list[T]:
        """Return tuples from `make`, enough for each to leave the cache before its next turn."""
        first = make()
        count = 1 if self.quick else num_input_sets(tensor_bytes(first), self.device)
        count = min(count, REHEARSAL_INPUTS) if self.rehearsal else count
        return [first, *(make() for _ in range(count - 1))]

    def time(
        self,
        function: Callable[..., object],
        argument_sets: Sequence[tuple] = ((),),
        *,
        op: str,
        impl: str,
        shape: str,
        dtype: str,
        mode: str,
        bytes_moved: int | None = None,
        graph: bool = False,
        rounds: int | None = None,
        **setting: Any,
    ) -> float | None:
        """Time `function(*arguments)` over the argument sets and report the row.

        bytes_moved: bytes that one call must read and write at least. graph: on CUDA, record the
        round's calls in a graph. rounds: by default as many as fit `--benchmark-max-time`.
        Returns the median seconds per call; None if quick.
        """
        row = dict(op=op, impl=impl, shape=shape, dtype=dtype, mode=mode, **setting)
        if self.quick:
            self._benchmark.pedantic(function, args=argument_sets[0])
            return None
        first = argument_sets[0]
        round_ = prepare_round(
            function, argument_sets, self.device, graph=graph, min_seconds=self._round_seconds
        )
        row |= {
            "calls_per_round": round_.calls,
            "graph": graph and self.device.type == "cuda",
            "input_sets": len(argument_sets),
            "inputs_exceed_cache": tensor_bytes(tuple(argument_sets)) > cache_bytes(self.device),
            "peak_memory_bytes": peak_memory_bytes(lambda: function(*first), self.device),
        }
        if rounds is None:
            rounds = self._num_rounds(round_.time(self.device) * round_.calls)

        def run_round() -> None:
            CLOCK.seconds += round_.time(self.device)

        with no_garbage_collection():
            self._benchmark.pedantic(run_round, rounds=self._at_most(rounds))
        return self._report(row, bytes_moved)

    def compare(
        self,
        functions: Mapping[str, Callable[[], object]],
        *,
        op: str,
        impl: str,
        shape: str,
        dtype: str,
        mode: str,
        rounds: int = 40,
        graph: bool = False,
        **setting: Any,
    ) -> Samples:
        """Time the functions side by side in balanced order; the row's time is the first one's.

        When quick, each function runs once and the Samples hold that one round.
        """
        row = dict(op=op, impl=impl, shape=shape, dtype=dtype, mode=mode, **setting)
        subject = next(iter(functions))
        if self.quick:
            once = {name: time_round(run, self.device) for name, run in functions.items()}
            self._benchmark.pedantic(lambda: None)
            return collect([once])
        source = interleaved_rounds(
            functions, self.device, graph=graph, min_seconds=self._round_seconds
        )
        rows: list[dict[str, float]] = []

        def run_round() -> None:
            rows.append(next(source))
            CLOCK.seconds += rows[-1][subject]

        with no_garbage_collection():
            self._benchmark.pedantic(run_round, rounds=self._at_most(rounds))
        samples = collect(rows)
        row["subject"] = subject
        row["median_seconds_of"] = {name: samples.median(name) for name in functions}
        row["peak_memory_bytes_of"] = {
            name: peak_memory_bytes(run, self.device) for name, run in functions.items()
        }
        row["peak_memory_bytes"] = row["peak_memory_bytes_of"][subject]
        self._report(row, None)
        return samples

    def record_ratio(
        self, samples: Samples, a: str, b: str, bound: float | None = None
    ) -> RatioEstimate:
        """Add the time of `a` over that of `b` to the row's `extra_info["ratios"]`; return it."""
        estimate = samples.ratio(a, b)
        ratios = self._benchmark.extra_info.setdefault("ratios", [])
        ratios.append({"a": a, "b": b, **estimate._asdict(), "confidence": 0.95, "bound": bound})
        return estimate

    def note(self, **setting: Any) -> None:
        """Add fields to the row's `extra_info`."""
        self._benchmark.extra_info.update(setting)

    def _at_most(self, rounds: int) -> int:
        return min(rounds, REHEARSAL_ROUNDS) if self.rehearsal else rounds

    def _num_rounds(self, seconds_per_round: float) -> int:
        fitting = math.ceil(self._max_seconds / max(seconds_per_round, 1e-9))
        return min(max(fitting, self._min_rounds), MAX_ROUNDS)

    def _report(self, row: dict[str, Any], bytes_moved: int | None) -> float:
        """Complete the row; the copy bandwidth is measured the first time that a row needs it."""
        median = self._benchmark.stats.stats.median
        row["bytes_moved"] = bytes_moved
        row["gb_per_second"] = row["percent_of_copy_bandwidth"] = None
        if bytes_moved:
            rate = bytes_moved / median
            row["gb_per_second"] = rate / 1e9
            row["percent_of_copy_bandwidth"] = 100 * rate / copy_bandwidth(self.device)
        self.note(**row)
        return median


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--device`, `--data-dir`, `--commit` and `--rehearse`."""
    group = parser.getgroup("lion-fast benchmarks")
    group.addoption("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    with suppress(ValueError):  # tests/conftest.py has it too, and one call may run both
        group.addoption("--data-dir", type=Path, help="folder that holds CIFAR-10")
    group.addoption("--commit", help="commit to state in results where git cannot tell")
    group.addoption("--rehearse", action="store_true", help="two rounds each of a few cases")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Make pytest-benchmark read CLOCK in tests that use `bench`, and its own clock in others."""
    if "bench" in getattr(item, "fixturenames", ()):
        given = item.get_closest_marker("benchmark")
        options = {**(given.kwargs if given else {}), "timer": CLOCK}
        item.add_marker(pytest.mark.benchmark(**options), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None, Any, Any]:
    """Leave a row that is interrupted out of the results: without a round it has no median."""
    try:
        return (yield)
    except KeyboardInterrupt:
        benchmark: Any = item.funcargs.get("benchmark")
        if benchmark is not None:
            benchmark.has_error = True
        raise


def shown(item: pytest.Item) -> set[tuple[str, ...]]:
    """Return what a case shows: its function, and every value that it is given."""
    function = item.nodeid.partition("[")[0]
    values: set[tuple[str, ...]] = {(function,)}
    for name, value in item.callspec.params.items() if hasattr(item, "callspec") else ():
        parts = value.items() if isinstance(value, dict) else [(name, value)]
        values |= {(function, key, str(part)) for key, part in parts}
    return values


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a rehearsal, leave out the cases that show nothing which an earlier one does not."""
    if not config.getoption("rehearse"):
        return
    seen: set[tuple[str, ...]] = set()
    kept = []
    for item in items:
        if not shown(item) <= seen:
            kept.append(item)
            seen |= shown(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def resolve_device(name: str) -> torch.device:
    """Turn `--device` into a device; raise pytest.UsageError where it is not available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device {name}: this machine has no CUDA GPU; take --device cpu")
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """State GPU, driver, clocks, versions and commit."""
    machine_info.pop("node", None)  # a host name says nothing of speed
    machine_info.pop("cpu", None)  # holds the momentary clock; `cpu_model` says what matters
    device = resolve_device(config.getoption("--device"))
    machine_info.update(machine.machine_info(device, config.getoption("--commit")))


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_compare_machine_info(
    benchmarksession: Any, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> Generator[None, Any, Any]:
    """Say in one line which facts differ between the compared machines."""
    with warnings.catch_warnings():
        # The plugin's own warning prints both machines whole; the commit differs in every use.
        warnings.simplefilter("ignore", PytestBenchmarkWarning)
        result = yield
    before = compared_benchmark["machine_info"]
    differing = [
        f"{fact} {before.get(fact)} -> {machine_info[fact]}"
        for fact in machine.SPEED_FACTS
        if before.get(fact) != machine_info[fact]
    ]
    if differing:
        benchmarksession.logger.info(f"compared with another setting: {', '.join(differing)}")
    return result


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return the device that `--device` names."""
    return resolve_device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def rehearsal(request: pytest.FixtureRequest) -> bool:
    """Return whether `--rehearse` was given, for benchmarks without `bench`."""
    return bool(request.config.getoption("rehearse"))


@pytest.fixture
def bench(benchmark: Any, device: torch.device, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Time and compare functions on `--device`; see the module's docstring."""
    with side_stream(device):
        yield Bench(benchmark, device, request.config)


@pytest.fixture(scope="session")
def image_set(request: pytest.FixtureRequest) -> DecodedSet:
    """Return CIFAR-10 from `--data-dir`, or synthetic images of its shape: for speed alone."""
    data_dir = request.config.getoption("--data-dir")
    if data_dir is not None:
        return load_image_set(TrainConfig(dataset="cifar10", data_dir=data_dir))
    generator = torch.Generator().manual_seed(0)

    def split(num: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.randint(256, (num, 32, 32, 3), dtype=torch.uint8, generator=generator)
        return images, torch.randint(10, (num,), generator=generator)

    return ImageSet(
        "synthetic",
        *split(50_000),
        *split(10_000),
        class_names=tuple(map(str, range(10))),
        mean=(0.5, 0.5, 0.5),
        std=(0.289, 0.289, 0.289),
    )
