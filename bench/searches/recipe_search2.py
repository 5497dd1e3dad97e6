"""Search the recipe of preset fast again: the least computation to 70 % of CIFAR-10.

What is counted is cost (`Summary.cost_to_target`): steps at 32 pixels that compute as much, in
steps of 128 images. Steps at 16 and 24 pixels come first (`resolutions`), and the stem starts as
the whitening of the data's patches (`whiten`). Sequential halving on seeds 7 to 12, which no study
uses; rule and budget were set before the first run:

- round 1: every point of `POINTS` with seed 7;
- round 2: the 4 of least cost with seeds 8 and 9 as well;
- round 3: of these the 2 of least mean cost with seeds 10, 11 and 12 as well;
- preset `fast` takes the one of least mean cost over the six seeds. Where the search is cut short
  it takes, of the points that have run with most seeds, the one of least mean cost.

A run that has cost MAX_COST without the target ends there, and is no winner. No point asks again
what the first search settled (batches of 64, AdamW's decay, LSUV), nor about a momentum that warms
up, which no option sets.

    OMP_NUM_THREADS=1 nice -n 10 python bench/searches/recipe_search2.py --data-dir DIR

A round is a study: started again, it goes on where it was killed, in the middle of a run. The CSV
holds every finished run. Its milliseconds are no benchmark where the machine did other things.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from lion_fast import TrainConfig
from lion_fast.report.results import Run, read_study
from lion_fast.resolutions import Resolutions
from lion_fast.study.grid import Study
from lion_fast.study.runner import run_study

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.tables import append_row

SEEDS_OF_ROUND = ((7,), (7, 8, 9), (7, 8, 9, 10, 11, 12))
KEPT = (4, 2)
"""Points that go on to the second and to the third round."""
MAX_COST = 290
FULL_SIDE = 32
BATCH_SIZE = 128

START = TrainConfig(
    dataset="cifar10",
    init="he",
    whiten=24,
    aux_weight=0.1,
    optimizer="muon",
    weight_decay=0.0,
    muon_lr=0.04,
    schedule="linear",
    lr_cooldown_steps=600,
    lr_floor=0.1,
    resolutions="16:250,24:100",
    stop_at_target=True,
    checkpoint_every=50,
    precision="bf16",
    engine="compile",
)
_OTHER: dict[str, Any] = {"muon_lr": 0.06, "resolutions": "16:200,24:150"}
POINTS: tuple[dict[str, Any], ...] = (
    {},
    _OTHER,
    {**_OTHER, "muon_lr": 0.08, "lr_cooldown_steps": 500},
    {**_OTHER, "lr_cooldown_steps": 450, "lr_floor": 0.05},
    {**_OTHER, "muon_momentum": 0.9},
    {**_OTHER, "aux_weight": 0.0},
    {"muon_lr": 0.06},
    {"muon_lr": 0.06, "resolutions": "16:300,24:50"},
    {**_OTHER, "lr": 1e-2},
    {**_OTHER, "init": "lion_dg"},
    {**_OTHER, "whiten": 12},
    {**_OTHER, "label_smoothing": 0.1},
    {**_OTHER, "muon_lr": 0.1, "lr_cooldown_steps": 500},
    {
        "muon_lr": 0.08, "resolutions": "16:100,24:75", "batch_size": 256, "window": 50,
        "lr_cooldown_steps": 300,
    },
)  # fmt: skip
FIELDS = tuple(dict.fromkeys(name for point in POINTS for name in point))
COLUMNS = [
    "point", "seed", "cost_to_target", "steps_to_target", "steps", "val_accuracy",
    "step_milliseconds", "precision", "torch", "cpu", "cpu_threads", "commit",
]  # fmt: skip


def name_of(point: dict[str, Any]) -> str:
    """Return a point as JSON, `{}` for the start."""
    return json.dumps(point, sort_keys=True)


def config_of(point: dict[str, Any]) -> TrainConfig:
    """Return the run of a point, as long as its cost may be."""
    config = replace(START, **point)
    course, share = Resolutions.parse(config.resolutions), config.batch_size / BATCH_SIZE
    most = int(MAX_COST / share - course.cost(course.num_reduced, FULL_SIDE))
    return replace(config, max_steps=course.num_reduced + most)


def study_of(points: Iterable[dict[str, Any]], seeds: tuple[int, ...], base: TrainConfig) -> Study:
    """Return the runs of these points, seed by seed."""
    configs = [config_of(point) for point in points]
    return Study(
        name="recipe_search2",
        title="The recipe of preset fast, searched again",
        base=base,
        variants=tuple(
            {name: getattr(config, name) for name in (*FIELDS, "max_steps")} for config in configs
        ),
        seeds=seeds,
    )


def cost_of(run: Run) -> float:
    """Return the cost to the target in steps of 128 images; infinite where it was not reached."""
    cost = run.summary["cost_to_target"]
    return float("inf") if cost is None else cost * run.config.batch_size / BATCH_SIZE


def best_of(points: list[dict[str, Any]], runs: Iterable[Run], num: int) -> list[dict[str, Any]]:
    """Return the `num` points of least mean cost over their runs, best first."""
    costs: dict[str, list[float]] = {name_of(point): [] for point in points}
    for run in runs:
        costs[point_of(run.config)].append(cost_of(run))
    return sorted(points, key=lambda point: fmean(costs[name_of(point)]))[:num]


def point_of(config: TrainConfig) -> str:
    """Return the name of the point that a run is of."""
    return name_of(
        {
            name: getattr(config, name)
            for name in FIELDS
            if getattr(config, name) != getattr(START, name)
        }
    )


def write_table(path: Path, runs: Iterable[Run]) -> None:
    """Write a row for every finished run."""
    path.unlink(missing_ok=True)
    for run in runs:
        facts = run.summary["environment"]
        row = {
            "point": point_of(run.config),
            "seed": run.config.seed,
            "cost_to_target": "" if (cost := cost_of(run)) == float("inf") else cost,
            **{name: run.summary[name] for name in ("steps_to_target", "steps", "val_accuracy")},
            "step_milliseconds": round(run.summary["step_milliseconds_median"], 1),
            "precision": run.summary["resolved"]["precision"],
            **{name: facts[name] for name in ("torch", "cpu", "cpu_threads", "commit")},
        }
        append_row(path, COLUMNS, row)


def main() -> None:
    """Run what is missing and write the table, also when stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("bench/results/recipe_search2.csv"))
    parser.add_argument("--runs", type=Path, default=Path("studies"))
    options = parser.parse_args()
    base = replace(START, data_dir=options.data_dir)
    points = list(POINTS)
    for seeds, num in zip(SEEDS_OF_ROUND, (*KEPT, 1), strict=True):
        study = study_of(points, seeds, base)
        try:
            outcome = run_study(study, options.runs)
        finally:
            # Of all points: what a round leaves aside stays in the table.
            every = study_of(POINTS, SEEDS_OF_ROUND[-1], base)
            write_table(options.out, read_study(every, options.runs).runs)
        if outcome.num_failed:
            raise SystemExit(f"{outcome.num_failed} runs failed: start again")
        points = best_of(points, read_study(study, options.runs).runs, num)
        print(*map(name_of, points), sep="\n", flush=True)


if __name__ == "__main__":
    main()
