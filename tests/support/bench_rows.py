"""Result files as the benchmarks write them, of machines that are not at hand."""

import json

from report.results import by_machine, read_results

H200 = {
    "device": "cuda", "gpu": "NVIDIA H200", "driver": "570.1", "power_limit_w": 700.0,
    "cuda": "13.0", "cudnn": 91002, "torch": "2.11.0", "triton": "3.6.0",
    "dali": "nvidia-dali-cuda130 2.4.0", "python": "3.12.3", "cpu_model": "Xeon",
    "num_threads": 16, "commit": "0123456789abcdef0123", "dirty": False,
}  # fmt: skip
CPU = H200 | {
    "device": "cpu", "gpu": None, "driver": None, "power_limit_w": None, "cudnn": None,
    "torch": "2.14.1", "triton": None, "num_threads": 2, "dirty": True,
}  # fmt: skip


def row(benchmark, seconds, op, impl, /, *, spread=0.02, rounds=40, **extra):
    """A row whose quartiles lie `spread / 2` below and above its median."""
    quartiles = {"q1": seconds * (1 - spread / 2), "q3": seconds * (1 + spread / 2)}
    setting = {"shape": "B128", "dtype": "float32", "mode": "forward"}
    extra = {"op": op, "impl": impl, **setting, "peak_memory_bytes": None, **extra}
    name = f"{op}[{'-'.join(str(v) for v in extra.values() if isinstance(v, str))}]"
    return {
        "fullname": f"bench/{benchmark}.py::test_{name}",
        "extra_info": extra,
        "stats": {"median": seconds, "rounds": rounds, **quartiles},
    }


def ratio(a, b, median, low, high, *, num_rounds=40, bound=None):
    """An entry of a row's `ratios`."""
    return {
        "a": a, "b": b, "median_ratio": median, "low": low, "high": high,
        "num_rounds": num_rounds, "confidence": 0.95, "bound": bound,
    }  # fmt: skip


def compared(benchmark, seconds_of, op, impl, ratios, **extra):
    """A row of functions timed side by side; the first is its subject."""
    subject = next(iter(seconds_of))
    return row(
        benchmark,
        seconds_of[subject],
        op,
        impl,
        subject=subject,
        median_seconds_of=seconds_of,
        ratios=ratios,
        **extra,
    )


def write(path, machine_info, rows, datetime="2026-11-21T10:00:00+00:00"):
    """Write a file as `--benchmark-json` does, up to what no one reads."""
    content = {"machine_info": machine_info, "benchmarks": rows, "datetime": datetime}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def merged(path, machine, rows):
    """The rows as read back from a file."""
    return by_machine([read_results(write(path, machine, rows))])[0].rows


def all_pictures():
    """Rows that fill the three pictures."""
    steps = [
        row("bench_step", 2e-3, "train_step", "graph", loader="resident", dtype="bf16"),
        row("bench_step", 9e-3, "train_step", "eager", loader="dali", dtype="bf16"),
        row("bench_step", 1.0, "train_step", "eager", loader="dali", dtype="bf16", shape="B512"),
        compared("bench_step", {"graph": 64e-3, "plain": 960e-3, "eager": 2.0}, "train_step",
                 "graph", [ratio("plain", "graph", 15, 14, 16)], loader="resident", dtype="bf16",
                 steps_per_call=32),
    ]  # fmt: skip
    costs = [
        compared("bench_balancing", {"lion_dg": 1e-3, "he": 1e-3, "pcgrad": 3e-3}, "balancing",
                 "eager", [ratio("lion_dg", "he", 1, 0.99, 1.01), ratio("pcgrad", "he", 3, 2, 4)]),
        compared("bench_overhead", {"lion_dg": 1e-3, "he": 1e-3}, "train_step", "eager",
                 [ratio("lion_dg", "he", 1.001, 0.999, 1.002, bound=0.01)]),
    ]  # fmt: skip
    loaders = []
    for name, steps_per_run, rate in (
        ("dali-1", 1, 1e5),
        ("dali-16", 16, 4e5),
        ("workers-2", None, 1e4),
    ):
        noted = {"loader": name, "steps_per_run": steps_per_run, "images_per_second": rate}
        impl = name.partition("-")[0]
        loaders.append(row("bench_loaders", 128 / rate, "loader", impl, **noted))
        times = {name: 128 / rate, "resident": 128 / 5e5}
        loaders.append(compared("bench_loaders", times, "loader+step", impl, [], **noted))
    return [*steps, *costs, *loaders]
