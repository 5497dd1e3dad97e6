"""What the optimizers ask of a GPU: `stand_in_muon.py CARD` prints JSON.

Every optimizer takes one step and then one more inside a CUDA graph, with each network's own
weights. Printed are the captured launches by kind and the syncs.
"""

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import stand_in_gpu
from stand_in_gpu.processes import leave

GPU = stand_in_gpu.load(sys.argv[1])

import torch  # noqa: E402

from lion_fast.config import TrainConfig  # noqa: E402
from lion_fast.models import build_model  # noqa: E402
from lion_fast.training.machine.resolve import resolve  # noqa: E402
from lion_fast.training.step.optimizers import build_optimizer  # noqa: E402

KINDS = {"driver kernel": "ours", "runtime kernel": "pytorch", "library": "cublas"}


def count(arch: str, optimizer: str) -> dict[str, int]:
    """Return the launches of a captured step of the optimizer."""
    config = TrainConfig(arch=arch, optimizer=optimizer, device="cuda", precision="fp32")
    model = build_model(config, 10, (32, 32)).cuda().to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    update = build_optimizer(model, config, resolve(config))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        update.step()
    torch.cuda.current_stream().wait_stream(side)
    GPU.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update.step()
    records = GPU.records()
    counts = Counter(KINDS.get(r.kind, r.kind) for r in records if r.is_launch and r.capture)
    return {**counts, "syncs": sum(r.kind == "sync" and bool(r.capture) for r in records)}


if __name__ == "__main__":
    found = {
        f"{arch} {optimizer}": count(arch, optimizer)
        for arch in ("densenet_ds", "resnet_ds")
        for optimizer in ("adamw", "muon", "sgd")
    }
    print(json.dumps(found))
    leave()
