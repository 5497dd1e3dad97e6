"""Whole runs of the project on the stand-in: `stand_in_runs.py CARD FOLDER RUN...`.

A RUN is engine/precision/arch/loader with optional /option=value. Prints {run: outcome} as JSON,
where the result of a run says what was written, and how the GPU was used.
"""

import json
import os
import sys
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import stand_in_gpu
from stand_in_gpu.processes import in_own_process

MAX_STEPS, RESUMED_STEPS = 40, 51


def make_images(folder: Path) -> Path:
    """Write four classes of noise, 16x16; 500 to train on are 15 batches of 32 an epoch."""
    import numpy as np

    rng = np.random.default_rng(0)
    path = folder / "noise.npz"
    arrays = {}
    for split, num in (("train", 500), ("test", 100)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (num, 16, 16, 3), np.uint8)
        arrays[f"y_{split}"] = np.arange(num) % 4
    np.savez(path, **arrays)
    return path


def config_of(run: str, dataset: Path, out: Path) -> Any:
    from lion_fast.config import TrainConfig

    engine, precision, arch, loader, *options = run.split("/")
    given = {name: json.loads(value) for name, value in (o.split("=") for o in options)}
    settings = {
        "growth_rate": 4, "block_layers": 1, "base_width": 8, "batch_size": 32, "window": 5,
        "max_steps": MAX_STEPS, "eval_every": 18, "checkpoint_every": 20, "num_workers": 1,
        "gradient_ratio_every": 13, "aux_warmup_steps": 25, "log_every": 10,
    }  # fmt: skip
    return TrainConfig(
        dataset=str(dataset), out=out, device=os.environ.get("RUN_DEVICE", "cuda"),
        precision=precision, arch=arch, loader=loader,
        engine="graph" if engine == "graph-eager" else engine, graph_compile=engine == "graph",
        **settings | given,
    )  # fmt: skip


def train_and_resume(gpu: stand_in_gpu.Gpu, run: str, dataset: Path, out: Path) -> dict[str, Any]:
    """Train, evaluate, go on with the run folder; return what became of it."""
    import project_warnings
    from run_results import table

    from lion_fast.training import evaluate, train

    project_warnings.apply()
    config = config_of(run, dataset, out / run.replace("/", "-"))
    waits: list[str] = []
    devices: set[int] = set()
    watch_steps(gpu, waits, devices)
    first = train(config)
    first_records = gpu.records()
    evaluate(first.run, device=config.device)
    gpu.clear()
    resumed = train(replace(config, max_steps=RESUMED_STEPS), resume=first.run)
    return {
        "steps": [first.steps, resumed.steps],
        "files": sorted(path.name for path in resumed.run.iterdir()),
        "metrics": [int(row["step"]) for row in table(resumed.run)],
        "resolved": resumed.resolved,
        "summary": json.loads((resumed.run / "summary.json").read_text())["steps"],
        "waits": waits,
        "devices": sorted(devices),
        "first": usage(first_records),
        "resumed": usage(gpu.records()),
    }


def watch_steps(gpu: stand_in_gpu.Gpu, waits: list[str], devices: set[int]) -> None:
    """Note, while an engine takes steps, what the host waits for and which device is current."""
    import torch

    from lion_fast.training.step.engine import GraphEngine, StepEngine

    for engine in (GraphEngine, StepEngine):

        def run(self: Any, num_steps: int, run: Any = engine.run) -> Any:
            before = gpu.count()
            devices.add(torch.cuda.current_device())
            rows = run(self, num_steps)
            waits.extend(r.name for r in gpu.records()[before:] if r.kind == "sync")
            return rows

        engine.run = run  # type: ignore[method-assign]


def usage(records: list[stand_in_gpu.Record]) -> dict[str, Any]:
    """Return how the GPU was used: nodes of each capture, replays and launches by kind."""
    captured = Counter(record.capture for record in records if record.capture)
    return {
        "captures": list(captured.values()),
        "replays": [record.num_bytes for record in records if record.kind == "graph"],
        "kinds": Counter(record.kind for record in records),
        "ours": sorted(
            {r.name for r in records if r.name.startswith(("_deep_supervision", "_augment"))}
        ),
    }


def doctor() -> list[str]:
    from lion_fast.training.machine.doctor import doctor

    return doctor()


def import_ahead() -> None:
    """Import once, for every fork, what a run imports."""
    import torch._inductor.config

    # Inductor of torch 2.11 else asks for the GPU as it is imported, and no fork may use it then.
    torch._inductor.config.use_experimental_benchmarker = False
    for name in (
        "matplotlib.backends.backend_agg",
        "torch._inductor.compile_fx",
        "lion_fast.data.workers",
        "lion_fast.training.run",
        "lion_fast.training.folder.plots",
    ):
        import_module(name)


def main() -> int:
    card, folder, *runs = sys.argv[1:]
    gpu = stand_in_gpu.load(card)
    import_ahead()
    import stand_in_inductor

    stand_in_inductor.note_instead_of_compiling(gpu)
    dataset = make_images(Path(folder))
    outcomes = {}
    for run in runs:
        outcomes[run] = (
            in_own_process(doctor)
            if run == "doctor"
            else in_own_process(train_and_resume, gpu, run, dataset, Path(folder))
        )
    print(json.dumps(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
