"""What a run pays before its first step: compilation and capture, cold and warm; and imports.

Every row is a fresh process. A cold one finds empty caches of Inductor and Triton, a warm one those
that the cold one left. The network is the paper's, on the embedded 16x16 digits, so that no data
set is needed; in quick mode it is tiny and not compiled.
"""

import pytest

from support.processes import run_python, state, stated, train_afresh

BENCHMARK = {
    "title": "Set-up",
    "order": 90,
    # By its subject it belongs to "step", whose many compilations leave it no time.
    "stage": "kernels",
}

# Engine, and what to tell the trainer beside it.
ENGINES = {
    "compile": ["--engine", "compile"],
    "graph": ["--engine", "graph"],
    "graph_without_compile": ["--engine", "graph", "--no-graph-compile"],
}
QUICK = ["--engine", "eager", "--growth-rate", 2, "--block-layers", 1, "--batch-size", 8]
COMMANDS = {
    "import lion_fast": (["-c", "import lion_fast"], 3.0),
    "import lion_fast.training": (["-c", "import lion_fast.training"], None),
    "lion-fast --help": (["-m", "lion_fast.cli", "--help"], 2.0),
    "lion-fast train --help": (["-m", "lion_fast.cli", "train", "--help"], 2.0),
}
"""Arguments of the interpreter, and the seconds that are the goal."""


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Return a function that gives an engine an environment with caches of its own."""
    made = {}

    def get(engine: str) -> dict[str, str]:
        if engine not in made:
            folder = tmp_path_factory.mktemp("caches")
            made[engine] = {
                "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
                "TRITON_CACHE_DIR": str(folder / "triton"),
            }
        return made[engine]

    return get


@stated
@pytest.mark.parametrize("cache", ["cold", "warm"])  # in this order: cold fills what warm finds
@pytest.mark.parametrize("engine", ENGINES)
def test_setup(benchmark, device, caches, rehearsal, tmp_path, engine: str, cache: str) -> None:
    """State the setup seconds of a run of one step."""
    if engine != "compile" and device.type == "cpu":
        pytest.skip("engine graph needs a CUDA GPU")
    if cache == "warm" and (benchmark.disabled or engine == "graph_without_compile"):
        pytest.skip("there is nothing in its cache: quick mode and eager graphs compile nothing")
    flags = QUICK if benchmark.disabled else ENGINES[engine]
    flags = [*flags, "--block-layers", 1] if rehearsal else flags
    summary, process_seconds = train_afresh(
        "--dataset", "digits", "--max-steps", 1, "--device", device, *flags,
        folder=tmp_path, env=caches(engine),
    )  # fmt: skip
    config, resolved = summary["config"], summary["resolved"]
    state(
        benchmark,
        [summary["setup_seconds"]],
        op="setup",
        impl=engine,
        shape=f"{config['arch']} B{config['batch_size']}x3x16x16",
        dtype=resolved["precision"],
        mode=cache,
        loader=resolved["loader"],
        init_seconds=summary["init_seconds"],
        process_seconds=process_seconds,
    )


@stated
@pytest.mark.parametrize("command", COMMANDS)
def test_start(benchmark, rehearsal, command: str) -> None:
    """State the seconds of a process that only starts."""
    arguments, goal = COMMANDS[command]
    times = 1 if benchmark.disabled or rehearsal else 4
    seconds = [run_python(*arguments).seconds for _ in range(times)]
    state(
        benchmark,
        seconds[-3:],  # the first may have compiled bytecode
        op="start",
        impl=command,
        shape="",
        dtype="",
        mode="process",
        goals={"seconds": f"below {goal}"} if goal else {},
    )
