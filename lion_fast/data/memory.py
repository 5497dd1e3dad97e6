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


def check_memory(where: str, num_images: int, size: tuple[int, int], otherwise: str = "") -> None:
    """Raise UserError if `num_images` uint8 RGB images of `size` = (H, W) do not fit in memory."""
    needed, limit = 3 * num_images * size[0] * size[1], memory_limit_bytes()
    if needed > limit:
        raise UserError(
            f"{where}: {num_images:,} images of {size[0]}x{size[1]} pixels take"
            f" {needed / 2**30:,.1f} GiB, and this machine has {limit / 2**30:,.1f}: take a smaller"
            f" --image-size{otherwise}"
        )
