"""A stand-in for a CUDA GPU: the real PyTorch and Triton run on it, and nothing is computed.

    import stand_in_gpu
    gpu = stand_in_gpu.load("H100")      # "A100", "V100"; before `import torch`
    ...
    for record in gpu.records(): ...

A library in C (`csrc/`, compiled by gcc when first asked for) takes the place of the CUDA driver,
the CUDA runtime, cuBLAS and cuDNN: it is loaded before torch with its symbols global, and the
global scope precedes a library's own dependencies. It records every launch, copy, fill and wait and
answers "success". What it lacks falls through to NVIDIA's library, which finds no driver: a gap is
loud. `environment(name)` does the same to a command and its children, by LD_PRELOAD.

What runs for real: dispatcher, autograd, autocast, fused optimizers, GradScaler, the caching
allocators, cuDNN's front end, Dynamo, AOTAutograd, Inductor's CUDA back end, Triton's compiler and
launcher, ptxas, CUDA graph capture and replay.

What it sees, and refuses as CUDA does (order.c, memory.c):
  in a capture    waits of the host, on anything the capturing thread may not wait for; copies of
                  unpinned memory; cudaMalloc and the like unless PyTorch's allocator makes them;
                  streams that are not joined at its end; events from outside, and events of a
                  capture that has ended; two captures joined; an end by another thread
  at any time     copies, fills, Triton's kernels and graphs that use freed device memory (a freed
                  address is never given out again); allocations past the GPU's memory; grids of
                  0 or beyond 65,535 in y or z; cooperative grids with more threads than the GPU
                  holds at once; pinned memory read before the host has waited
                  for the copy into it (until then it holds NaN)
One rule is stricter than CUDA's: the capturing thread may not use the legacy stream, where CUDA
would run that work once, outside the graph.

What it cannot see: values (a kernel leaves memory as it was, and code that branches on a value
takes one branch), what cuDNN and cuBLAS launch inside and the workspace they want, time (an event
is a millisecond later than the one recorded before it), occupancy, out-of-bounds accesses, races
between kernels, pointers inside kernels of PyTorch's own libraries. Nor alignment: a cubin says of
every pointer that it is aligned to one byte, whatever the kernel was specialised for; Triton looks
at the address at each launch, and Inductor's code copies what is not aligned as its example was.
Nor what PyTorch's allocator frees and keeps, such as memory of a graph's pool that a later capture
gets: the driver is told of whole segments alone.
Libraries that link the CUDA runtime statically (NVIDIA DALI) do not run on it.

Knows the symbols that torch 2.11 and 2.14 for CUDA 13 call on one GPU. Needs gcc, as Triton does,
and the CUDA headers in the wheels of torch and Triton. Uses no API of torch or Triton.
"""

from stand_in_gpu.cubin import Resources, resources
from stand_in_gpu.devices import CARDS
from stand_in_gpu.gpu import DriverLaunch, Gpu, Record, environment, load

__all__ = [
    "CARDS",
    "DriverLaunch",
    "Gpu",
    "Record",
    "Resources",
    "environment",
    "load",
    "resources",
]
