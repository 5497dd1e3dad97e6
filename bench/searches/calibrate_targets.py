"""Choose the targets of the reduced studies, before any of their runs: one He-init run a setting.

A setting is a data set of so many classes on ResNet-DS of `base_width` 16. Its target is the
training accuracy over the last 100 steps at step 300, rounded down to a whole per cent, so that a
study's run of 600 steps has twice that long to get there. The seed is none of a study's.

    python bench/searches/calibrate_targets.py --data-dir DIR [--engine compile]

Rows are added to the CSV as runs end; a setting that already stands there is not run again.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lion_fast import PRESETS, TrainConfig, train
from lion_fast.training.screen.console import Plain

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.tables import append_row, read_rows, windowed_accuracy

BASE_WIDTH = 16
NUM_STEPS = 300
SEED = 7
COLUMNS = [
    *("dataset", "num_classes", "target_accuracy", "accuracy_at_300", "accuracy_at_200"),
    *("step_milliseconds_median", "base_width", "init", "seed", "engine", "torch", "commit"),
]


class Setting(NamedTuple):
    """Images to train on."""

    dataset: str
    num_classes: int


SETTINGS = (
    Setting("cifar10", 10),
    *(Setting("cifar100", num_classes) for num_classes in (10, 100, 20, 50)),
)


def config_of(setting: Setting, **execution: object) -> TrainConfig:
    """Return the run that decides the target of a setting."""
    return replace(
        PRESETS["paper"],
        dataset=setting.dataset,
        num_classes=setting.num_classes,
        arch="resnet_ds",
        base_width=BASE_WIDTH,
        init="he",
        seed=SEED,
        max_steps=NUM_STEPS,
        **execution,  # type: ignore[arg-type]
    )


def target_of(accuracy: float) -> float:
    """Return an accuracy rounded down to a whole per cent."""
    return math.floor(100 * accuracy) / 100


def measure(setting: Setting, config: TrainConfig) -> dict[str, object]:
    """Train; return one row of the table."""
    summary = train(config, console=Plain())
    windowed = windowed_accuracy(summary.run)
    return {
        **setting._asdict(),
        "target_accuracy": target_of(float(windowed[-1])),
        "accuracy_at_300": windowed[-1],
        "accuracy_at_200": windowed[199],
        "step_milliseconds_median": summary.step_milliseconds_median,
        "base_width": config.base_width,
        "init": config.init,
        "seed": config.seed,
        "engine": summary.resolved["engine"],
        "torch": summary.environment["torch"],
        "commit": summary.environment["commit"],
    }


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--out", type=Path, default=Path("bench/results/target_calibration.csv"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    done = {(row["dataset"], int(row["num_classes"])) for row in read_rows(options.out)}
    for setting in SETTINGS:
        if setting in done:
            continue
        config = config_of(
            setting, data_dir=options.data_dir, engine=options.engine, out=options.runs
        )
        row = measure(setting, config)
        append_row(options.out, COLUMNS, row)
    print(options.out.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
