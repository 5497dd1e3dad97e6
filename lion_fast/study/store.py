"""The results of a study: one SQLite file, and one lock per run that ends with its process."""

import fcntl
import json
import os
import shutil
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import lion_fast
from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.study.grid import Cell, Study, course
from lion_fast.study.stored import DATA, SUMMARY_KEYS, StoredCell, Table, set_aside

_APPLICATION_ID = 0x4C494F4E  # "LION" in the file's header
_LAYOUT = 1
_SCHEMA = (
    "CREATE TABLE study (name TEXT NOT NULL, version TEXT NOT NULL, base TEXT NOT NULL)",
    """CREATE TABLE cells (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, config TEXT NOT NULL,
        summary TEXT, error TEXT)""",
    *(
        f"""CREATE TABLE {name} (
            cell INTEGER NOT NULL REFERENCES cells, step INTEGER NOT NULL,
            PRIMARY KEY (cell, step)) WITHOUT ROWID"""
        for name in ("metrics", "validation", "probes")
    ),
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_LAYOUT}",
)
# Byte n of the lock file belongs to cell n, and cells count from 1.
_MAKING = 0
# Linux's struct flock: l_type, l_whence, l_start, l_len, l_pid, and padding to whole words.
_FLOCK = struct.Struct("@hhqqi0q")


@cache
def _parsed(config: str) -> TrainConfig:
    """Parse a cell's config; a study asks for those of all its cells whenever a run ends."""
    return TrainConfig.from_dict(json.loads(config))


class Store:
    """`study.sqlite` in a study's folder; several processes may have it open.

    Every method raises UserError when the file is locked by another program, damaged or cannot be
    written; it is then as it was. A process opens one store of a folder at a time: POSIX drops a
    process's locks on a file as soon as it closes that file once.
    """

    def __init__(self, folder: Path, *, busy_seconds: float = 30.0, reading: bool = False) -> None:
        """Connect to the files of `folder`, making them; `open` and `create` also check them.

        reading: where they cannot be written, open them to be read.
        """
        self.folder, self.path = folder, folder / "study.sqlite"
        self._opened = ExitStack()
        self._claimed: set[int] = set()
        with self._plain_errors():
            if reading and not _writable(folder):
                self._database = self._connect_to_read()
                self._lock_file = _open_to_read(folder / "study.lock")
                return
            # Autocommit: `_transaction` alone opens transactions.
            self._database = sqlite3.connect(self.path, timeout=busy_seconds, isolation_level=None)
            self._lock_file = os.open(folder / "study.lock", os.O_RDWR | os.O_CREAT, 0o666)

    def _connect_to_read(self) -> sqlite3.Connection:
        """Connect without writing a byte to the folder."""
        journal = Path(f"{self.path}-wal")
        path, options = self.path, "mode=ro&immutable=1"
        if journal.exists() and journal.stat().st_size:
            # SQLite reads a journal that no process has open only where it can write beside it.
            copy = Path(self._opened.enter_context(TemporaryDirectory()))
            for file in (self.path, journal):
                shutil.copy(file, copy)
            path, options = copy / self.path.name, "mode=rw"
        uri = f"file:{quote(str(path.absolute()))}?{options}"
        return sqlite3.connect(uri, uri=True, isolation_level=None)

    @classmethod
    def open(cls, folder: Path, *, busy_seconds: float = 30.0) -> "Store":
        """Open the store of `folder`, which must exist; to be read where it cannot be written."""
        if not (folder / "study.sqlite").exists():
            raise UserError(
                f"no study in {folder}: run `lion-fast study` first, or name its --out folder"
            )
        with ExitStack() as opened:
            store = opened.enter_context(cls(folder, busy_seconds=busy_seconds, reading=True))
            # Perhaps another process is only just making it.
            with store._lock(_MAKING, fcntl.LOCK_SH):
                store._check_layout()
            opened.pop_all()
        return store

    @classmethod
    def create(cls, study: Study, out: Path, *, busy_seconds: float = 30.0) -> "Store":
        """Open the store of `study` for runs; make it where there is none; add missing cells.

        Raises UserError when it was written by another version or holds runs of another config.
        """
        folder = study.folder(out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
        with ExitStack() as opened:
            store = opened.enter_context(cls(folder, busy_seconds=busy_seconds))
            with store._plain_errors(), store._lock(_MAKING):
                if not store._query("SELECT 1 FROM sqlite_master"):
                    store._make(study)
            store._check_layout()
            store._check_version()
            store.check_runs_of(study)
            store._add(study.cells())
            opened.pop_all()
        return store

    def _make(self, study: Study) -> None:
        self._query("PRAGMA journal_mode = WAL")
        row = (
            study.store_name or study.name,
            lion_fast.__version__,
            json.dumps(course(study.base)),
        )
        with self._transaction():
            for statement in _SCHEMA:
                self._query(statement)
            self._query("INSERT INTO study VALUES (?, ?, ?)", row)

    def _check_layout(self) -> None:
        with self._plain_errors():
            application, layout = self._pragma("application_id"), self._pragma("user_version")
        if application != _APPLICATION_ID:
            raise UserError(f"{self.path} is not a lion-fast study: it was left as it is")
        if layout != _LAYOUT:
            raise UserError(
                f"{self.path} has layout {layout} and this version of lion-fast reads layout"
                f" {_LAYOUT}: use the version that wrote it, or another --out"
            )

    def _check_version(self) -> None:
        """Raise UserError when another version wrote the runs: their numbers may differ by that."""
        with self._plain_errors():
            ((version,),) = self._query("SELECT version FROM study")
        if version != lion_fast.__version__:
            raise UserError(
                f"{self.path} was written by lion-fast {version} and this is"
                f" {lion_fast.__version__}, which can show its runs but add none: use that version,"
                " or another --out"
            )

    def check_runs_of(self, study: Study) -> None:
        """Raise UserError with the difference when the store holds no runs of `study`."""
        with self._plain_errors():
            for (damage,) in self._query("PRAGMA quick_check(1)"):
                if damage != "ok":
                    raise UserError(self._damaged(damage))
        stored, asked = course(self.base()), course(study.base)
        changed = [f"{k} {stored[k]} -> {asked[k]}" for k in asked if stored[k] != asked[k]]
        if changed:
            raise UserError(
                f"{self.path} holds runs of another config: {', '.join(changed)};"
                " give another --out"
            )

    def base(self) -> TrainConfig:
        """Return the config that all runs share; where things lie is not kept in it."""
        with self._plain_errors():
            ((base,),) = self._query("SELECT base FROM study")
        return TrainConfig.from_dict(json.loads(base))

    def cells(self) -> list[StoredCell]:
        """Return every cell, in the order in which they were added."""
        with self._plain_errors():
            rows = self._query("SELECT id, key, config, summary, error FROM cells ORDER BY id")
        return [
            StoredCell(
                id=id,
                key=key,
                config=_parsed(config),
                summary=None if summary is None else self._summary(key, summary),
                error=error,
            )
            for id, key, config, summary, error in rows
        ]

    def _summary(self, key: str, text: str) -> dict[str, Any]:
        """Parse a summary; raise UserError where it is none that this project writes."""
        try:
            summary = json.loads(text)
        except ValueError:
            raise UserError(self._damaged(f"run {key} has no valid JSON as its summary")) from None
        lacking = sorted(SUMMARY_KEYS - set(summary if isinstance(summary, dict) else ()))
        if lacking:
            raise UserError(self._damaged(f"the summary of run {key} lacks {', '.join(lacking)}"))
        return summary

    def of(self, study: Study) -> list[tuple[Cell, StoredCell | None]]:
        """Return the cells of `study`, each with what is stored of it; None where nothing is."""
        stored = {cell.key: cell for cell in self.cells()}
        return [(cell, stored.get(cell.key)) for cell in study.cells()]

    def table(self, name: str, cell_id: int) -> Table:
        """Return a run's `metrics`, `validation` or `probes` by step.

        Columns are those of the CSV files in its run folder, and those of other runs with more
        heads, which hold None.
        """
        with self._plain_errors():
            columns = [row[1] for row in self._query(f"PRAGMA table_info({name})")][1:]
            names = ", ".join(f'"{column}"' for column in columns)
            rows = self._query(
                f"SELECT {names} FROM {name} WHERE cell = ? ORDER BY step", (cell_id,)
            )
        return Table(columns, rows)

    @contextmanager
    def claim(self, cell_id: int) -> Iterator[bool]:
        """Hold the right to run a cell; yield False where another process has it or it is done.

        The right ends with the block, or with the process, however it ends.
        """
        with self._lock(cell_id, fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
            with self._plain_errors():
                done = self._query(
                    "SELECT 1 FROM cells WHERE id = ? AND summary IS NOT NULL", (cell_id,)
                )
            mine = {cell_id} if held and not done else set()
            self._claimed |= mine
            try:
                yield bool(mine)
            finally:
                self._claimed -= mine

    def claimed_by(self, cell_id: int) -> int | None:
        """Return the id of the process that runs a cell now; None where there is none."""
        if cell_id in self._claimed:  # F_GETLK is silent about a process's own locks
            return os.getpid()
        if self._lock_file is None:
            return None
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, cell_id, 1, 0)
        kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(self._lock_file, fcntl.F_GETLK, wanted))
        return None if kind == fcntl.F_UNLCK else pid

    def finish(self, cell_id: int, summary: dict[str, Any], tables: dict[str, Table]) -> None:
        """Record a finished run in one transaction."""
        with self._plain_errors(), self._transaction():
            self._query(
                "UPDATE cells SET summary = ?, error = NULL WHERE id = ?",
                (json.dumps(summary), cell_id),
            )
            for name, table in tables.items():
                self._insert(name, cell_id, table)

    def fail(self, cell_id: int, error: str) -> None:
        """Record why an attempt failed; a finished run stays as it is."""
        with self._plain_errors(), self._transaction():
            self._query(
                "UPDATE cells SET error = ? WHERE id = ? AND summary IS NULL", (error, cell_id)
            )

    def forget(self, stored: StoredCell, fingerprint: str) -> bool:
        """Make a finished run of the data `fingerprint` missing again; its run folder is set aside.

        Returns False where another process runs it by now, or has run it on other data.
        """
        cell_id = stored.id
        with self._lock(cell_id, fcntl.LOCK_EX | fcntl.LOCK_NB) as held, self._plain_errors():
            (row,) = self._query("SELECT summary FROM cells WHERE id = ?", (cell_id,))
            summary = json.loads(row[0] or "{}")
            if not held or summary.get(DATA) != fingerprint:
                return False
            set_aside(self.folder / "runs" / stored.key)
            with self._transaction():
                self._query(
                    "UPDATE cells SET summary = NULL, error = NULL WHERE id = ?", (cell_id,)
                )
                for name in ("metrics", "validation", "probes"):
                    self._query(f"DELETE FROM {name} WHERE cell = ?", (cell_id,))
        return True

    def close(self) -> None:
        """Close the files; locks held by this process end."""
        self._database.close()
        if self._lock_file is not None:
            os.close(self._lock_file)
        self._opened.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, cells: Iterable[Cell]) -> None:
        with self._plain_errors(), self._transaction():
            for cell in cells:
                self._query(
                    "INSERT OR IGNORE INTO cells (key, config) VALUES (?, ?)",
                    (cell.key, json.dumps(cell.config.to_dict())),
                )

    def _insert(self, name: str, cell_id: int, table: Table) -> None:
        present = {row[1] for row in self._query(f"PRAGMA table_info({name})")}
        for column in table.columns:
            if column not in present:
                self._query(f'ALTER TABLE {name} ADD COLUMN "{column}" REAL')
        columns = ", ".join(f'"{column}"' for column in ("cell", *table.columns))
        places = ", ".join("?" * (1 + len(table.columns)))
        self._query(f"DELETE FROM {name} WHERE cell = ?", (cell_id,))
        self._database.executemany(
            f"INSERT INTO {name} ({columns}) VALUES ({places})",
            ((cell_id, *row) for row in table.rows),
        )

    def _query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple]:
        return self._database.execute(statement, values).fetchall()

    def _pragma(self, name: str) -> int:
        return self._query(f"PRAGMA {name}")[0][0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._query("BEGIN IMMEDIATE")
        try:
            yield
            self._query("COMMIT")
        finally:
            if self._database.in_transaction:
                self._query("ROLLBACK")

    @contextmanager
    def _lock(self, byte: int, flags: int = fcntl.LOCK_EX) -> Iterator[bool]:
        """Lock one byte of the lock file; yield False where another process has it."""
        if self._lock_file is None:  # nothing there can be claimed or made
            yield False
            return
        with self._plain_errors():
            try:
                fcntl.lockf(self._lock_file, flags, 1, byte)
                held = True
            except (BlockingIOError, PermissionError):
                held = False
        try:
            yield held
        finally:
            if held:
                fcntl.lockf(self._lock_file, fcntl.LOCK_UN, 1, byte)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Turn what the user can mend into UserError."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                text = f"another program has locked {self.path}: close it and start again"
            elif name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                text = self._damaged(str(error))
            elif name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READ")):
                text = f"cannot use {self.path}: {error}: see to its disk and start again"
            else:
                raise
            raise UserError(text) from None
        except OSError as error:
            raise UserError(f"cannot use {self.path}: {error.strerror}") from None

    def _damaged(self, detail: str) -> str:
        return (
            f"{self.path} is damaged ({detail}) and was left as it is: move {self.folder} away and"
            " start again"
        )


def _writable(folder: Path) -> bool:
    """Whether this process may write the files of a store, and beside them."""
    paths = [folder, *(path for path in folder.glob("study.*"))]
    return all(os.access(path, os.W_OK, effective_ids=True) for path in paths)


def _open_to_read(path: Path) -> int | None:
    return os.open(path, os.O_RDONLY) if path.exists() else None
