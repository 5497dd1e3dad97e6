"""The run folder: plain JSON, CSV and text, readable without torch."""

import csv
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.output import exact_json
from lion_fast.places import place
from lion_fast.training.folder.files import LOCK, DiskError, disk_advice, locked, write_atomically

_CONFIG = "config.json"
_MOST_BYTES = 150
"""Of a data set's name in that of a run folder."""


class RunFolder:
    """Writes what a run leaves behind; files are whole or absent, CSVs at most cut short."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    @contextmanager
    def create(cls, config: TrainConfig) -> Iterator["RunFolder"]:
        """Make `<out>/<time>-<dataset>-<arch>-<init>-s<seed>/`, with a config.json, and hold it.

        Where an exception ends the block before anything else was written, the folder goes too.
        """
        # A name has 255 bytes at most, and the rest of this one wants some.
        dataset = os.fsencode(Path(config.dataset).stem)[:_MOST_BYTES].decode(errors="ignore")
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name = f"{stamp}-{dataset}-{config.arch}-{config.init}-s{config.seed}"
        out = Path(config.out)
        folder = cls(out / name)
        try:
            out.mkdir(parents=True, exist_ok=True)
            for attempt in range(1, 1000):
                try:
                    folder.path.mkdir()
                    break
                except FileExistsError:
                    folder = cls(out / f"{name}.{attempt}")
        except OSError as error:
            raise UserError(f"cannot make a run folder in {out}: {error.strerror}") from None
        try:
            with locked(folder.path):
                folder._write_first_config(config.to_dict())
                yield folder
        except BaseException:
            folder._remove_if_bare()
            raise

    @classmethod
    def open(cls, path: Path | str) -> tuple["RunFolder", TrainConfig]:
        """Return an existing run folder and the config that its config.json holds."""
        path = place(path)
        file = path / _CONFIG
        try:
            values = json.loads(file.read_text(encoding="utf-8-sig"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} is not a run folder: it has no config.json") from None
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise UserError(f"{file} is not valid JSON: restore it or start again") from None
        try:
            return cls(path), TrainConfig.from_dict(values)
        except (TypeError, UserError) as error:
            raise UserError(f"{file}: {error}") from None

    def write_config(self, values: dict[str, Any]) -> None:
        """Write config.json from what `TrainConfig.to_dict` returned."""
        self.write_json(_CONFIG, values)

    def _write_first_config(self, values: dict[str, Any]) -> None:
        try:
            self.write_config(values)
        except DiskError as error:
            # Nothing is there to resume: the folder goes.
            raise UserError(
                f"cannot make a run folder: {error.reason}: {error.remedy} first"
            ) from None

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as JSON under `name`, atomically; raises DiskError."""
        self.write_text(name, exact_json(value, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write `text` under `name`, atomically; raises DiskError."""
        with disk_advice(self.path / name):
            write_atomically(self.path / name, lambda file: file.write(text.encode()))

    def _remove_if_bare(self) -> None:
        left = {entry.name for entry in self.path.iterdir()}
        if left <= {_CONFIG, LOCK}:
            for name in left:
                (self.path / name).unlink()
            self.path.rmdir()


class CsvLog:
    """A CSV file that grows by rows and can be rewritten whole on resume; raises DiskError."""

    def __init__(
        self, path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]] = ()
    ) -> None:
        self._path = path
        self._broken = False
        with disk_advice(path):
            # Rewriting drops rows that a killed run wrote after its last checkpoint.
            self._file = open(path, "w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        with self._unless_broken():
            self._writer.writerow(columns)
            self._writer.writerows(rows)
            self._file.flush()

    def append(self, row: Sequence[object]) -> None:
        """Add one row; it reaches the disk at the next flush."""
        if not self._broken:
            with self._unless_broken():
                self._writer.writerow(row)

    def flush(self) -> None:
        """Hand buffered rows to the operating system."""
        if not self._broken:
            with self._unless_broken():
                self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        if not self._broken:
            with self._unless_broken():
                self._file.close()

    @contextmanager
    def _unless_broken(self) -> Iterator[None]:
        """Fail once: what comes after the first failure, a last checkpoint above all, goes on."""
        try:
            with disk_advice(self._path):
                yield
        except DiskError:
            self._broken = True
            # What is buffered cannot be written; closing would try it again.
            with suppress(OSError):
                self._file.close()
            raise
