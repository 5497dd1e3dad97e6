"""Disks that fail: a small one that fills, and one whose folders cannot be synced."""

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER
_PRIVATE, _REMOUNT = 0x44000, 32  # MS_REC | MS_PRIVATE, MS_REMOUNT
UNSYNCED = "NO_FOLDER_SYNC"
"""While the environment has it, processes with the shim cannot sync folders."""


def own_mounts() -> None:
    """Give this process mounts of its own; as root, or as the root of a user namespace.

    Raises OSError where neither is allowed. The process must have one thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEW_MOUNTS | (_NEW_USER if user else 0)):
        raise OSError(ctypes.get_errno(), "no mount namespace")
    if user:
        own = Path("/proc/self")
        (own / "setgroups").write_text("deny")
        (own / "uid_map").write_text(f"0 {user} 1")
        (own / "gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"none", b"/", None, _PRIVATE, None):
        raise OSError(ctypes.get_errno(), "no mounts of its own")


def mount_small(path: Path, size: int) -> None:
    """Put an empty file system of so many bytes at `path`."""
    _tmpfs(path, size, 0)


def enlarge(path: Path, size: int) -> None:
    """Give it so many bytes; what it holds stays."""
    _tmpfs(path, size, _REMOUNT)


def _tmpfs(path: Path, size: int, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size}".encode()
    if libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", flags, options):
        raise OSError(ctypes.get_errno(), f"no tmpfs on {path}")


def environment_with_shim() -> dict[str, str] | None:
    """Return an environment whose processes heed UNSYNCED; None where this process is one.

    Compiles the shim. The linker reads it when a process starts.
    """
    if "no_folder_sync" in os.environ.get("LD_PRELOAD", ""):
        return None
    shim = Path(tempfile.mkdtemp()) / "no_folder_sync.so"
    source = Path(__file__).with_name("no_folder_sync.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    return os.environ | {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"}
