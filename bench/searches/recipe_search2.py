"""Search the recipe of preset fast again: fewest full-size steps' worth of work to 70 %.

What is counted is cost: a step at s of 32 pixels is (s / 32)^2 of a step at 32, times its share of
128 images. Steps at 16 and 24 pixels come first (`reduce_images`), then full size, and only steps
at full size count for the window of 100 steps whose training accuracy is to reach 70 %. The stem is
whitened (`whiten_stem_`).

Sequential halving on seeds 7 to 12, which no study uses; rule and budget were set before the first
run:

- round 1: every point of `POINTS` with seed 7, in this order, the likeliest first;
- round 2: the 4 of least cost with seeds 8 and 9 as well;
- round 3: of these the 2 of least mean cost with seeds 10, 11 and 12 as well;
- the preset takes the least mean cost over all six seeds. Where the search is cut short it takes,
  of the points with most seeds, the one of least mean cost.

A run that has cost MAX_COST without the target ends there and counts as that: it is no winner. No
point asks again about what the first search settled (batch 64, AdamW's decay, LSUV), nor about a
momentum that warms up, which no option sets.

    nice -n 10 python bench/searches/recipe_search2.py --data-dir DIR [--num 4]

Rows are added to the CSV as runs end; a point that already stands there is not run again. A run
that is killed goes on from its last save, at most SAVE_EVERY steps back. Milliseconds are no
benchmark where the machine did other things. This is a loop of its own around the package's
network, initialisation, batches, optimizer and step, in bf16 on one thread.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from lion_fast import PRESETS, TrainConfig, load_image_set
from lion_fast.data.batches import Batch, BatchSpec
from lion_fast.data.images import ImageSet
from lion_fast.data.make import make_loader
from lion_fast.data.plan import BatchPlan
from lion_fast.kernels import reduce_images
from lion_fast.training import setup_key
from lion_fast.training.machine.environment import environment
from lion_fast.training.machine.host_memory import keep_freed_memory
from lion_fast.training.machine.resolve import Resolved, resolve
from lion_fast.training.measure.validate import validate
from lion_fast.training.step.build import build
from lion_fast.training.step.history import History
from lion_fast.training.step.step import TrainStep, float32_precision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.tables import append_row, read_rows

SEEDS = (7, 8, 9, 10, 11, 12)
KEPT = (4, 2)
"""Points that go on to the second and to the third round."""
SEEDS_OF_ROUND = (SEEDS[:1], SEEDS[:3], SEEDS)
MAX_COST = 290.0
SAVE_EVERY = 50
FULL_SIDE = 32

START = replace(
    PRESETS["fast"], whiten=24, device="cpu", precision="bf16", engine="compile", loader="resident"
)
START_SIDES = "16:250,24:100"
_OTHER: dict[str, Any] = {"muon_lr": 0.06, "sides": "16:200,24:150"}
POINTS: tuple[dict[str, Any], ...] = (
    {},
    _OTHER,
    {"muon_lr": 0.08, "sides": "16:200,24:150", "lr_cooldown_steps": 500},
    {"muon_lr": 0.06, "sides": "16:200,24:150", "lr_cooldown_steps": 450, "lr_floor": 0.05},
    {**_OTHER, "muon_momentum": 0.9},
    {**_OTHER, "aux_weight": 0.0},
    {"muon_lr": 0.06},
    {"muon_lr": 0.06, "sides": "16:300,24:50"},
    {**_OTHER, "lr": 1e-2},
    {**_OTHER, "init": "lion_dg"},
    {**_OTHER, "whiten": 12},
    {**_OTHER, "label_smoothing": 0.1},
    {"muon_lr": 0.1, "sides": "16:200,24:150", "lr_cooldown_steps": 500},
    {
        "batch_size": 256, "muon_lr": 0.08, "sides": "16:100,24:75",
        "lr_cooldown_steps": 300, "window": 50,
    },
)  # fmt: skip
COLUMNS = [
    "point", "seed", "cost", "reached", "steps", "val_accuracy", "windowed_accuracy",
    "milliseconds_by_side", "precision", "torch", "cpu", "cpu_threads", "commit",
]  # fmt: skip


def name_of(point: dict[str, Any]) -> str:
    """Return a point as JSON, `{}` for the start."""
    return json.dumps(point, sort_keys=True)


def config_of(point: dict[str, Any], seed: int) -> tuple[TrainConfig, str]:
    """Return the run of a point but for its sides, and these."""
    fields = {name: value for name, value in point.items() if name != "sides"}
    return replace(START, seed=seed, **fields), point.get("sides", START_SIDES)


def side_at(sides: str, step: int) -> int:
    """Return the side in pixels of `step`, counted from 0, under sides such as 16:250,24:100."""
    for part in sides.split(","):
        side, steps = map(int, part.split(":"))
        if step < steps:
            return side
        step -= steps
    return FULL_SIDE


def cost_of(sides: str, batch_size: int, steps: int) -> float:
    """Return what the first `steps` cost, in steps of 128 images at full size."""
    pixels = sum(side_at(sides, step) ** 2 for step in range(steps))
    return pixels / FULL_SIDE**2 * batch_size / START.batch_size


@dataclass
class Bench:
    """What the runs share: the images, and compiled steps by what is baked into them."""

    images: ImageSet
    state: Path
    steps: dict[Hashable, TrainStep] = field(default_factory=dict)

    def step_of(self, config: TrainConfig, resolved: Resolved, plan: BatchPlan) -> TrainStep:
        """Return a step that begins as `config` says, compiled for an earlier run if it can be."""
        fresh = TrainStep(build(config, resolved, self.images, plan), config, resolved)
        key = setup_key(config, resolved)
        if (held := self.steps.get(key)) is not None:
            held.become(fresh)
            return held
        fresh.compile()
        self.steps[key] = fresh
        return fresh

    def run(self, point: dict[str, Any], seed: int) -> dict[str, object]:
        """Train a point to the target; return its row of the table."""
        config, sides = config_of(point, seed)
        resolved = resolve(config)
        plan = BatchPlan(self.images.num_train, config.batch_size, seed)
        step = self.step_of(config, resolved, plan)
        history = History(
            num_heads=len(list(step.model.heads)), batch_size=config.batch_size,
            window=config.window, target=config.target_accuracy,
        )  # fmt: skip
        most = 1
        while cost_of(sides, config.batch_size, most) < MAX_COST:
            most += 1
        # Reduced before the cast, as a run does it.
        spec = BatchSpec.of(
            self.images, num_steps=most, device=resolved.device, dtype=torch.float32
        )
        loader = make_loader("resident", self.images, plan, spec)
        saved = self.state / f"{POINTS.index(point)}-{seed}.pt"
        done, seconds = self._restore(saved, step, history)
        loader.seek(done)
        row = torch.zeros(step.row_width)
        with float32_precision(resolved):
            while done < most and history.target_record is None:
                started, side = time.perf_counter(), side_at(sides, done)
                images, labels = loader.next()
                images = reduce_images(images, side).to(resolved.compute_dtype)
                step(Batch(images, labels), row)
                seconds.setdefault(side, []).append(time.perf_counter() - started)
                done += 1
                if side == FULL_SIDE:
                    history.extend(row[None], sum(map(sum, seconds.values())))
                if done % SAVE_EVERY == 0:
                    self._save(saved, step, history, done, seconds)
                    print(name_of(point), seed, done, side, row[-1].item(), flush=True)
            accuracy = validate(step.model, self.images, resolved, config.batch_size).accuracy
        saved.unlink(missing_ok=True)
        facts = environment(resolved.device)
        return {
            "point": name_of(point),
            "seed": seed,
            "cost": cost_of(sides, config.batch_size, done),
            "reached": history.target_record is not None,
            "steps": done,
            "val_accuracy": accuracy,
            "windowed_accuracy": history.recent_accuracy(),
            "milliseconds_by_side": " ".join(
                f"{side}:{1000 * median(times):.0f}" for side, times in seconds.items()
            ),
            "precision": resolved.precision,
            **{name: facts[name] for name in ("torch", "cpu", "cpu_threads", "commit")},
        }

    @staticmethod
    def _save(
        path: Path, step: TrainStep, history: History, done: int, seconds: dict[int, list[float]]
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        state = {"step": step.state_dict(), "history": history.state(), "done": done}
        torch.save(state | {"seconds": seconds}, partial)
        os.replace(partial, path)

    @staticmethod
    def _restore(
        path: Path, step: TrainStep, history: History
    ) -> tuple[int, dict[int, list[float]]]:
        """Return how many steps a killed run had done, its state restored, and their seconds."""
        if not path.exists():
            return 0, {}
        state = torch.load(path)
        step.load_state_dict(state["step"])
        if len(state["history"]):
            history.load_state(state["history"])
        return state["done"], state["seconds"]


def costs_of(rows: Iterable[dict[str, str]]) -> dict[str, dict[int, float]]:
    """Return the cost of every row by point and seed; infinite where it is not the target's."""
    costs: dict[str, dict[int, float]] = {}
    for row in rows:
        cost = float(row["cost"]) if row["reached"] == "True" else float("inf")
        costs.setdefault(row["point"], {})[int(row["seed"])] = cost
    return costs


def ranked(costs: dict[str, dict[int, float]], seeds: Iterable[int]) -> list[str]:
    """Return the points that have run with all of these seeds, by mean cost over them."""
    means = {
        point: fmean(by_seed[seed] for seed in seeds)
        for point, by_seed in costs.items()
        if by_seed.keys() >= set(seeds)
    }
    return sorted(means, key=lambda point: means[point])


def to_run(costs: dict[str, dict[int, float]]) -> list[tuple[dict[str, Any], int]]:
    """Return the runs that are left of the first round that is not over; none when all are."""
    points = [name_of(point) for point in POINTS]
    for seeds, kept in zip(SEEDS_OF_ROUND, (*KEPT, 0), strict=True):
        left = [
            (json.loads(point), seed)
            for point in points
            for seed in seeds
            if seed not in costs.get(point, {})
        ]
        if left:
            return left
        points = [point for point in ranked(costs, seeds) if point in points][:kept]
    return []


def main() -> None:
    """Run what is missing and print the points, best first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--num", type=int, default=1000, help="run at most that many")
    parser.add_argument("--out", type=Path, default=Path("bench/results/recipe_search2.csv"))
    parser.add_argument("--state", type=Path, default=Path("runs/recipe_search2"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    images = load_image_set(replace(START, data_dir=options.data_dir))
    bench = Bench(images, options.state)
    for _ in range(options.num):
        left = to_run(costs_of(read_rows(options.out)))
        if not left:
            break
        append_row(options.out, COLUMNS, bench.run(*left[0]))
    costs = costs_of(read_rows(options.out))
    for seeds in reversed(SEEDS_OF_ROUND):
        for point in ranked(costs, seeds):
            print(len(seeds), round(fmean(costs[point][seed] for seed in seeds), 1), point)


if __name__ == "__main__":
    main()
