"""How steps are executed: one by one, or replayed as a CUDA graph of several whole steps."""

from typing import Protocol

import torch
from torch import Tensor

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch, Loader
from lion_fast.training.machine.resolve import Resolved
from lion_fast.training.step.step import TrainStep


class Engine(Protocol):
    """Executes training steps in chunks."""

    chunk_steps: int
    """Most steps that one `run` may take."""

    def setup(self, first_step: int) -> None:
        """Compile, capture, warm up; leave training as it was and the loader at `first_step`."""

    def run(self, num_steps: int) -> Tensor:
        """Enqueue 1 <= num_steps <= chunk_steps steps; return their meter rows on the device.

        The rows (num_steps, 1 + 2H) are overwritten by the next call.
        """

    def restart(self, loader: Loader) -> None:
        """Begin again at the first step of `loader`, and keep what `setup` made.

        The loader is the one there was where that one walks on the device, else one of its like.
        """


def make_engine(
    step: TrainStep, loader: Loader, row_width: int, config: TrainConfig, resolved: Resolved
) -> Engine:
    """Return the resolved engine for `step` fed by `loader`; it compiles the step where asked."""
    if compiles(config, resolved):
        step.compile()
    chunk_steps = config.steps_per_replay if resolved.device.type == "cuda" else 1
    rows = torch.zeros(chunk_steps, row_width, device=resolved.device)
    if resolved.engine == "graph":
        return GraphEngine(step, loader, rows)
    return StepEngine(step, loader, rows)


def compiles(config: TrainConfig, resolved: Resolved) -> bool:
    """Whether the resolved engine runs compiled steps."""
    return resolved.engine == "compile" or (resolved.engine == "graph" and config.graph_compile)


def rehearse(step: TrainStep, loader: Loader, row: Tensor, num_steps: int) -> None:
    """Train for `num_steps` on real images with dummy labels, then undo it all.

    This compiles kernels, fills caches and creates the optimizer's state, without learning
    anything.
    """
    images, labels = loader.next()
    dummy = Batch(images, torch.zeros_like(labels))
    with step.rehearsal():
        for _ in range(num_steps):
            step(dummy, row)


class StepEngine:
    """Engines eager and compile: every step is issued from Python."""

    def __init__(self, step: TrainStep, loader: Loader, rows: Tensor) -> None:
        self.chunk_steps = len(rows)
        self._step, self._loader, self._rows = step, loader, rows

    def setup(self, first_step: int) -> None:
        """Compile and warm up; see `Engine.setup`."""
        self._loader.seek(first_step)
        rehearse(self._step, self._loader, self._rows[0], num_steps=2)
        self._loader.seek(first_step)

    def run(self, num_steps: int) -> Tensor:
        """Issue `num_steps` steps; see `Engine.run`."""
        for row in self._rows[:num_steps]:
            self._step(self._loader.next(), row)
        return self._rows[:num_steps]

    def restart(self, loader: Loader) -> None:
        """Begin again; see `Engine.restart`."""
        self._loader = loader
        loader.seek(0)


class GraphEngine:
    """Engine graph: `steps_per_replay` whole steps in one CUDA graph.

    Data is included where the loader allows it; else static buffers are filled before a replay.

    A second graph of a single step serves the remainder before a validation, a checkpoint or the
    end.
    """

    def __init__(self, step: TrainStep, loader: Loader, rows: Tensor) -> None:
        self.chunk_steps = len(rows)
        self._step, self._loader, self._rows = step, loader, rows
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._images: Tensor | None = None
        self._labels: Tensor | None = None

    def setup(self, first_step: int) -> None:
        """Compile, warm up on a side stream and capture; see `Engine.setup`."""
        loader, chunk = self._loader, self.chunk_steps
        loader.seek(first_step)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            if not loader.walks_on_device:
                batch = loader.next()
                self._images = _stack_like(batch.images, chunk)
                self._labels = batch.labels.new_zeros(chunk, len(batch.labels))
            rehearse(self._step, loader, self._rows[0], num_steps=3)
        torch.cuda.current_stream().wait_stream(side)
        pool = torch.cuda.graph_pool_handle()
        for num_steps in sorted({chunk, 1}, reverse=True):
            graph = torch.cuda.CUDAGraph()
            # thread_local: a loader's own threads may call CUDA while this thread captures.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                for slot in range(num_steps):
                    self._step(self._batch(slot), self._rows[slot])
            self._graphs[num_steps] = graph
        loader.seek(first_step)

    def _batch(self, slot: int) -> Batch:
        if self._images is None or self._labels is None:
            return self._loader.next()
        return Batch(self._images[slot], self._labels[slot])

    def run(self, num_steps: int) -> Tensor:
        """Replay `num_steps` steps; see `Engine.run`."""
        if num_steps == self.chunk_steps:
            self._replay(num_steps)
            return self._rows
        done = torch.empty_like(self._rows[:num_steps])
        for slot in range(num_steps):
            self._replay(1)
            done[slot].copy_(self._rows[0])
        return done

    def restart(self, loader: Loader) -> None:
        """Begin again; see `Engine.restart`."""
        assert loader is self._loader or not loader.walks_on_device
        self._loader = loader
        loader.seek(0)

    def _replay(self, num_steps: int) -> None:
        if self._images is not None and self._labels is not None:
            self._loader.next_into(self._images[:num_steps], self._labels[:num_steps])
        self._graphs[num_steps].replay()


def _stack_like(images: Tensor, num: int) -> Tensor:
    """Return (num, B, 3, H, W) slots, each with the memory format of `images`."""
    if images.is_contiguous():
        return torch.stack([images] * num)
    return torch.stack([images.permute(0, 2, 3, 1)] * num).permute(0, 1, 4, 2, 3)
