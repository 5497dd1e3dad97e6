"""A CPU step that keeps freed memory, against one that gives it back to the system.

Fresh processes take turns, in balanced order. The network is the paper's, compiled, on the embedded
16x16 digits in batches of 512: its activations are as large as those of 128 CIFAR images.
"""

from statistics import median

import pytest

from support.processes import state, stated, train_afresh

BENCHMARK = {
    "title": "Memory of the CPU",
    "order": 94,
    "stage": "overhead",
    "ours": ("kept",),
}

BATCH_SIZE, NUM_STEPS, ROUNDS = 512, 24, 4
# `keep_freed_memory` leaves an allocator alone that the environment sets, here to what it is.
ENVIRONMENTS = {"kept": {}, "given back": {"MALLOC_PERTURB_": "0"}}
COMPILED = ["--engine", "compile"]
TINY = ["--engine", "eager", "--growth-rate", "2", "--block-layers", "1"]


@stated
def test_a_step_with_freed_memory_kept(benchmark, device, tmp_path) -> None:
    """State the seconds of a step, and their ratio to those that return freed memory."""
    if device.type != "cpu":
        pytest.skip("on a GPU, PyTorch's own allocator keeps what is freed")
    steps, rounds, extra = NUM_STEPS, ROUNDS, COMPILED
    if benchmark.disabled:
        steps, rounds, extra = 2, 1, TINY
    flags = ["--dataset", "digits", "--device", "cpu", "--checkpoint-every", "0"]
    flags += ["--batch-size", str(BATCH_SIZE), "--max-steps", str(steps), *extra]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ENVIRONMENTS}
    for number in range(rounds):
        for name in sorted(ENVIRONMENTS, reverse=bool(number % 2)):
            summary, _ = train_afresh(*flags, folder=tmp_path, env=ENVIRONMENTS[name])
            runs[name].append(summary)
    seconds = {
        name: [summary["step_milliseconds_median"] / 1000 for summary in summaries]
        for name, summaries in runs.items()
    }
    peak = {
        name: median(summary["peak_memory_mib"] for summary in summaries)
        for name, summaries in runs.items()
    }
    state(
        benchmark,
        seconds["kept"],
        op="step",
        impl="kept",
        shape=f"densenet_ds B{BATCH_SIZE}x3x16x16",
        dtype="fp32",
        mode="freed memory",
        seconds_given_back=seconds["given back"],
        ratio=median(seconds["kept"]) / median(seconds["given back"]),
        peak_memory_mib=peak,
    )
