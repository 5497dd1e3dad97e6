"""File systems that cannot do all that Linux promises: what is said, and what goes on."""

import errno
import fcntl
import os

import pytest

from lion_fast.errors import UserError
from lion_fast.training.folder import files
from lion_fast.training.folder.files import DiskError, locked, mount_of, write_atomically


@pytest.fixture(autouse=True)
def nothing_is_warned_of_yet():
    files._warn_once.cache_clear()


def fail_on_folders(monkeypatch, number):
    fsync = os.fsync

    def failing(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_folder_that_cannot_be_synced_costs_one_warning(tmp_path, monkeypatch, capsys, number):
    fail_on_folders(monkeypatch, number)
    for text in (b"a", b"b"):
        write_atomically(tmp_path / "file", lambda file, text=text: file.write(text))
    assert (tmp_path / "file").read_bytes() == b"b"
    told = capsys.readouterr().err
    assert told.startswith(f"lion-fast: {mount_of(tmp_path)} cannot sync folders")
    assert told.count("\n") == 1


def test_a_folder_whose_disk_fails_is_no_folder_that_cannot_be_synced(tmp_path, monkeypatch):
    fail_on_folders(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "file", lambda file: file.write(b"a"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_refused_by_its_mount(tmp_path, monkeypatch, number):
    def failing(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", failing)
    told = f"the file system at {mount_of(tmp_path)} keeps no locks: give --out a folder on another"
    with pytest.raises(UserError, match=told) as caught, locked(tmp_path):
        pass
    assert "free space" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space, then"),
        (errno.EDQUOT, "free space, then"),
        (errno.EROFS, "make it writable, then"),
        (errno.EACCES, "make it writable, then"),
        (errno.ENOTSUP, "move the folder off"),
        (errno.EIO, "see to its disk, then"),
    ],
)
def test_the_advice_is_that_of_the_errno(tmp_path, number, remedy):
    told = str(DiskError(tmp_path / "a", OSError(number, os.strerror(number)), ""))
    assert remedy in told and f"--resume {tmp_path}" in told
