"""The trainer's own steps without a run folder, for benchmarks that execute them on demand."""

from typing import Self

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch, BatchSpec
from lion_fast.data.images import ImageSet
from lion_fast.data.make import make_loader
from lion_fast.data.plan import BatchPlan
from lion_fast.training.machine.resolve import resolve
from lion_fast.training.step.build import build
from lion_fast.training.step.engine import make_engine
from lion_fast.training.step.history import row_width
from lion_fast.training.step.step import TrainStep, float32_precision


def _plan(config: TrainConfig, image_set: ImageSet) -> BatchPlan:
    return BatchPlan(
        len(image_set.train_labels), config.batch_size, config.seed, config.crop_padding
    )


def new_step(config: TrainConfig, image_set: ImageSet) -> TrainStep:
    """Return the step of a freshly initialised network; an engine compiles it."""
    resolved = resolve(config)
    model = build(config, resolved, image_set, _plan(config, image_set))
    return TrainStep(model, config, resolved)


class Training:
    """What `train(config)` executes between two reads of its meter, warmed up; one call is a chunk.

    num_steps: how many its calls may take until rewound. Networks of the same structure, precision
    and batch size share what `torch.compile` makes. Close it.
    """

    def __init__(
        self,
        config: TrainConfig,
        image_set: ImageSet,
        *,
        num_steps: int,
        chunks_per_call: int = 1,
    ) -> None:
        self.resolved = resolve(config)
        self.step = new_step(config, image_set)
        self.loader = make_loader(
            self.resolved.loader,
            image_set,
            _plan(config, image_set),
            BatchSpec.of(
                image_set,
                num_steps=num_steps,
                device=self.resolved.device,
                dtype=self.resolved.compute_dtype,
                reduces=bool(config.resolutions),
            ),
            impl=self.resolved.impl,
            steps_per_run=config.steps_per_run,
            num_workers=config.most_workers,
        )
        num_heads = len(self.step.model.heads.aux) + 1
        self._engine = make_engine(
            self.step, self.loader, row_width(num_heads), config, self.resolved
        )
        with float32_precision(self.resolved):
            self._engine.setup(0)
        self._chunks = chunks_per_call
        self.steps_per_call = chunks_per_call * self._engine.chunk_steps
        self._num_steps = self._steps_left = num_steps

    def __call__(self) -> None:
        """Enqueue `steps_per_call` steps, under the run's own precision settings."""
        self._steps_left -= self.steps_per_call
        assert self._steps_left >= 0, "num_steps is too low for this benchmark"
        with float32_precision(self.resolved):
            for _ in range(self._chunks):
                self._engine.run(self._engine.chunk_steps)

    def first_batches(self, num: int) -> list[Batch]:
        """Return the plan's first batches, to keep; the next step's batch is again the first."""
        self.rewind()
        batches = [Batch(*(tensor.clone() for tensor in self.loader.next())) for _ in range(num)]
        self.rewind()
        return batches

    def rewind(self) -> None:
        """Make the next step's batch the plan's first; the weights stay as they are."""
        self._engine.restart(self.loader)
        self._steps_left = self._num_steps

    def close(self) -> None:
        """Release the loader's processes and memory."""
        self.loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
