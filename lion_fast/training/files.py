"""Files that are whole or absent: written under a temporary name, synced, then renamed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lion_fast.errors import UserError


@contextmanager
def disk_advice(path: Path, what_is_safe: str = "") -> Iterator[None]:
    """Turn a failure to write `path` into one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error, what_is_safe) from None
    except RuntimeError as error:
        # torch's zip writer reports a failed write so, with the OSError in its context.
        if not isinstance(error.__context__, OSError):
            raise
        raise _unwritable(path, error.__context__, what_is_safe) from None


def _unwritable(path: Path, error: OSError, what_is_safe: str) -> UserError:
    safe = f"; {what_is_safe}" if what_is_safe else ""
    return UserError(
        f"cannot write {path}: {error.strerror}{safe}: free space or make it writable,"
        f" then --resume {path.parent}"
    )


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
