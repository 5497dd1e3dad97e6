"""The run folder: plain JSON, CSV and text, readable without torch."""

import csv
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.training.files import write_atomically


class RunFolder:
    """Writes what a run leaves behind; files are whole or absent, CSVs at most cut short."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, config: TrainConfig) -> "RunFolder":
        """Make `<out>/<time>-<dataset>-<arch>-<init>-s<seed>/` and write its config.json."""
        dataset = Path(config.dataset).stem
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name = f"{stamp}-{dataset}-{config.arch}-{config.init}-s{config.seed}"
        path = config.out / name
        try:
            config.out.mkdir(parents=True, exist_ok=True)
            for attempt in range(1, 1000):
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    path = config.out / f"{name}.{attempt}"
        except OSError as error:
            raise UserError(f"cannot make a run folder in {config.out}: {error.strerror}") from None
        folder = cls(path)
        folder.write_json("config.json", config.to_dict())
        return folder

    @classmethod
    def reopen(cls, path: Path, config: TrainConfig) -> "RunFolder":
        """Return an existing run folder, whose config.json from now on holds `config`."""
        folder = cls(path)
        folder.write_json("config.json", config.to_dict())
        return folder

    @classmethod
    def open(cls, path: Path) -> tuple["RunFolder", TrainConfig]:
        """Return an existing run folder and the config it was started with."""
        try:
            values = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path} is not a run folder: it has no config.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise UserError(
                f"{path / 'config.json'} is not valid JSON: restore it or start again"
            ) from None
        return cls(path), TrainConfig.from_dict(values)

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as JSON under `name`, atomically."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write `text` under `name`, atomically."""
        write_atomically(self.path / name, lambda file: file.write(text.encode()))


class CsvLog:
    """A CSV file that grows by rows and can be rewritten whole on resume."""

    def __init__(
        self, path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]] = ()
    ) -> None:
        # Rewriting drops rows that a killed run wrote after its last checkpoint.
        self._file = open(path, "w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._writer.writerow(columns)
        self._writer.writerows(rows)
        self.flush()

    def append(self, row: Sequence[object]) -> None:
        """Add one row; it reaches the disk at the next flush."""
        self._writer.writerow(row)

    def flush(self) -> None:
        """Hand buffered rows to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
