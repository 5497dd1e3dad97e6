"""The benchmark harness measures what it says."""

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from support import harness, machine

BENCH = Path(harness.__file__).parents[1]


CPU = torch.device("cpu")


needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: records CUDA graphs"
)


def load_conftest():
    spec = importlib.util.spec_from_file_location("bench_conftest", BENCH / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def events(monkeypatch):
    """A device that writes down when it is waited for, and a clock that ticks 1 ms a reading."""
    log = []
    ticks = itertools.count()
    monkeypatch.setattr(harness, "synchronize", lambda device: log.append("wait"))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(ticks) / 1000)
    return log


def test_a_round_waits_for_the_device_at_its_edges_only(events):
    seconds = harness.time_round(lambda: events.append("call"), CPU, calls=5)
    assert events == ["wait", *["call"] * 5, "wait"]
    assert seconds == pytest.approx(0.001 / 5)


def test_a_round_has_enough_calls_to_outlast_the_wait():
    naps = []
    calls = harness.calls_per_round(lambda: naps.append(sum(range(2000))), CPU, 2e-3)
    seconds = min(harness.time_round(lambda: sum(range(2000)), CPU, calls) for _ in range(5))
    assert calls > 1
    assert seconds * calls > 1e-3


def test_a_round_cycles_through_every_argument_set(monkeypatch):
    monkeypatch.setattr(harness, "calls_per_round", lambda *_: 1)
    seen = []
    round_ = harness.prepare_round(seen.append, [(0,), (1,), (2,)], CPU)
    del seen[:]
    for _ in range(6):
        round_.run()
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]


def test_interleaved_rounds_run_every_function_once_in_mirrored_orders(monkeypatch):
    ran = []
    monkeypatch.setattr(harness, "calls_per_round", lambda *_: 1)
    functions = {name: (lambda name=name: ran.append(name)) for name in "abc"}
    samples = harness.interleaved(functions, 10, device=CPU)
    assert {name: len(seconds) for name, seconds in samples.seconds.items()} == dict.fromkeys(
        "abc", 10
    )
    rounds = [ran[i : i + 3] for i in range(len(ran) - 30, len(ran), 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert all(there == back[::-1] for there, back in zip(rounds[::2], rounds[1::2], strict=True))
    assert len(set(map(tuple, rounds))) > 2


def test_a_drift_of_the_machine_cancels_from_the_ratio():
    clock = 1.0
    rows = []
    for order in itertools.islice(harness.round_orders(("a", "b")), 40):
        row = {}
        for name in order:
            row[name] = clock * (1.05 if name == "a" else 1.0)
            clock *= 1.01
        rows.append(row)
    estimate = harness.collect(rows).ratio("a", "b")
    assert estimate.median_ratio == pytest.approx(1.05, rel=1e-3)
    assert estimate.contains(1.05) and not estimate.contains(1.0)


def synthetic_samples(ratio: float, seed: int, num_rounds: int = 40) -> harness.Samples:
    generator = np.random.default_rng(seed)
    weather = generator.lognormal(0, 0.3, num_rounds)
    a, b = generator.lognormal(0, 0.02, (2, num_rounds))
    return harness.Samples({"a": tuple(ratio * weather * a), "b": tuple(weather * b)})


def test_the_ratio_interval_covers_the_truth_about_as_often_as_it_says():
    estimates = [synthetic_samples(1.10, seed).ratio("a", "b") for seed in range(60)]
    covered = sum(estimate.contains(1.10) for estimate in estimates)
    assert covered >= 0.85 * len(estimates)
    assert not any(estimate.contains(1.0) for estimate in estimates)
    assert all(estimate.high - estimate.low < 0.05 for estimate in estimates)


def test_the_ratio_is_reproducible_and_knows_its_bounds():
    samples = synthetic_samples(1.0, 0)
    estimate = samples.ratio("a", "b")
    assert estimate == samples.ratio("a", "b")
    assert estimate.within(0.03) and not estimate.within(1e-4)
    assert estimate.num_rounds == 40


def test_one_round_gives_no_interval():
    estimate = harness.Samples({"a": (2.0,), "b": (1.0,)}).ratio("a", "b")
    assert estimate.median_ratio == 2.0
    assert not estimate.within(0.5)


def test_input_sets_exceed_the_cache_unless_that_takes_too_many():
    size = harness.cache_bytes(CPU)
    assert harness.num_input_sets(4 * max(size, harness.MAX_INPUT_BYTES), CPU) == 1
    assert harness.num_input_sets(1, CPU) == harness.MAX_INPUT_SETS
    shared = torch.zeros(3)
    assert harness.tensor_bytes((shared, [torch.zeros(2, dtype=torch.uint8)], 7, shared)) == 14


def test_machine_info_names_every_part_of_the_setting():
    info = machine.machine_info(CPU, commit="abc-dirty")
    wanted = {
        *("gpu", "driver", "sm_clock_mhz", "memory_clock_mhz", "power_limit_w", "torch"),
        *("triton", "dali", "cuda", "cudnn", "commit", "dirty", "cpu_model", "num_threads"),
    }
    assert wanted <= set(info)
    assert info["gpu"] is None and info["device"] == "cpu"
    assert torch.__version__.startswith(info["torch"])
    assert "dirty" not in info["commit"]


def test_a_given_commit_is_stated_where_git_cannot_tell(monkeypatch):
    facts = {"cpu": "a processor", "cpu_threads": 2, "commit": None}
    monkeypatch.setattr(machine, "environment", lambda device: facts)
    info = machine.machine_info(CPU, commit="abc-dirty")
    assert (info["commit"], info["dirty"]) == ("abc", True)
    info = machine.machine_info(CPU)
    assert (info["commit"], info["dirty"]) == (None, None)


def test_clocks_that_the_driver_does_not_tell_are_null():
    line = "345, 1980, 3201, [N/A]\n"
    assert machine.parse_clocks(line) == {
        "sm_clock_mhz": 345.0,
        "max_sm_clock_mhz": 1980.0,
        "memory_clock_mhz": 3201.0,
        "power_limit_w": None,
    }


class DisabledBenchmark:
    disabled = True
    extra_info: dict = {}

    def pedantic(self, target, args=()):
        return target(*args)


def quick_bench():
    options = {"benchmark_min_rounds": 5, "benchmark_max_time": 1.0, "rehearse": False}
    config = SimpleNamespace(getoption=options.__getitem__)
    return load_conftest().Bench(DisabledBenchmark(), CPU, config)


ROW = dict(op="noop", impl="torch", shape="", dtype="float32", mode="forward")


def test_a_disabled_benchmark_runs_every_function_once():
    bench, ran = quick_bench(), []
    assert bench.rotate(lambda: (torch.zeros(4),)) != []
    assert bench.time(lambda: ran.append("time"), **ROW) is None
    samples = bench.compare({name: (lambda name=name: ran.append(name)) for name in "ab"}, **ROW)
    assert ran == ["time", "a", "b"]
    assert bench.record_ratio(samples, "a", "b").num_rounds == 1


BENCHMARKS = """
import torch

from support import harness

ROW = dict(op="copy", impl="torch", shape="N1000", dtype="float32", mode="forward")

def test_time(bench):
    sets = [(torch.rand(1000), torch.rand(1000)) for _ in range(3)]
    bench.time(lambda a, b: a.copy_(b), sets, rounds=5, seed=7, **ROW)

def test_compare(bench, monkeypatch):
    now = [0.0]  # no machine's: what a busy one adds would be in the ratio
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])

    def nap(seconds):
        return lambda: now.append(now.pop() + seconds)

    functions = {"slow": nap(6e-3), "fast": nap(3e-3)}
    samples = bench.compare(functions, rounds=5, **ROW)
    bench.record_ratio(samples, "slow", "fast", bound=0.03)
"""

GRID_BENCHMARK = """
import pytest

@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", [{"n": 1}, {"n": 2}])
def test_grid(bench, case, dtype):
    assert not bench.judges_time
    bench.time(lambda: None, op="grid", impl="torch", shape=f"N{case['n']}", dtype=dtype, mode="m")
"""

INTERRUPTED_BENCHMARK = """
import signal

def test_interrupted(benchmark):
    benchmark.pedantic(signal.raise_signal, args=(signal.SIGINT,))
"""


def run_benchmarks(
    folder: Path, *options: str, source: str = BENCHMARKS
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "conftest"]
    (folder / "bench_sample.py").write_text(source)
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "--device=cpu", *options, "bench_sample.py"],
        cwd=folder,
        env={"PYTHONPATH": str(BENCH), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_an_interrupted_row_leaves_the_others_their_results(tmp_path):
    path = tmp_path / "results.json"
    done = run_benchmarks(
        tmp_path, f"--benchmark-json={path}", source=BENCHMARKS + INTERRUPTED_BENCHMARK
    )
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    names = {row["name"] for row in json.loads(path.read_text())["benchmarks"]}
    assert names == {"test_time", "test_compare"}


@pytest.mark.slow
def test_a_rehearsal_shows_every_value_of_a_parameter_in_two_rounds(tmp_path):
    path = tmp_path / "results.json"
    done = run_benchmarks(
        tmp_path, "--rehearse", f"--benchmark-json={path}", source=BENCHMARKS + GRID_BENCHMARK
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())["benchmarks"]
    assert {row["stats"]["rounds"] for row in rows} == {2}
    shown = {(row["extra_info"]["shape"], row["extra_info"]["dtype"]) for row in rows}
    assert shown == {("N1000", "float32"), ("N1", "fp32"), ("N1", "bf16"), ("N2", "fp32")}


@pytest.mark.slow
def test_rows_carry_their_setting_and_a_regression_fails(tmp_path):
    base = tmp_path / "base.json"
    done = run_benchmarks(tmp_path, f"--benchmark-json={base}")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(base.read_text())
    time_row, compare_row = sorted(results["benchmarks"], key=lambda row: -len(row["name"]))[::-1]
    info = time_row["extra_info"]
    assert {key: info[key] for key in ("op", "impl", "shape", "dtype", "mode")} == {
        **{"op": "copy", "impl": "torch", "shape": "N1000"},
        **{"dtype": "float32", "mode": "forward"},
    }
    assert info["seed"] == 7 and info["peak_memory_bytes"] is None and info["calls_per_round"] > 1
    assert 1e-8 < time_row["stats"]["median"] < 1e-3
    assert time_row["stats"]["rounds"] == 5
    (ratio,) = compare_row["extra_info"]["ratios"]
    assert ratio["a"] == "slow" and ratio["median_ratio"] == pytest.approx(2)
    assert ratio["low"] == pytest.approx(2) == ratio["high"]
    assert compare_row["stats"]["median"] == pytest.approx(6e-3)
    assert torch.__version__.startswith(results["machine_info"]["torch"])
    assert "node" not in results["machine_info"]

    for row in results["benchmarks"]:
        row["stats"] = {
            key: value / 100 if key == "median" else value for key, value in row["stats"].items()
        }
    results["machine_info"]["commit"] = "another"
    base.write_text(json.dumps(results))
    again = run_benchmarks(
        tmp_path, f"--benchmark-compare={base}", "--benchmark-compare-fail=median:50%", "-q"
    )
    assert again.returncode != 0
    assert "Performance has regressed" in again.stdout + again.stderr


@needs_gpu
def test_a_recorded_round_runs_every_argument_set_and_its_backward():
    device = torch.device("cuda", torch.cuda.current_device())
    with harness.side_stream(device):
        weights = [torch.ones(64, device=device, requires_grad=True) for _ in range(3)]
        counters = [torch.zeros((), device=device) for _ in weights]
        outputs = [(weight * weight).sum() for weight in weights]

        def backward(output, weight, counter):
            counter.add_(torch.autograd.grad(output, weight, retain_graph=True)[0].mean())

        sets = list(zip(outputs, weights, counters, strict=True))
        replay = harness.record_calls(backward, sets, 7, device)
        for counter in counters:
            counter.zero_()
        replay()
    assert [counter.item() for counter in counters] == [6.0, 4.0, 4.0]


@needs_gpu
def test_a_recorded_round_leaves_out_the_launches():
    device = torch.device("cuda", torch.cuda.current_device())
    with harness.side_stream(device):
        x = torch.ones(1000, device=device)
        launched, recorded = (
            harness.prepare_round(x.add_, [(1.0,)], device, graph=graph) for graph in (False, True)
        )
        assert recorded.calls * recorded.time(device) > 1e-3
        assert recorded.time(device) < launched.time(device)


@needs_gpu
def test_peak_memory_counts_what_one_call_allocates():
    device = torch.device("cuda", torch.cuda.current_device())
    held = torch.zeros(1 << 20, device=device)
    peak = harness.peak_memory_bytes(lambda: held + 1, device)
    assert peak == held.numel() * 4
