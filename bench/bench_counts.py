"""What one training step asks of a GPU, counted on a stand-in: `python bench/bench_counts.py`.

    python bench/bench_counts.py --out FILE                  # both networks on three cards
    python bench/bench_counts.py --card H100 --arch resnet_ds --out FILE
    python bench/bench_counts.py --card H100 --optimizer muon --out FILE
    python bench/bench_counts.py --card H100 --tiny --out FILE            # as the test does

Nothing here is a time: no kernel runs. PyTorch, Inductor and CUDA graph capture are real, the GPU
under them is tests/stand_in_gpu. Kinds of launches: Triton kernels of ours, Triton kernels that
Inductor generates, kernels of PyTorch's libraries, calls of cuDNN and cuBLAS (one each, whatever
they launch inside: a lower bound), copies and fills.

Bytes: of eager code one operation is one ATen call (`support/traffic.py`), of compiled code one
kernel or library call, as Inductor itself counts; compare within one convention. `host_calls` is
what the host submits or waits for in one step, and for the graph in one replay. Peak memory is that
of PyTorch's allocator from construction to the step's end, without cuDNN's workspaces.

Casts of weights outside compiled code are in no compiled byte. The loop is
`support.rivals.HandLoop` under autocast, without loss scaling and without data loading.

Private API: GraphLowering.compile_to_module and count_bytes, two cache switches, TrainStep._way
and what tests/support/stand_in_inductor.py names.
"""

import argparse
import itertools
import json
import logging
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BENCHMARK = {
    "title": "Launches, bytes and memory of a step, counted",
    "order": 15,
    "stage": "step",
    "ours": ("eager", "compile", "graph"),
    "is_timed": False,
}

PRECISION = {"H100": "bf16", "A100": "bf16", "V100": "fp16"}
ARCHS = ("densenet_ds", "resnet_ds")
ENGINES = ("loop", "eager", "compile", "graph")
TINY: dict[str, Any] = {"growth_rate": 2, "block_layers": 1, "base_width": 8, "batch_size": 64}


def main(arguments: Sequence[str] | None = None) -> int:
    """Count on each card in a process of its own: the stand-in is one GPU for its life."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--card", choices=PRECISION, action="append")
    parser.add_argument("--arch", choices=ARCHS, action="append")
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw")
    parser.add_argument("--tiny", action="store_true", help="a small network on 8x8 images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    cards, archs = options.card or list(PRECISION), options.arch or list(ARCHS)
    if options.worker:
        print(json.dumps(count_card(cards[0], archs[0], options.optimizer, options.tiny)))
        return 0
    common = ["--optimizer", options.optimizer, *(["--tiny"] if options.tiny else [])]
    found = []
    for card, arch in itertools.product(cards, archs):
        shape = ["--card", card, "--arch", arch, *common]
        command = [sys.executable, __file__, "--worker", *shape, "--out", "-"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    options.out.write_text(json.dumps({"counts": found}, indent=1) + "\n", encoding="utf-8")
    return 0


def count_card(card: str, arch: str, optimizer: str, tiny: bool) -> dict[str, Any]:
    """Return the counts of every engine on `card`, each in a fork that starts from nothing."""
    tests = Path(__file__).resolve().parents[1] / "tests"
    sys.path[:0] = [str(tests), str(tests / "support")]
    import stand_in_gpu
    from stand_in_gpu.processes import in_own_process

    gpu = stand_in_gpu.load(card)
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    import torch
    import torch._inductor.compile_fx  # once, for every fork
    import triton

    engines = {}
    # A loop by hand has AdamW alone.
    for engine in ENGINES if optimizer == "adamw" else ENGINES[1:]:
        outcome = in_own_process(count_engine, gpu, engine, PRECISION[card], arch, optimizer, tiny)
        if "result" not in outcome:
            raise RuntimeError(f"{card} {engine}: {outcome}")
        engines[engine] = outcome["result"]
    return {
        "card": card,
        "precision": PRECISION[card],
        "arch": arch,
        "optimizer": optimizer,
        "batch_size": TINY["batch_size"] if tiny else 128,
        "torch": torch.__version__.partition("+")[0],
        "triton": triton.__version__,
        "engines": engines,
    }


def count_engine(
    gpu: Any, engine: str, precision: str, arch: str, optimizer: str, tiny: bool
) -> dict[str, Any]:
    """Return the counts of one engine's step, after the warm-up."""
    import torch
    from stand_in_inductor import note_instead_of_compiling

    from lion_fast.config import TrainConfig
    from support.training import Training

    note_instead_of_compiling(gpu)
    compiled_bytes = watch_inductor()
    settings: dict[str, Any] = {
        "engine": "eager" if engine == "loop" else engine, "precision": precision, "arch": arch,
        "device": "cuda", "loader": "resident", "impl": "triton", "steps_per_replay": 1,
        "init": "he", "optimizer": optimizer, "backbone": "modules",
    }  # fmt: skip
    config = TrainConfig(**settings | (TINY if tiny else {}))
    training = Training(config, noise(8 if tiny else 32), num_steps=8)
    captured = [record for record in gpu.records() if record.capture]
    take_step: Callable[[], None] = training
    if engine == "loop":
        take_step = loop_step(training, config)
    take_step()
    gpu.clear()
    take_step()
    records = gpu.records()
    found = {
        "launches": launches(captured if engine == "graph" else records),
        "host_calls": len(records),
        "syncs": sum(record.kind == "sync" for record in records),
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "bytes": dict(compiled_bytes),
    }
    if engine in ("loop", "eager"):
        found["bytes"] = eager_bytes(take_step, training, engine)
    training.close()
    return found


def noise(side: int) -> Any:
    """Return an image set of zeros; nothing reads a value."""
    import torch

    from lion_fast.data.images import ImageSet

    images, labels = torch.zeros(1280, side, side, 3, dtype=torch.uint8), torch.zeros(1280).long()
    return ImageSet(
        "zeros", images, labels, images[:8], labels[:8], tuple(map(str, range(10))),
        (0.5, 0.5, 0.5), (0.2, 0.2, 0.2),
    )  # fmt: skip


def loop_step(training: Any, config: Any) -> Callable[[], None]:
    """Return the hand-written step over the training's own batches."""
    from torch import Tensor, nn

    from lion_fast.training.step.step import autocast
    from support.rivals import HandLoop

    class Autocast(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> list[Tensor]:
            with autocast(training.resolved):
                return [logits.float() for logits in self.model(images)]

    return HandLoop(Autocast(training.step.model), training.first_batches(1), config)


def launches(records: Sequence[Any]) -> dict[str, int]:
    """Return how many launches of each kind the records hold."""
    names = {"runtime kernel": "pytorch", "library": "cudnn_cublas", "copy": "copy", "fill": "fill"}
    kinds: Counter[str] = Counter()
    for record in records:
        if record.kind == "driver kernel":
            # Inductor names what it generates so.
            kinds["inductor" if record.name.startswith("triton_") else "ours"] += 1
        elif record.is_launch:
            kinds[names[record.kind]] += 1
    return {kind: kinds[kind] for kind in ("ours", "inductor", *names.values())}


def eager_bytes(take_step: Callable[[], None], training: Any, engine: str) -> dict[str, int]:
    """Take a step; return its bytes by part, of which the loop's is one."""
    from support.traffic import Traffic

    traffic = Traffic()

    def within(function: Callable[..., Any], part: str, then: str) -> Callable[..., Any]:
        def inner(*args: Any, **kwargs: Any) -> Any:
            traffic.part = part
            result = function(*args, **kwargs)
            traffic.part = then
            return result

        return inner

    if engine == "eager":
        step = training.step
        step._way.forward = within(step._way.forward, "forward", "backward")
        step.optimizer.step = within(step.optimizer.step, "optimizer", "other")
    else:
        traffic.part = "step"
    with traffic:
        take_step()
    return dict(sorted(traffic.num_bytes.items()))


def watch_inductor() -> Counter[str]:
    """Return a counter that every graph adds its bytes to as Inductor lowers it."""
    import torch._functorch.config
    import torch._inductor.config
    from torch._inductor.graph import GraphLowering

    # A graph out of a cache is not lowered again.
    torch._inductor.config.fx_graph_cache = False
    torch._functorch.config.enable_autograd_cache = False
    found: Counter[str] = Counter()
    lower = GraphLowering.compile_to_module

    def compile_to_module(graph: Any) -> Any:
        module = lower(graph)
        found["backward" if graph.is_backward else "forward"] += graph.count_bytes()[0]
        return module

    GraphLowering.compile_to_module = compile_to_module  # type: ignore[assignment, method-assign]
    return found


if __name__ == "__main__":
    sys.exit(main())
