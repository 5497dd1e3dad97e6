"""The CPU's memory: what a step frees stays with the process, for the next step."""

import ctypes
import os
import sys

# From glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory in this process from now on; return whether it does.

    By itself it gives large blocks back to the system at once, and takes them anew, page by page
    and zeroed, for the next activation of that size. What that costs a step, and what keeping costs
    in memory, `bench/bench_allocator.py` measures.

    Left alone where the environment sets glibc's allocator (MALLOC_*, GLIBC_TUNABLES), and where
    there is none.
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if chosen or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another libc, such as musl
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
