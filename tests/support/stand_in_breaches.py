"""Deliberate breaches of CUDA's rules: run as a script, it says what came of them.

Prints {breach: outcome} as JSON. `legal_*` are their lawful counterparts, which must pass.
"""

import ctypes
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import stand_in_gpu
from stand_in_gpu.processes import in_own_process

GPU = stand_in_gpu.load("H100")

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402


def capture(body: Callable[[], object], mode: str = "thread_local") -> torch.cuda.CUDAGraph:
    torch.zeros(1, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode=mode):
        body()
    return graph


def host_wait() -> None:
    x = torch.zeros(1, device="cuda")
    capture(lambda: x.item())


def device_wait() -> None:
    capture(torch.cuda.synchronize)


def event_wait() -> None:
    def body() -> None:
        event = torch.cuda.Event()
        event.record()
        event.synchronize()

    capture(body)


def wait_of_another_thread() -> None:
    def body() -> None:
        errors: list[Exception] = []

        def wait() -> None:
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        raise errors[0]

    capture(body)


def unpinned_copy() -> None:
    x, host = torch.zeros(8, device="cuda"), torch.zeros(8)
    capture(lambda: x.copy_(host, non_blocking=True))


def unpinned_copy_behind_pytorch() -> None:
    x, host = torch.zeros(8, device="cuda"), torch.zeros(8)

    def body() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        call_runtime("cudaMemcpyAsync", x.data_ptr(), host.data_ptr(), 32, 1, stream)

    capture(body)


def call_runtime(name: str, *args: int) -> None:
    """Call the runtime where PyTorch would refuse first, or would not do such a thing."""
    error = getattr(ctypes.CDLL(None), name)(*map(ctypes.c_void_p, args))
    assert error == 0, GPU.refusal()


def legal_pinned_copy() -> int:
    x, host = torch.zeros(8, device="cuda"), torch.zeros(8).pin_memory()
    return len(nodes(capture(lambda: x.copy_(host, non_blocking=True))))


def nodes(graph: torch.cuda.CUDAGraph) -> list[stand_in_gpu.Record]:
    last = max(record.capture for record in GPU.records())
    graph.replay()
    torch.cuda.synchronize()
    return [record for record in GPU.records() if record.capture == last]


def legacy_stream() -> None:
    x = torch.zeros(8, device="cuda")

    def body() -> None:
        with torch.cuda.stream(torch.cuda.default_stream()):
            x.add_(1)

    capture(body)


def legacy_stream_waits() -> None:
    def body() -> None:
        torch.cuda.default_stream().wait_stream(torch.cuda.current_stream())

    capture(body)


def unjoined_stream() -> None:
    x, side = torch.zeros(8, device="cuda"), torch.cuda.Stream()

    def body() -> None:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.add_(1)

    capture(body)


def legal_joined_stream() -> int:
    x, side = torch.zeros(8, device="cuda"), torch.cuda.Stream()
    with torch.cuda.stream(side):
        x.add_(1)  # work before the capture needs no join

    def body() -> None:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.add_(1)
        torch.cuda.current_stream().wait_stream(side)
        x.add_(1)

    return len(nodes(capture(body)))


def half_joined_stream() -> None:
    """Work after the event that was waited for is outside the join."""
    x, side = torch.zeros(8, device="cuda"), torch.cuda.Stream()

    def body() -> None:
        side.wait_stream(torch.cuda.current_stream())
        event = torch.cuda.Event()
        with torch.cuda.stream(side):
            x.add_(1)
            event.record()
            x.add_(1)
        torch.cuda.current_stream().wait_event(event)

    capture(body)


def event_from_outside() -> None:
    event = torch.cuda.Event()
    event.record()
    capture(lambda: torch.cuda.current_stream().wait_event(event))


def event_of_an_ended_capture() -> None:
    event = torch.cuda.Event()
    capture(lambda: event.record())
    torch.cuda.current_stream().wait_event(event)


def clock_across_the_capture() -> None:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    capture(lambda: events[1].record())
    events[0].elapsed_time(events[1])


def query_in_a_global_capture() -> None:
    event = torch.cuda.Event()
    event.record()
    capture(event.query, mode="global")


def allocation_behind_pytorch() -> None:
    pointer = ctypes.c_void_p()
    capture(lambda: call_runtime("cudaMalloc", ctypes.addressof(pointer), 64))


def graph_of_freed_memory() -> None:
    """A graph that copies a tensor is replayed after the tensor's memory went back to CUDA."""
    operands = [torch.zeros(1 << 24, device="cuda") for _ in range(2)]
    graph = capture(lambda: operands[0].copy_(operands[1]))
    operands.clear()
    torch.cuda.empty_cache()
    graph.replay()


def legal_graph_of_live_memory() -> int:
    x, y = torch.zeros(1 << 24, device="cuda"), torch.zeros(1 << 24, device="cuda")
    return len(nodes(capture(lambda: x.copy_(y))))


def freed_memory() -> None:
    x, y = torch.zeros(1 << 24, device="cuda"), torch.zeros(1 << 24, device="cuda")
    call_runtime("cudaFree", x.data_ptr())
    y.copy_(x)


def out_of_memory() -> None:
    torch.empty(200 << 30, dtype=torch.uint8, device="cuda")


@triton.jit
def _cooperative_kernel(out):
    tl.store(out + tl.program_id(0), 1)


def cooperate(num_programs: int) -> int:
    """In one warp a program, so that an SM holds 64; an H100 has 132 of them."""
    out = torch.zeros(num_programs, dtype=torch.int32, device="cuda")
    graph = capture(
        lambda: _cooperative_kernel[(num_programs,)](out, num_warps=1, launch_cooperative_grid=True)
    )
    return len(nodes(graph))


def cooperative_grid_too_large() -> None:
    cooperate(132 * 64 + 1)


def legal_cooperative_grid() -> int:
    return cooperate(132 * 64)


def host_reads_early() -> list[bool]:
    """Whether pinned memory holds the copied value: before the host waits, and after."""
    host = torch.zeros(4).pin_memory()
    host.copy_(torch.full((4,), 7.0).to("cuda"), non_blocking=True)
    early = bool(torch.isnan(host).all())
    event = torch.cuda.Event()
    event.record()
    event.synchronize()
    return [early, host.tolist() == [7.0] * 4]


def host_waits_for_another_stream() -> bool:
    """A wait for a stream that has not waited for the copying one says nothing of the copy."""
    host, side = torch.zeros(4).pin_memory(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        host.copy_(torch.full((4,), 7.0).to("cuda"), non_blocking=True)
    torch.cuda.current_stream().synchronize()
    return bool(torch.isnan(host).all())


BREACHES = [
    host_wait, device_wait, event_wait, wait_of_another_thread, unpinned_copy,
    unpinned_copy_behind_pytorch, legal_pinned_copy,
    legacy_stream, legacy_stream_waits, unjoined_stream, legal_joined_stream, half_joined_stream,
    event_from_outside, event_of_an_ended_capture, clock_across_the_capture,
    query_in_a_global_capture, allocation_behind_pytorch, graph_of_freed_memory,
    legal_graph_of_live_memory, freed_memory, out_of_memory, cooperative_grid_too_large,
    legal_cooperative_grid, host_reads_early,
    host_waits_for_another_stream,
]  # fmt: skip

if __name__ == "__main__":
    print(json.dumps({breach.__name__: in_own_process(breach) for breach in BREACHES}))
