"""Exported runs back into a store: runs of several machines become one study's."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lion_fast
from lion_fast.config import REMOVED, TrainConfig
from lion_fast.errors import UserError
from lion_fast.study.data import DataHere, finished, known_data, num_unknown, source_of
from lion_fast.study.export import NAMES, UNREADABLE, open_table
from lion_fast.study.grid import Study, course
from lion_fast.study.store import Store
from lion_fast.study.stored import DATA, SUMMARY_KEYS, Table

_SAME_NUMBERS = frozenset({"0.1.0", "0.2.0"})
"""Versions whose runs of one config take the same course."""
_RESOLVED = ("device", "engine", "loader", "precision", "impl", "backbone")
_OF_A_SUMMARY = frozenset(
    {
        *("steps", "target_accuracy", "window", "steps_to_target", "seconds_to_target"),
        *("init_seconds", "setup_seconds", "train_seconds", "total_seconds", "process_seconds"),
        *("train_accuracy", "val_accuracy", "val_loss", "images_per_second"),
        *("step_milliseconds_median", "data_wait_percent", "loader_host_mib", "loader_device_mib"),
        *("peak_memory_mib", "num_parameters", "num_skipped_images", "jobs", "reused"),
        *("stopped_seconds", "world_size", "images_per_second_per_device"),
        *("cost", "cost_to_target"),
    }
)
_NESTED = {"val_accuracy_per_head", "resolved", "environment"}
_WANTED = (SUMMARY_KEYS - _NESTED) | {"key", "error"}
_HEAD = re.compile(r"val_accuracy_head\d+")
_IOU = re.compile(r"val_iou_class\d+")
_PROBE = re.compile(
    r"gradient_ratio|(aux|main)_gradient_norm|aux_head\d+_(weight_norm|effective_rank)"
)
_OF_NO_TABLE = frozenset({"key", "seed", "step", *course(TrainConfig())})


class Imported(NamedTuple):
    """What became of the runs of one exported folder."""

    folder: Path
    num_taken: int
    num_held: int
    """Runs that the store had finished before: they stay as they are."""
    num_others: int
    """Runs that are none of the study's, or that failed."""
    num_unknown: int = 0
    """Runs taken that do not say what data they saw."""

    def line(self) -> str:
        """Return it in words."""
        counts = {"taken": self.num_taken, "here already": self.num_held}
        counts["not of this study or failed"] = self.num_others
        told = ", ".join(f"{number} {words}" for words, number in counts.items() if number)
        unknown = f"; data not known of {self.num_unknown}" if self.num_unknown else ""
        return f"{self.folder}: {told}{unknown}"


def import_csv(study: Study, out: Path, folders: Sequence[Path]) -> list[Imported]:
    """Add the runs of `study` among those that `export_csv` wrote to `folders`, to its store.

    A run is known by its key, the hash of its config, so that none enters that the study would not
    itself have made. Its machine and versions come with it. Raises UserError on what is no whole
    export, on runs of another version or of other data than those here or in the store, and where
    no run at all is of the study; of a folder that is refused no run is taken.
    """
    exports = {folder: list(_read(folder / NAMES[0], _WANTED)) for folder in folders}
    for folder, summaries in exports.items():
        _check_version(folder, summaries)
    keys = {cell.key for cell in study.cells()}
    if not keys & {row["key"] for summaries in exports.values() for row in summaries}:
        raise UserError(
            f"no run of {study.name} in {', '.join(map(str, folders))}: give the flags that it ran"
            " with, such as --engine, --max-steps or --stop-at-target"
        )
    with Store.create(study, out) as store:
        here = DataHere()
        return [_import(study, store, folder, rows, here) for folder, rows in exports.items()]


def _check_version(folder: Path, summaries: Sequence[dict[str, str]]) -> None:
    versions = {version for row in summaries if (version := row.get("lion-fast"))}
    same = _SAME_NUMBERS if lion_fast.__version__ in _SAME_NUMBERS else {lion_fast.__version__}
    if others := sorted(versions - same):
        raise UserError(
            f"{folder} was exported from lion-fast {others[0]} and this is {lion_fast.__version__}:"
            " its numbers may differ by that"
        )


def _import(
    study: Study,
    store: Store,
    folder: Path,
    summaries: Sequence[dict[str, str]],
    here: DataHere,
) -> Imported:
    _check_data(study, store, folder, summaries, here)
    wanted = {cell.key: stored for cell, stored in store.of(study) if stored is not None}
    counts: Counter[str] = Counter()
    taken = {}
    for row in summaries:
        stored = wanted.get(row["key"])
        if stored is None or row["error"]:
            counts["others"] += 1
        elif stored.summary is not None:
            counts["held"] += 1
        else:
            with _named(folder / NAMES[0], row["key"]):
                taken[row["key"]] = stored.id, _summary(row, stored.config)
    steps = _steps(folder / NAMES[1], taken.keys())
    whole = []
    for key, (cell_id, summary) in taken.items():
        with _named(folder / NAMES[1], key):
            tables = _tables(steps[key])
            if len(steps[key]) < summary["steps"]:
                raise ValueError(f"{len(steps[key])} of its {summary['steps']} steps are there")
        whole.append((cell_id, summary, tables))
    for cell_id, summary, tables in whole:
        store.finish(cell_id, summary, tables)
    unknown = num_unknown(summary for _, summary, _ in whole)
    return Imported(folder, len(taken), counts["held"], counts["others"], unknown)


def _check_data(
    study: Study,
    store: Store,
    folder: Path,
    summaries: Sequence[dict[str, str]],
    here: DataHere,
) -> None:
    """Raise UserError where runs of the export saw other data than the store's, or those here."""
    cells = store.of(study)
    known = known_data([(cell.config, summary) for cell, summary in finished(cells)], store.path)
    cell_of = {cell.key: cell for cell, _ in cells}
    for row in summaries:
        cell, told = cell_of.get(row["key"]), row.get(DATA)
        if cell is None or row["error"] or not told:
            continue
        now = here.of(cell.config)
        if now not in (None, told):
            whose = f"{cell.config.dataset} is here"
        elif known.setdefault(source_of(cell.config), told) != told:
            whose = f"runs in {store.path} or of the same import have seen"
        else:
            continue
        raise UserError(
            f"{folder}: run {row['key']}, {cell.label} seed {cell.config.seed}, is of other data"
            f" than {whose}: give another --out, or run it anew here"
        )


def _summary(row: dict[str, str], config: TrainConfig) -> dict[str, Any]:
    """Return a run's summary; what is neither its own, its config's nor resolved is environment."""
    heads = [name for name in row if _HEAD.fullmatch(name) and row[name]]
    classes = [name for name in row if _IOU.fullmatch(name)]
    known = {
        DATA,
        *_OF_A_SUMMARY,
        *_RESOLVED,
        *heads,
        *classes,
        *course(config),
        *REMOVED,
        "key",
        "error",
        "seed",
    }
    environment = {name for name in row if name not in known and not _HEAD.fullmatch(name)}
    return {
        **{name: _number_or_none(row[name]) for name in row if name in _OF_A_SUMMARY},
        "steps": int(row["steps"]),
        **({DATA: row[DATA]} if row.get(DATA) else {}),
        "val_accuracy_per_head": [float(row[name]) for name in heads],
        **_iou_of(row, classes),
        "resolved": {name: row[name] for name in _RESOLVED if row.get(name)},
        "environment": {name: _value(row[name]) for name in environment if row[name]},
        "config": config.to_dict(),
    }


def _iou_of(row: dict[str, str], classes: Sequence[str]) -> dict[str, Any]:
    """Return the entry of a run on masks: of its classes, the last of which has pixels."""
    iou = [float(row[name]) if row[name] else None for name in classes]
    while iou and iou[-1] is None:
        iou.pop()
    return {"val_iou_per_class": iou} if iou else {}


def _steps(path: Path, keys: Iterable[str]) -> dict[str, list[dict[str, str]]]:
    steps: dict[str, list[dict[str, str]]] = {key: [] for key in keys}
    for row in _read(path, frozenset({"key", "step"})):
        if row["key"] in steps:
            steps[row["key"]].append(row)
    return steps


def _tables(steps: Sequence[dict[str, str]]) -> dict[str, Table]:
    """Return metrics, validation and probes, which an export puts side by side."""
    columns: dict[str, dict[str, str]] = {"metrics": {}, "validation": {}, "probes": {}}
    for name in steps[0] if steps else ():
        if name.startswith("val_"):
            columns["validation"][name] = name.removeprefix("val_")
        elif _PROBE.fullmatch(name):
            columns["probes"][name] = name
        elif name not in _OF_NO_TABLE:
            columns["metrics"][name] = name
    return {
        name: Table(
            ["step", *named.values()],
            [
                [int(step["step"]), *(float(step[c]) if step[c] else None for c in named)]
                for step in steps
                if any(step[c] for c in named)
            ],
        )
        for name, named in columns.items()
        if named
    }


def _number(text: str) -> int | float:
    """Return what an export wrote as a number or a truth value; raises ValueError."""
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text)
    except ValueError:
        return float(text)


def _number_or_none(text: str) -> int | float | None:
    return _number(text) if text else None


def _value(text: str) -> int | float | str:
    """Return what an export wrote, a number or a word."""
    try:
        return _number(text)
    except ValueError:
        return text


@contextmanager
def _named(path: Path, key: str) -> Iterator[None]:
    """Name the file and the run of a value that is none."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"cannot take run {key} of {path}: {error}: export it anew") from None


def _read(path: Path, wanted: frozenset[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of an export, which has the columns `wanted` at least; raises UserError."""
    try:
        with open_table(path) as file:
            rows = csv.reader(file)
            columns = next(rows, [])
            if missing := wanted - set(columns):
                raise UserError(f"{path} is no export of a study: it has no column {min(missing)}")
            for row in rows:
                if len(row) != len(columns):
                    raise UserError(
                        f"line {rows.line_num} of {path} has {len(row)} values and the first"
                        f" {len(columns)} names: it was cut or edited; export it anew"
                    )
                yield dict(zip(columns, row, strict=True))
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the export {path}: {reason}") from None
