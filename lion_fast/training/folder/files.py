"""Files that are whole or absent, and one process at a time in a folder."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lion_fast.errors import UserError

LOCK = "run.lock"
# POSIX drops a process's lock when any of its descriptors of the file is closed, and keeps no two
# threads of one process apart; so a folder locked here is not opened again.
_LOCKED_HERE: set[Path] = set()


class DiskError(UserError):
    """A file of the run could not be written; all that was written before is as it was."""

    def __init__(self, path: Path, reason: str, what_is_safe: str) -> None:
        self.reason = f"cannot write {path}: {reason}"
        safe = f"; {what_is_safe}" if what_is_safe else ""
        super().__init__(
            f"{self.reason}{safe}: free space or make it writable, then --resume {path.parent}"
        )


@contextmanager
def disk_advice(path: Path, what_is_safe: str = "") -> Iterator[None]:
    """Turn a failure to write `path` into one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise DiskError(path, error.strerror or str(error), what_is_safe) from None
    except RuntimeError as error:
        # torch's zip writer reports a failed write so, with the OSError in its context.
        cause = error.__context__
        if not isinstance(cause, OSError):
            raise
        raise DiskError(path, cause.strerror or str(cause), what_is_safe) from None


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], object], *, keep_as: Path | None = None
) -> None:
    """Let `write` fill a file and give it the name `path` once it is whole and on the disk.

    What stood under that name is replaced, or first renamed to `keep_as`. Raises OSError, and what
    `write` raises; what stood before is then untouched.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if keep_as is not None and path.exists():
        os.replace(path, keep_as)
    os.replace(unfinished, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone; the lock ends with the process, however that ends.

    Raises UserError that names the process which holds it, or says that it cannot be written.
    """
    folder = folder.resolve()
    if folder in _LOCKED_HERE:
        raise _in_use(folder, str(os.getpid()))
    path = folder / LOCK
    with disk_advice(path):
        descriptor = _lock(path)
    _LOCKED_HERE.add(folder)
    try:
        with disk_advice(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, b"%d\n" % os.getpid())
        yield
    finally:
        path.unlink(missing_ok=True)
        _LOCKED_HERE.remove(folder)
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Return a descriptor of the locked file that stands under that name now."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Not flock: forked DataLoader workers would share it, and outlive a killed trainer.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            raise _in_use(path.parent, holder) from None
        # Its holder has removed it in between: the next one is another file.
        os.close(descriptor)


def _in_use(folder: Path, holder: str) -> UserError:
    who = f"process {holder}" if holder else "another process"
    return UserError(f"{folder} is in use by {who}: wait until it has ended, or stop it first")
