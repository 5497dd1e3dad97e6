"""The persistent backbone's launches as the driver gets them: `python stand_in_persistent.py CARD`.

Prints JSON: each launch's kernel, grid, threads, shared bytes, and whether a capture took it.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import stand_in_gpu
from stand_in_gpu.processes import leave

GPU = stand_in_gpu.load(sys.argv[1])

import torch  # noqa: E402

from lion_fast.models import densenet_ds  # noqa: E402

BATCH = 128


def main() -> None:
    """Take a step on a stream of its own, then capture one."""
    model = densenet_ds().to("cuda", memory_format=torch.channels_last)
    images = torch.zeros(BATCH, 3, 32, 32, dtype=torch.bfloat16, device="cuda")

    def step(images: torch.Tensor = images) -> None:
        pooled = model.pooled_taps(images, persistent=True)
        torch.autograd.backward(pooled, [torch.ones_like(p) for p in pooled])

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    captured = len(GPU.records())
    step(torch.cat([images, images]).contiguous(memory_format=torch.channels_last))
    records = GPU.records()
    found = [
        [r.name, *r.grid, *r.block, r.shared_bytes, bool(r.capture), r.stream == stream.cuda_stream]
        for r in records[:captured]
        if r.is_launch and "dense_persistent" in r.name
    ]
    larger = [
        [r.name, *r.grid, *r.block, r.shared_bytes]
        for r in records[captured:]
        if r.is_launch and "dense_persistent" in r.name
    ]
    try:
        model.pooled_taps(images[..., :28, :28], persistent=True)
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    print(json.dumps({"launches": found, "larger": larger, "refusal": refusal}))
    leave()


if __name__ == "__main__":
    main()
