"""One rank of runs that several processes share: `world_runs.py FOLDER DATASET SCENARIO...`.

The parent says in RANK and WORLD_SIZE which one it is. Writes FOLDER/rank<N>.json: by scenario what
`train` returned or the error that it ended with.
"""

import copy
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch
from lion_fast.errors import UserError
from lion_fast.models import densenet_ds
from lion_fast.training import Interrupted, train
from lion_fast.training.machine.resolve import resolve
from lion_fast.training.ranks import patience
from lion_fast.training.ranks.shared_norm import share_norms
from lion_fast.training.ranks.sharing import Sharing
from lion_fast.training.ranks.torchrun import Ranks
from lion_fast.training.ranks.world import World
from lion_fast.training.screen.console import Silent

STEPS = 12
CHECKPOINT = 5


def base(folder: Path, dataset: str) -> TrainConfig:
    """Return a run that is trained alike by one process and by several."""
    return TrainConfig(
        dataset=dataset,
        growth_rate=2,
        block_layers=1,
        batch_size=32,
        max_steps=STEPS,
        window=4,
        checkpoint_every=CHECKPOINT,
        device="cpu",
        engine="eager",
        crop_padding=1,
        out=folder,
    )


class Stops(Silent):
    """A console that sends this process a signal at a step."""

    def progress(self, progress: Any) -> None:
        if progress.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)


def outcome(run: Callable[[], Any]) -> dict[str, Any]:
    try:
        summary = run()
    except UserError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    except Interrupted as stop:
        return {"interrupted": stop.signal_number}
    if isinstance(summary, dict):
        return summary
    return {
        "run": str(summary.run),
        "steps": summary.steps,
        "val_loss": summary.val_loss,
        "world_size": summary.world_size,
        "rates": [summary.images_per_second, summary.images_per_second_per_device],
    }


def overflow(rank: int) -> dict[str, Any]:
    """Two weights of 1 and a step in which rank 1's gradients are infinite."""
    model = densenet_ds(growth_rate=1, block_layers=1)
    weights = model.heads.main.linear.bias
    sharing = Sharing(model, world_of(rank), torch.device("cpu"), own_statistics=False)
    optimizer = torch.optim.SGD([weights], lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))

    def measure(batch: Batch, row: torch.Tensor) -> None:
        row.zero_()
        weights.grad = torch.full_like(weights, float("inf") if rank else 1.0)

    with torch.no_grad():
        weights.fill_(1)
    sharing(measure, Batch(torch.zeros(()), torch.zeros(())), torch.zeros(8))
    scaler.step(optimizer)
    scaler.update()
    return {"weights": weights[:2].tolist(), "scale": scaler.get_scale()}


def norm(rank: int) -> dict[str, Any]:
    """Errors, relative to the largest value, of a shared norm against one of the whole batch."""
    torch.manual_seed(0)
    whole = torch.randn(6, 5, 3, 4, dtype=torch.float64) * 3 + 1
    grad = torch.randn_like(whole)
    stock = torch.nn.BatchNorm2d(5).double()
    torch.nn.init.uniform_(stock.weight)
    ours = copy.deepcopy(stock)
    resolved = resolve(TrainConfig(device="cpu"))
    share_norms(torch.nn.Sequential(ours), resolved, world_of(rank))
    part = slice(3 * rank, 3 * rank + 3)
    found = []
    for module, x, dy in ((stock, whole, grad), (ours, whole[part], grad[part])):
        x = x.clone().to(memory_format=torch.channels_last).requires_grad_()
        y = module(x)
        y.backward(dy)
        found.append((y, x.grad, module.weight.grad, module.bias.grad))
    (y, dx, dw, db), (our_y, our_dx, our_dw, our_db) = found
    dist.all_reduce(our_dw)
    dist.all_reduce(our_db)
    pairs = {
        "y": (our_y, y[part]),
        "dx": (our_dx, dx[part]),
        "dw": (our_dw, dw),
        "db": (our_db, db),
        "mean": (ours.running_mean, stock.running_mean),
        "variance": (ours.running_var, stock.running_var),
    }
    return {name: ((a - b).abs().max() / b.abs().max()).item() for name, (a, b) in pairs.items()}


def world_of(rank: int) -> World:
    world = World(Ranks(rank, 2, rank, 2))
    world.group = dist.group.WORLD
    return world


def scenarios(config: TrainConfig, rank: int) -> dict[str, Callable[[], Any]]:
    shards = replace(config, virtual_shards=4)
    mine = replace(config, out=config.out / "mine")
    return {
        "global": lambda: train(replace(config, gradient_ratio_every=4, eval_every=6)),
        "local": lambda: train(replace(config, batch_norm="local")),
        "shards": lambda: train(shards),
        "sizes": lambda: train(replace(shards, dataset="digits", resolutions="8:4,12:3")),
        "resnet_shards": lambda: train(
            replace(shards, arch="resnet_ds", base_width=8, optimizer="muon", max_steps=4)
        ),
        "compiled": lambda: train(replace(config, engine="compile")),
        "stopped": lambda: train(replace(mine, log_every=1), console=Stops()),
        "odd_batch": lambda: train(replace(mine, batch_size=33)),
        "odd_shards": lambda: train(replace(mine, virtual_shards=3, batch_size=33)),
        "other_config": lambda: train(replace(mine, lr=0.001 * (1 + rank))),
        "no_data": lambda: train(replace(mine, dataset=[mine.dataset, "/nowhere.npz"][rank])),
        "other_data": lambda: train(replace(mine, dataset=[mine.dataset, "digits"][rank])),
        "one_device": lambda: train(replace(mine, device="cuda:0")),
        "no_gpu": lambda: train(replace(mine, device="cuda")),
        "diverging": lambda: train(replace(mine, lr=1e30)),
        "overflow": lambda: overflow(rank),
        "norm": lambda: norm(rank),
        "resumed": lambda: train(config, resume=os.environ["RESUME"]),
    }


def main() -> int:
    torch.set_num_threads(1)
    # On a busy machine a rank may keep others waiting for longer than they would after a signal.
    patience.OBEY = 600.0
    folder, dataset, *names = sys.argv[1:]
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
        )
    runs = scenarios(base(Path(folder, "runs"), dataset), rank)
    found = {name: outcome(runs[name]) for name in names}
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))
    if size > 1:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
