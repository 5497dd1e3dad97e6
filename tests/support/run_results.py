"""What two runs must agree on: everything they wrote but the clock."""

import csv
import json

TIME_COLUMNS = {"seconds", "images_per_second"}
TIME_KEYS = {
    "run",
    "seconds_to_target",
    "init_seconds",
    "setup_seconds",
    "train_seconds",
    "total_seconds",
    "process_seconds",
    "images_per_second",
    "images_per_second_per_device",
    "step_milliseconds_median",
    "peak_memory_mib",
    "data_wait_percent",
}


def table(run, name="metrics.csv"):
    """A run's CSV without its time columns."""
    with open(run / name, newline="", encoding="utf-8") as file:
        return [
            {k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in csv.DictReader(file)
        ]


def results(run):
    """A run's summary without its time entries."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {k: v for k, v in summary.items() if k not in TIME_KEYS}
