"""Tables of results that grow by a row as each run ends, and the metrics that runs leave."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file by its columns; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, object]) -> None:
    """Add a row to the CSV file `path`, below its columns where it is new."""
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerow(row)


def windowed_accuracy(run: Path) -> list[str]:
    """Return the windowed training accuracy of every step of the run folder `run`, as written."""
    return [row["train_accuracy_windowed"] for row in read_rows(run / "metrics.csv")]
