"""Files that are whole or absent, and one process at a time in a folder."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from lion_fast.errors import UserError
from lion_fast.output import complain

LOCK = "run.lock"
# POSIX drops a process's lock when any of its descriptors of the file is closed, and keeps no two
# threads of one process apart; so a folder locked here is not opened again.
_LOCKED_HERE: set[Path] = set()


class DiskError(UserError):
    """A file of the run could not be written; all that was written before is as it was."""

    def __init__(self, path: Path, error: OSError, what_is_safe: str) -> None:
        self.reason = f"cannot write {path}: {error.strerror or error}"
        self.remedy = _remedy(error.errno, path)
        safe = f"; {what_is_safe}" if what_is_safe else ""
        super().__init__(f"{self.reason}{safe}: {self.remedy}, then --resume {path.parent}")


# Answers of file systems that cannot do what is asked, whatever is done about the file: some of
# FUSE, CIFS, shared folders of virtual machines.
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def _remedy(number: int | None, path: Path) -> str:
    """Return what to do about an errno."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "free space"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR):
        return "make it writable"
    if number in (*_CANNOT, errno.ENOLCK):
        return f"move the folder off {mount_of(path)}, whose file system cannot do that"
    return "see to its disk"


def mount_of(path: Path) -> Path:
    """Return where the file system of `path` is mounted."""
    path = path.absolute()
    return next(
        each for each in (path, *path.parents) if os.path.ismount(each) or each == each.parent
    )


@contextmanager
def disk_advice(path: Path, what_is_safe: str = "") -> Iterator[None]:
    """Turn a failure to write `path` into one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise DiskError(path, error, what_is_safe) from None
    except RuntimeError as error:
        # torch's zip writer reports a failed write so, with the OSError in its context.
        cause = error.__context__
        if not isinstance(cause, OSError):
            raise
        raise DiskError(path, cause, what_is_safe) from None


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
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk; go on, with a warning, where that cannot be done."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        _warn_once(mount_of(folder))


@cache
def _warn_once(mount: Path) -> None:
    complain(
        f"{mount} cannot sync folders: after a power failure, though not after a kill, a run in it"
        " may be as it was before its last checkpoint"
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone; the lock ends with the process, however that ends.

    Raises UserError that names the process which holds it, or says that it cannot be written, or
    that its file system keeps no locks.
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
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (*_CANNOT, errno.ENOLCK):
                raise
            raise UserError(
                f"{path.parent} cannot be locked against other processes ({error.strerror}): the"
                f" file system at {mount_of(path)} keeps no locks: give --out a folder on another,"
                " and move there what is to go on"
            ) from None
        # Its holder has removed it in between: the next one is another file.
        os.close(descriptor)


def _in_use(folder: Path, holder: str) -> UserError:
    who = f"process {holder}" if holder else "another process"
    return UserError(f"{folder} is in use by {who}: wait until it has ended, or stop it first")
