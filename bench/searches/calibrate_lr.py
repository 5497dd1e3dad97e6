"""Choose the paper preset's learning rate: the paper gives none that survived in its text.

For every rate, He-init DenseNet-DS trains on CIFAR-10 until its windowed training accuracy reaches
70 % or `--max-steps` are done. The rate whose crossing lies nearest the paper's 1,203-1,225 steps
(its Table 7) is the preset's.

    python bench/searches/calibrate_lr.py --data-dir DIR [--engine compile] [--lr 1e-3 3e-3]

Rows are added to the CSV as runs end; a rate that already stands there for the same seed is not run
again.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from lion_fast import PRESETS, TrainConfig, train
from lion_fast.training.screen.console import Plain

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.tables import append_row, read_rows, windowed_accuracy

MILESTONES = (200, 400, 800, 1100)
"""Steps at which the windowed accuracy is noted."""
COLUMNS = [
    "lr",
    "seed",
    "init",
    "steps_to_target",
    *(f"accuracy_at_{step}" for step in MILESTONES),
    "steps",
    "engine",
    "torch",
    "commit",
]


def measure(config: TrainConfig) -> dict[str, object]:
    """Train as `config` says; return one row of the table."""
    summary = train(config, console=Plain())
    windowed = windowed_accuracy(summary.run)
    row = {
        "lr": config.lr,
        "seed": config.seed,
        "init": config.init,
        "steps_to_target": summary.steps_to_target,
        "steps": summary.steps,
        "engine": summary.resolved["engine"],
        "torch": summary.environment["torch"],
        "commit": summary.environment["commit"],
    }
    for step in MILESTONES:
        row[f"accuracy_at_{step}"] = windowed[step - 1] if step <= len(windowed) else ""
    return row


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 3e-3, 5e-3, 1e-2])
    parser.add_argument("--init", nargs="+", default=["he"])
    parser.add_argument("--seed", type=int, nargs="+", default=[42])
    parser.add_argument("--max-steps", type=int, default=1600)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--out", type=Path, default=Path("bench/results/lr_calibration.csv"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    done = {(float(r["lr"]), int(r["seed"]), r["init"]) for r in read_rows(options.out)}
    for seed in options.seed:
        for lr in options.lr:
            for init in options.init:
                if (lr, seed, init) in done:
                    continue
                config = replace(
                    PRESETS["paper"],
                    data_dir=options.data_dir,
                    lr=lr,
                    seed=seed,
                    init=init,
                    engine=options.engine,
                    max_steps=options.max_steps,
                    stop_at_target=True,
                    out=options.runs,
                )
                row = measure(config)
                append_row(options.out, COLUMNS, row)
    print(options.out.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
