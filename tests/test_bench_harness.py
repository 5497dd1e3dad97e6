"""The benchmark harness measures what it says, and the GPU suite refuses to run without a GPU."""

import importlib.util
import itertools
import json
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

import _harness
import _machine
import gpu_suite
import numpy as np
import pytest
import torch

BENCH = Path(_harness.__file__).parent
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
    monkeypatch.setattr(_harness, "synchronize", lambda device: log.append("wait"))
    monkeypatch.setattr(_harness.time, "perf_counter", lambda: next(ticks) / 1000)
    return log


def test_a_round_waits_for_the_device_at_its_edges_only(events):
    seconds = _harness.time_round(lambda: events.append("call"), CPU, calls=5)
    assert events == ["wait", *["call"] * 5, "wait"]
    assert seconds == pytest.approx(0.001 / 5)


def test_a_round_has_enough_calls_to_outlast_the_wait():
    naps = []
    calls = _harness.calls_per_round(lambda: naps.append(sum(range(2000))), CPU, 2e-3)
    seconds = min(_harness.time_round(lambda: sum(range(2000)), CPU, calls) for _ in range(5))
    assert calls > 1
    assert seconds * calls > 1e-3


def test_a_round_cycles_through_every_argument_set(monkeypatch):
    monkeypatch.setattr(_harness, "calls_per_round", lambda *_: 1)
    seen = []
    round_ = _harness.prepare_round(seen.append, [(0,), (1,), (2,)], CPU)
    del seen[:]
    for _ in range(6):
        round_.run()
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]


def test_interleaved_rounds_run_every_function_once_in_mirrored_orders(monkeypatch):
    ran = []
    monkeypatch.setattr(_harness, "calls_per_round", lambda *_: 1)
    functions = {name: (lambda name=name: ran.append(name)) for name in "abc"}
    samples = _harness.interleaved(functions, 10, device=CPU)
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
    for order in itertools.islice(_harness.round_orders(("a", "b")), 40):
        row = {}
        for name in order:
            row[name] = clock * (1.05 if name == "a" else 1.0)
            clock *= 1.01
        rows.append(row)
    estimate = _harness.collect(rows).ratio("a", "b")
    assert estimate.median_ratio == pytest.approx(1.05, rel=1e-3)
    assert estimate.contains(1.05) and not estimate.contains(1.0)


def synthetic_samples(ratio: float, seed: int, num_rounds: int = 40) -> _harness.Samples:
    generator = np.random.default_rng(seed)
    weather = generator.lognormal(0, 0.3, num_rounds)
    a, b = generator.lognormal(0, 0.02, (2, num_rounds))
    return _harness.Samples({"a": tuple(ratio * weather * a), "b": tuple(weather * b)})


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
    estimate = _harness.Samples({"a": (2.0,), "b": (1.0,)}).ratio("a", "b")
    assert estimate.median_ratio == 2.0
    assert not estimate.within(0.5)


def test_input_sets_exceed_the_cache_unless_that_takes_too_many():
    size = _harness.cache_bytes(CPU)
    assert _harness.num_input_sets(4 * max(size, _harness.MAX_INPUT_BYTES), CPU) == 1
    assert _harness.num_input_sets(1, CPU) == _harness.MAX_INPUT_SETS
    shared = torch.zeros(3)
    assert _harness.tensor_bytes((shared, [torch.zeros(2, dtype=torch.uint8)], 7, shared)) == 14


def test_machine_info_names_every_part_of_the_setting():
    info = _machine.machine_info(CPU, commit="abc-dirty")
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
    monkeypatch.setattr(_machine, "environment", lambda device: facts)
    info = _machine.machine_info(CPU, commit="abc-dirty")
    assert (info["commit"], info["dirty"]) == ("abc", True)
    info = _machine.machine_info(CPU)
    assert (info["commit"], info["dirty"]) == (None, None)


def test_clocks_that_the_driver_does_not_tell_are_null():
    line = "345, 1980, 3201, [N/A]\n"
    assert _machine.parse_clocks(line) == {
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
    options = {"benchmark_min_rounds": 5, "benchmark_max_time": 1.0}
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
import time
import torch

ROW = dict(op="copy", impl="torch", shape="N1000", dtype="float32", mode="forward")

def test_time(bench):
    sets = [(torch.rand(1000), torch.rand(1000)) for _ in range(3)]
    bench.time(lambda a, b: a.copy_(b), sets, rounds=5, seed=7, **ROW)

def test_compare(bench):
    functions = {"slow": lambda: time.sleep(6e-3), "fast": lambda: time.sleep(3e-3)}
    samples = bench.compare(functions, rounds=5, **ROW)
    bench.record_ratio(samples, "slow", "fast", bound=0.03)
"""


def run_benchmarks(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "conftest"]
    (folder / "bench_sample.py").write_text(BENCHMARKS)
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "--device=cpu", *options, "bench_sample.py"],
        cwd=folder,
        env={"PYTHONPATH": str(BENCH), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


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
    assert ratio["a"] == "slow" and 1.5 < ratio["median_ratio"] < 2.5
    assert ratio["low"] <= ratio["median_ratio"] <= ratio["high"]
    assert compare_row["stats"]["median"] == pytest.approx(6e-3, rel=0.5)
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


def test_the_gpu_suite_says_in_one_line_that_it_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_suite.main(["--stage", "tests"]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert "no CUDA GPU" in line


def test_result_names_state_gpu_date_commit_and_stage():
    name = gpu_suite.result_name("NVIDIA H100 80GB HBM3", "0123456789abcdef", "kernels")
    gpu, date, commit, stage = name.removesuffix(".json").split("_")
    assert (gpu, commit, stage) == ("h100-80gb-hbm3", "0123456789ab", "kernels")
    assert len(date) == len("2026-11-21")


def test_a_checkout_that_is_not_installed_can_be_imported_through_links(tmp_path):
    gpu_suite.make_importable(tmp_path)
    spec = PathFinder.find_spec("lion_fast.kernels", [str(tmp_path / "lion_fast")])
    assert Path(spec.origin).resolve() == gpu_suite.ROOT / "kernels" / "__init__.py"
    assert PathFinder.find_spec("lion_fast", [str(tmp_path)]) is not None


def test_a_stage_out_of_time_is_interrupted_so_that_it_can_write_its_results(tmp_path):
    kept = tmp_path / "kept"
    program = (
        "import pathlib, sys, time\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: pathlib.Path(sys.argv[1]).write_text('kept')"
    )
    assert gpu_suite.run_stage([sys.executable, "-c", program, str(kept)], {}, seconds=2) is None
    assert kept.read_text() == "kept"


def suite_arguments(tmp_path, stage, **given):
    return SimpleNamespace(stage=stage, out=tmp_path, data_dir=None, commit=None, **given)


INFO = {"gpu": "NVIDIA Test", "torch": "0", "commit": None}


def test_the_stages_are_what_the_benchmark_files_say():
    files = [file for stage in gpu_suite.STAGES.values() for file in stage.files]
    assert sorted(files) == sorted(
        ["tests", *(f"bench/{p.name}" for p in BENCH.glob("bench_*.py"))]
    )
    assert gpu_suite.STAGES["target"].needs_data and not gpu_suite.STAGES["step"].needs_data


def test_tests_and_benchmarks_run_in_one_call():
    command = [sys.executable, "-m", "pytest", "-q", "--co", "--benchmark-disable", "--data-dir=d"]
    for order in (["tests/test_figures.py", "bench"], ["bench", "tests/test_figures.py"]):
        done = subprocess.run([*command, *order], cwd=BENCH.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "test_figures.py::" in done.stdout and "bench_step.py::" in done.stdout


def test_convergence_stages_want_real_images_and_speed_stages_say_they_had_none(tmp_path, capsys):
    assert gpu_suite.run_stages(suite_arguments(tmp_path, "target"), tmp_path, INFO) == 1
    printed = capsys.readouterr().out
    assert "needs the real images of --data-dir" in printed and "synthetic" in printed


def test_the_tests_stage_reports_what_failed(tmp_path):
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1" time="2.5">'
        '<testcase classname="tests.a" name="good"/><testcase classname="tests.a" name="bad">'
        "<failure/></testcase></testsuite></testsuites>"
    )
    counts = gpu_suite.count_tests(junit)
    assert counts["failed"] == ["tests.a::bad"] and counts["seconds"] == 2.5
    assert gpu_suite.table({"tests": counts})[0].startswith("  3 tests, 1 failures")


def test_the_study_stage_goes_on_with_one_store_and_writes_beside_the_other_results(
    tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(gpu_suite, "run_stage", lambda *call: calls.append(call) or 0)
    args = suite_arguments(tmp_path, "study")
    args.data_dir, args.commit = Path("images"), "abc"
    assert gpu_suite.run_stages(args, tmp_path, INFO) == 0
    words = [" ".join(command) for command, *_ in calls]
    assert [word.split("lion_fast.cli ")[1].split(" --")[0] for word in words] == [
        "study table1",
        "study table1",
        "report table1",
    ]
    assert "--device=cuda --data-dir=images" in words[0]
    assert all(str(gpu_suite.ROOT / "studies") in word for word in words)
    assert all(str(tmp_path / "studies" / "table1") in word for word in words[1:])
    assert {env["LION_FAST_COMMIT"] for _, env, _ in calls} == {"abc"}
    assert sum(seconds for *_, seconds in calls) <= gpu_suite.STAGE_SECONDS


def test_a_study_stage_whose_run_fails_or_is_cut_short_says_so(tmp_path, monkeypatch):
    args = suite_arguments(tmp_path, "study")
    for codes, outcome in (([1, 0, 0], 1), ([None, 0, 0], None), ([0, 0, 2], 1), ([0, 0, 0], 0)):
        left = iter(codes)
        monkeypatch.setattr(gpu_suite, "run_stage", lambda *_, left=left: next(left))
        assert gpu_suite.run_study("table1", args, {}) == outcome


@needs_gpu
def test_a_recorded_round_runs_every_argument_set_and_its_backward():
    device = torch.device("cuda", torch.cuda.current_device())
    with _harness.side_stream(device):
        weights = [torch.ones(64, device=device, requires_grad=True) for _ in range(3)]
        counters = [torch.zeros((), device=device) for _ in weights]
        outputs = [(weight * weight).sum() for weight in weights]

        def backward(output, weight, counter):
            counter.add_(torch.autograd.grad(output, weight, retain_graph=True)[0].mean())

        sets = list(zip(outputs, weights, counters, strict=True))
        replay = _harness.record_calls(backward, sets, 7, device)
        for counter in counters:
            counter.zero_()
        replay()
    assert [counter.item() for counter in counters] == [6.0, 4.0, 4.0]


@needs_gpu
def test_a_recorded_round_leaves_out_the_launches():
    device = torch.device("cuda", torch.cuda.current_device())
    with _harness.side_stream(device):
        x = torch.ones(1000, device=device)
        launched, recorded = (
            _harness.prepare_round(x.add_, [(1.0,)], device, graph=graph) for graph in (False, True)
        )
        assert recorded.calls * recorded.time(device) > 1e-3
        assert recorded.time(device) < launched.time(device)


@needs_gpu
def test_peak_memory_counts_what_one_call_allocates():
    device = torch.device("cuda", torch.cuda.current_device())
    held = torch.zeros(1 << 20, device=device)
    peak = _harness.peak_memory_bytes(lambda: held + 1, device)
    assert peak == held.numel() * 4
