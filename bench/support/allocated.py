"""How much memory tensors take while a function runs, on a CPU: PyTorch's own account of it."""

import gc
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_allocated_bytes(function: Callable[[], object]) -> int:
    """Return the most bytes that `function` had allocated at a time, on the CPU, by PyTorch.

    What was allocated before does not count, nor does what libraries allocate for themselves.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = function()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = profiled.profiler.kineto_results.events()
    now = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    del kept
    return most
