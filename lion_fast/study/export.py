"""A study as CSV: one file of summaries, one of every step's metrics.

`xz -9e metrics.csv` makes the larger one a quarter; it is read where it is.
"""

import csv
import lzma
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from lion_fast.errors import UserError
from lion_fast.study.grid import Study, course
from lion_fast.study.store import Store

NAMES = ("summaries.csv", "metrics.csv")

UNREADABLE = (OSError, UnicodeDecodeError, csv.Error, lzma.LZMAError, EOFError)
"""What reading a table may raise."""


def open_table(path: Path) -> IO[str]:
    """Open a table of an export to read; where it is not there, what xz made of it."""
    if not path.exists() and packed(path).exists():
        return lzma.open(packed(path), "rt", newline="", encoding="utf-8-sig")
    return open(path, newline="", encoding="utf-8-sig")


def packed(path: Path) -> Path:
    """Return the path of what xz makes of a file."""
    return path.with_name(f"{path.name}.xz")


def export_csv(study: Study, out: Path, folder: Path, *, force: bool = False) -> list[Path]:
    """Write summaries.csv and metrics.csv of the finished and failed runs; return their paths.

    In summaries.csv every config field has a column; where a run decided an `auto`, that is shown.
    In metrics.csv validations (`val_` columns) and gradient probes stand in the row of their step.
    Raises UserError where `folder` holds anything but an earlier export of the study, unless
    `force`.
    """
    if not force:
        _check_free(folder, {cell.key for cell in study.cells()})
    with Store.open(study.folder(out)) as store:
        store.check_runs_of(study)
        summaries, metrics = [], []
        for cell, stored in store.of(study):
            if stored is None or not (stored.summary or stored.error):
                continue
            named = {"key": cell.key, **cell.variant, "seed": cell.config.seed}
            results = named | {"error": stored.error} | _flat(stored.summary or {})
            summaries.append({**results, **_absent_from(results, course(cell.config))})
            metrics += [named | row for row in _steps(store, stored.id)]
    paths = [folder / name for name in NAMES]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, rows in zip(paths, (summaries, metrics), strict=True):
            _write(path, rows)
            packed(path).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    return paths


def _check_free(folder: Path, keys: set[str]) -> None:
    try:
        own = {*NAMES, *(f"{name}.xz" for name in NAMES)}
        others = sorted(path.name for path in folder.iterdir() if path.name not in own)
        if others:
            raise UserError(
                f"{folder} holds {others[0]} already: give another --export, or --force to write"
                f" {' and '.join(NAMES)} beside it"
            )
        with open_table(folder / NAMES[0]) as file:
            foreign = {row.get("key") for row in csv.DictReader(file)} - keys
    except FileNotFoundError:
        return
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write to {folder}: {reason}") from None
    if foreign:
        raise UserError(
            f"{folder / NAMES[0]} holds other runs than this study's: give another --export, or"
            " --force to replace it"
        )


def _absent_from(row: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in row}


def _flat(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary without its config and folder, with nested entries as columns."""
    flat: dict[str, Any] = {}
    for name, value in summary.items():
        if name == "val_accuracy_per_head":
            flat |= {f"val_accuracy_head{head}": accuracy for head, accuracy in enumerate(value)}
        elif name in ("resolved", "environment"):
            flat |= value
        elif name not in ("run", "config"):
            flat[name] = value
    return flat


def _steps(store: Store, cell_id: int) -> Iterable[dict[str, Any]]:
    """Return one row per step of a run: metrics, validation and probes side by side."""
    steps: dict[Any, dict[str, Any]] = {}
    for name, prefix in (("metrics", ""), ("validation", "val_"), ("probes", "")):
        columns, rows = store.table(name, cell_id)
        for step, *values in rows:
            named = {f"{prefix}{c}": v for c, v in zip(columns[1:], values, strict=True)}
            steps.setdefault(step, {"step": step}).update(named)
    return steps.values()


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = dict.fromkeys(name for row in rows for name in row)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
