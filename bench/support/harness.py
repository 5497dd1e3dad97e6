"""Timing and statistics of the benchmarks, independent of pytest.

A *call* is one execution of what is measured. A *round* is a number of calls between two edges; the
host waits for the device at the edges and nowhere else.
"""

import gc
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lion_fast.report.stats import bootstrap_interval

MIN_ROUND_SECONDS = 2e-3  # waiting for the device costs about 10 us: under 1 % of such a round
LONG_CALL_SECONDS = 5.0  # one warm-up call of such length will do
MAX_CALLS_PER_GRAPH = 4096
MAX_INPUT_SETS = 512
MAX_INPUT_BYTES = 256 << 20
_MIB = 1 << 20


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_round(function: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Run one round of `calls` calls and return its seconds per call."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def calls_per_round(
    function: Callable[[], object], device: torch.device, min_seconds: float = MIN_ROUND_SECONDS
) -> int:
    """Run rounds until one lasts `min_seconds`; return its number of calls."""
    calls = 1
    while (seconds := calls * time_round(function, device, calls)) < min_seconds:
        needed = math.ceil(calls * min_seconds / max(seconds, 1e-9))
        calls = min(max(2 * calls, needed), 10 * calls)
    return calls


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # one for all: the allocator keeps freed memory per stream


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """On CUDA, run what is inside on a stream of its own, so that `record_calls` can record it."""
    if device.type != "cuda":
        yield
        return
    stream = _side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector out of the rounds inside."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def record_calls(
    function: Callable[..., object],
    argument_sets: Sequence[tuple],
    calls: int,
    device: torch.device,
) -> Callable[[], None]:
    """Record `calls` calls, each with the next argument set, in one CUDA graph; return its replay.

    Call it inside `side_stream`, with tensors whose autograd graphs were made there too: a backward
    pass runs on the stream of its forward pass, and only the recorded stream may work meanwhile.
    """
    stream = torch.cuda.current_stream(device)
    for arguments in argument_sets[:3]:  # lazy set-up inside a capture would fail or be recorded
        function(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for arguments in itertools.islice(itertools.cycle(argument_sets), calls):
            function(*arguments)
    return graph.replay


class Round(NamedTuple):
    """What one round runs: `runs` times `run`, which is `calls_per_run` calls."""

    run: Callable[[], object]
    runs: int
    calls_per_run: int

    @property
    def calls(self) -> int:
        """Calls in a round."""
        return self.runs * self.calls_per_run

    def time(self, device: torch.device) -> float:
        """Run the round and return its seconds per call."""
        return time_round(self.run, device, self.runs) / self.calls_per_run


def prepare_round(
    function: Callable[..., object],
    argument_sets: Sequence[tuple],
    device: torch.device,
    *,
    graph: bool = False,
    min_seconds: float = MIN_ROUND_SECONDS,
) -> Round:
    """Warm the function up and return a round of it that lasts at least `min_seconds`.

    With `graph` on CUDA, the round replays a graph that cycles through every argument set, so that
    launch costs do not count; elsewhere `graph` changes nothing.
    """
    arguments = itertools.cycle(argument_sets)

    def call() -> object:
        return function(*next(arguments))

    for _ in range(2):  # compilation, allocation and algorithm choice happen here
        if time_round(call, device) > LONG_CALL_SECONDS:
            break
    if not (graph and device.type == "cuda"):
        return Round(call, calls_per_round(call, device, min_seconds), 1)
    calls = len(argument_sets)
    replay = record_calls(function, argument_sets, calls, device)
    seconds = min(time_round(replay, device) for _ in range(3))
    if seconds < min_seconds:
        calls = min(math.ceil(calls * min_seconds / seconds), MAX_CALLS_PER_GRAPH)
        replay = record_calls(function, argument_sets, calls, device)
    return Round(replay, calls_per_round(replay, device, min_seconds), calls)


class RatioEstimate(NamedTuple):
    """The median over rounds of one function's time over another's, and its confidence interval."""

    median_ratio: float
    low: float
    high: float
    num_rounds: int

    def contains(self, ratio: float) -> bool:
        """Whether the interval contains `ratio`."""
        return self.low <= ratio <= self.high

    def within(self, bound: float) -> bool:
        """Whether the whole interval lies in 1 +- `bound`."""
        return 1 - bound <= self.low and self.high <= 1 + bound


@dataclass(frozen=True)
class Samples:
    """Seconds per call of every function in every round."""

    seconds: Mapping[str, tuple[float, ...]]
    """By function name; index i of every tuple belongs to round i."""

    def median(self, name: str) -> float:
        """Return the median seconds per call."""
        return float(np.median(self.seconds[name]))

    def ratio(self, a: str, b: str, *, confidence: float = 0.95, seed: int = 0) -> RatioEstimate:
        """Estimate the time of `a` over that of `b` by a percentile bootstrap over paired rounds.

        One round gives no interval: low is 0 and high infinite.
        """
        ratios = np.divide(self.seconds[a], self.seconds[b])
        median = float(np.median(ratios))
        if len(ratios) < 2:
            return RatioEstimate(median, 0.0, math.inf, len(ratios))
        interval = bootstrap_interval((ratios,), np.median, level=confidence, seed=seed)
        return RatioEstimate(median, *interval, len(ratios))


def round_orders(names: Sequence[str], seed: int = 0) -> Iterator[tuple[str, ...]]:
    """Yield orders in which to run the functions: random ones, each followed by its reverse.

    In every two rounds each function runs once before and once after each other one, so that a
    drift cancels from their ratio.
    """
    generator = np.random.default_rng(seed)
    while True:
        order = tuple(names[index] for index in generator.permutation(len(names)))
        yield order
        yield order[::-1]


def interleaved_rounds(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    graph: bool = False,
    warmup_rounds: int = 1,
    seed: int = 0,
    min_seconds: float = MIN_ROUND_SECONDS,
) -> Iterator[dict[str, float]]:
    """Yield without end one round's seconds per call of every function, run side by side.

    min_seconds: that a round of each lasts.
    """
    rounds = {
        name: prepare_round(run, [()], device, graph=graph, min_seconds=min_seconds)
        for name, run in functions.items()
    }
    for _ in range(warmup_rounds):
        for each in rounds.values():
            each.time(device)
    for order in round_orders(tuple(functions), seed):
        yield {name: rounds[name].time(device) for name in order}


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    device: torch.device,
    graph: bool = False,
    warmup_rounds: int = 1,
    seed: int = 0,
) -> Samples:
    """Time the functions side by side for `rounds` rounds, as every claim that is a ratio must."""
    source = interleaved_rounds(
        functions, device, graph=graph, warmup_rounds=warmup_rounds, seed=seed
    )
    with no_garbage_collection():
        return collect(itertools.islice(source, rounds))


def collect(rounds: Iterable[Mapping[str, float]]) -> Samples:
    """Turn rows of one round each, seconds by name, into Samples."""
    rows = list(rounds)
    return Samples({name: tuple(row[name] for row in rows) for name in rows[0]})


def tensor_bytes(tensors: object) -> int:
    """Return the bytes behind all tensors in nested sequences, memory that they share once."""
    return sum(dict(_storages(tensors)).values())


def _storages(tensors: object) -> Iterator[tuple[int, int]]:
    """Yield address and bytes of every tensor's memory."""
    if isinstance(tensors, Tensor):
        storage = tensors.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()
    elif isinstance(tensors, (tuple, list)):
        for each in tensors:
            yield from _storages(each)


def cache_bytes(device: torch.device) -> int:
    """Return the size of the last cache: L2 on CUDA, L3 on the CPU (32 MiB where not told)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    told = "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names
    return (os.sysconf("SC_LEVEL3_CACHE_SIZE") if told else 0) or 32 * _MIB


def num_input_sets(bytes_per_set: int, device: torch.device) -> int:
    """Return how many input sets to cycle through for each to leave the cache between turns."""
    total = min(3 * cache_bytes(device), MAX_INPUT_BYTES)
    return min(max(math.ceil(total / max(bytes_per_set, 1)), 1), MAX_INPUT_SETS)


def peak_memory_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    """Return the peak of one call's allocations beyond what was held before; None on the CPU."""
    if device.type != "cuda":
        return None
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@cache
def copy_bandwidth(device: torch.device) -> float:
    """Measure bytes per second of a large copy, counting bytes read and written (as STREAM)."""
    num_bytes = 1024 * _MIB if device.type == "cuda" else 256 * _MIB
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    sink = torch.empty_like(source)
    copies = prepare_round(sink.copy_, [(source,)], device)
    return 2 * num_bytes / float(np.median([copies.time(device) for _ in range(10)]))


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure floating-point operations per second of a large square matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    # Zeros would draw less power and run faster than any real product.
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    products = prepare_round(lambda: torch.mm(a, b, out=out), [()], device)
    return 2 * size**3 / float(np.median([products.time(device) for _ in range(10)]))
