"""How much memory there is, to refuse what cannot fit before anything is read."""

import os
from pathlib import Path

from lion_fast.errors import UserError

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_limit_bytes() -> int:
    """Return this machine's memory, or the part of it that this process's container may use."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(limit, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        return limit


def check_memory(
    where: str, num_images: int, size: tuple[int, int], remedy: str = "take a smaller --image-size"
) -> None:
    """Raise UserError if `num_images` uint8 RGB images of `size` = (H, W) do not fit in memory."""
    what = f"{num_images:,} images of {size[0]}x{size[1]} pixels"
    check_bytes(where, what, 3 * num_images * size[0] * size[1], remedy)


def check_bytes(where: str, what: str, needed: int, remedy: str) -> None:
    """Raise UserError, ending with `remedy`, if so many bytes do not fit in memory."""
    limit = memory_limit_bytes()
    if needed > limit:
        raise UserError(
            f"{where}: {what} take {needed / 2**30:,.1f} GiB, and this machine has"
            f" {limit / 2**30:,.1f}: {remedy}"
        )
