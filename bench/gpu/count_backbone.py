"""What a step with the fused backbone asks of a GPU, counted: `python bench/gpu/count_backbone.py`.

    python bench/gpu/count_backbone.py --out bench/results/counts/backbone-H100.json
    python bench/gpu/count_backbone.py --tiny --out FILE            # as the test does

As `bench_counts.py`, on the same stand-in for an H100: nothing here is a time. Engine graph over
compiled code, bf16. Bytes of the op's launches are `support/dense_traffic.py`'s; of all else in the
step, eager code's, an ATen call each (`support/traffic.py`), more than compiled code moves.
"""

import argparse
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CARD = "H100"
TINY: dict[str, Any] = {"block_layers": 1, "batch_size": 8}


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, and write what was found as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="one layer a block on 16x16 images")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.out.write_text(json.dumps(count(options.tiny), indent=1) + "\n", encoding="utf-8")
    return 0


def count(tiny: bool) -> dict[str, Any]:
    """Return launches of a captured step by kind and name, and bytes by part."""
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root / folder) for folder in ("bench", "tests", "tests/support")]
    import stand_in_gpu
    from stand_in_gpu.processes import in_own_process

    gpu = stand_in_gpu.load(CARD)
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    import torch
    import torch._inductor.compile_fx  # once, for every fork
    import triton

    found: dict[str, Any] = {
        "card": CARD, "precision": "bf16", "backbone": "fused",
        "batch_size": TINY["batch_size"] if tiny else 128,
        "torch": torch.__version__.partition("+")[0], "triton": triton.__version__,
    }  # fmt: skip
    for part in (count_launches, count_bytes):
        outcome = in_own_process(part, gpu, tiny)
        if "result" not in outcome:
            raise RuntimeError(f"{part.__name__}: {outcome}")
        found |= outcome["result"]
    return found


def make_training(gpu: Any, engine: str, tiny: bool) -> Any:
    """Return steps of the fused backbone, warmed up."""
    from bench_counts import noise
    from stand_in_inductor import note_instead_of_compiling

    from lion_fast.config import TrainConfig
    from support.training import Training

    note_instead_of_compiling(gpu)
    settings: dict[str, Any] = {
        "engine": engine, "precision": "bf16", "device": "cuda", "loader": "resident",
        "impl": "triton", "steps_per_replay": 1, "init": "lion_dg", "backbone": "fused",
    }  # fmt: skip
    config = TrainConfig(**settings | (TINY if tiny else {}))
    return Training(config, noise(16 if tiny else 32), num_steps=8)


def count_launches(gpu: Any, tiny: bool) -> dict[str, Any]:
    """Return the nodes of the captured step, and what a replay asks of the host."""
    from bench_counts import launches

    with make_training(gpu, "graph", tiny) as training:
        captured = [record for record in gpu.records() if record.capture]
        gpu.clear()
        training()
        replayed = gpu.records()
    names = Counter(r.name for r in captured if r.is_launch)
    return {
        "launches": launches(captured),
        "launches_by_name": dict(sorted(names.items())),
        "host_calls": len(replayed),
        "syncs": sum(record.kind == "sync" for record in [*captured, *replayed]),
    }


def count_bytes(gpu: Any, tiny: bool) -> dict[str, Any]:
    """Return the bytes of the op's launches, and of the rest of an eager step."""
    from lion_fast.kernels.dense.plan import Plan
    from support.dense_traffic import launch_bytes, scratch_bytes
    from support.traffic import Traffic

    class BesideTheOp(Traffic):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.part = "op" if "lion_fast::dense_" in func.name() else "rest"
            return super().__torch_dispatch__(func, types, args, kwargs)

    with make_training(gpu, "eager", tiny) as training:
        model, images = training.step.model, training.first_batches(1)[0].images
        with BesideTheOp() as traffic:
            training()
    sizes = (model.stem.out_channels, model.growth_rate, model.block_layers)
    plan = Plan(len(images), *images.shape[2:], *sizes)
    dense = launch_bytes(plan, images.element_size())
    parts = {
        "backbone": sum(dense.values()),
        "rest": traffic.num_bytes["rest"],
        "private scratch, not in backbone": scratch_bytes(plan, images.element_size()),
    }
    return {"bytes": parts, "bytes_by_launch": dense}


if __name__ == "__main__":
    sys.exit(main())
