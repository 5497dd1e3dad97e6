"""How steps are executed: one by one, or replayed as a CUDA graph of several whole steps."""

from typing import Protocol

import torch
from torch import Tensor

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch, Loader
from lion_fast.resolutions import FULL_SIZE, Resolutions
from lion_fast.training.machine.resolve import Resolved
from lion_fast.training.step.step import TrainStep


class Engine(Protocol):
    """Executes training steps in chunks, each on images of one size."""

    chunk_steps: int
    """Most steps that one `run` may take."""

    def setup(self, first_step: int) -> None:
        """Compile, capture, warm up for every size from `first_step` on.

        Leaves training as it was, and the loader at `first_step`.
        """

    def run(self, num_steps: int) -> Tensor:
        """Enqueue 1 <= num_steps <= chunk_steps steps; return their meter rows on the device.

        Their images are of one size. The rows (num_steps, 1 + 2H) are overwritten by the next call.
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
    resolutions = Resolutions.parse(config.resolutions)
    if resolved.engine == "graph":
        return GraphEngine(step, loader, rows, resolutions)
    return StepEngine(step, loader, rows, resolutions)


def compiles(config: TrainConfig, resolved: Resolved) -> bool:
    """Whether the resolved engine runs compiled steps."""
    return resolved.engine == "compile" or (resolved.engine == "graph" and config.graph_compile)


def rehearse(
    step: TrainStep, loader: Loader, row: Tensor, num_steps: int, side: int | None = None
) -> None:
    """Train for `num_steps` on real images with dummy labels, then undo it all.

    This compiles kernels, fills caches and creates the optimizer's state, without learning
    anything. side: of the images, as in `Loader.next`.
    """
    images, labels = loader.next(side)
    dummy = Batch(images, torch.zeros_like(labels))
    with step.rehearsal():
        for _ in range(num_steps):
            step(dummy, row)


class _PlannedEngine:
    """What both engines keep: the step, and where it is in the plan and in the course of sizes."""

    def __init__(
        self,
        step: TrainStep,
        loader: Loader,
        rows: Tensor,
        resolutions: Resolutions = FULL_SIZE,
    ) -> None:
        self.chunk_steps = len(rows)
        self._step, self._loader, self._rows = step, loader, rows
        self._resolutions = resolutions
        self._next = 0

    def restart(self, loader: Loader) -> None:
        """Begin again; see `Engine.restart`."""
        assert loader is self._loader or not loader.walks_on_device
        self._loader = loader
        self._seek(0)

    def _seek(self, step: int) -> None:
        """Let `step`, counted from 0, come next."""
        self._loader.seek(step)
        self._next = step

    def _advance(self, num_steps: int) -> int | None:
        """Go so many steps on; return the size of their images, as in `Loader.next`."""
        side = self._resolutions.side_at(self._next)
        self._next += num_steps
        assert side == self._resolutions.side_at(self._next - 1), "a chunk of two sizes"
        return side


class StepEngine(_PlannedEngine):
    """Engines eager and compile: every step is issued from Python."""

    def setup(self, first_step: int) -> None:
        """Compile and warm up; see `Engine.setup`."""
        for side in self._resolutions.sides_from(first_step):
            self._seek(first_step)
            rehearse(self._step, self._loader, self._rows[0], num_steps=2, side=side)
        self._seek(first_step)

    def run(self, num_steps: int) -> Tensor:
        """Issue `num_steps` steps; see `Engine.run`."""
        side = self._advance(num_steps)
        for row in self._rows[:num_steps]:
            self._step(self._loader.next(side), row)
        return self._rows[:num_steps]


class GraphEngine(_PlannedEngine):
    """Engine graph: `steps_per_replay` whole steps in one CUDA graph.

    Data is included where the loader allows it; else static buffers are filled before a replay.

    A second graph of a single step serves the remainder before a validation, a checkpoint, another
    size or the end. Every size has two such graphs.
    """

    def setup(self, first_step: int) -> None:
        """Compile, warm up on a side stream and capture; see `Engine.setup`."""
        chunk, sides = self.chunk_steps, self._resolutions.sides_from(first_step)
        self._graphs: dict[tuple[int | None, int], torch.cuda.CUDAGraph] = {}
        self._slots: dict[int | None, Batch] = {}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for side in sides:
                self._seek(first_step)
                if not self._loader.walks_on_device:
                    self._slots[side] = _slots_like(self._loader.next(side), chunk)
                rehearse(self._step, self._loader, self._rows[0], num_steps=3, side=side)
        torch.cuda.current_stream().wait_stream(stream)
        pool = torch.cuda.graph_pool_handle()
        for side in sides:
            for num_steps in sorted({chunk, 1}, reverse=True):
                graph = torch.cuda.CUDAGraph()
                # thread_local: a loader's own threads may call CUDA while this thread captures.
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    for slot in range(num_steps):
                        self._step(self._batch(side, slot), self._rows[slot])
                self._graphs[side, num_steps] = graph
        self._seek(first_step)

    def _batch(self, side: int | None, slot: int) -> Batch:
        if side not in self._slots:
            return self._loader.next(side)
        images, labels = self._slots[side]
        return Batch(images[slot], labels[slot])

    def run(self, num_steps: int) -> Tensor:
        """Replay `num_steps` steps; see `Engine.run`."""
        side = self._advance(num_steps)
        if num_steps == self.chunk_steps:
            self._replay(side, num_steps)
            return self._rows
        done = torch.empty_like(self._rows[:num_steps])
        for slot in range(num_steps):
            self._replay(side, 1)
            done[slot].copy_(self._rows[0])
        return done

    def _replay(self, side: int | None, num_steps: int) -> None:
        if side in self._slots:
            images, labels = self._slots[side]
            self._loader.next_into(images[:num_steps], labels[:num_steps], side)
        self._graphs[side, num_steps].replay()


def _slots_like(batch: Batch, num: int) -> Batch:
    """Return slots (num, B, 3, h, w) and (num, B), each with the memory format of `batch`."""
    images, labels = batch.images, batch.labels.new_zeros(num, len(batch.labels))
    if images.is_contiguous():
        return Batch(torch.stack([images] * num), labels)
    stacked = torch.stack([images.permute(0, 2, 3, 1)] * num)
    return Batch(stacked.permute(0, 1, 4, 2, 3), labels)
