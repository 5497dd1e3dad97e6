"""A run before its first step: network, step and record, fresh or as a checkpoint left them."""

import time

from lion_fast.config import TrainConfig
from lion_fast.data import make_loader
from lion_fast.data.batches import BatchSpec, Loader
from lion_fast.data.dataset import DataSet
from lion_fast.data.plan import BatchPlan
from lion_fast.training.build import build
from lion_fast.training.checkpoint import load_checkpoint
from lion_fast.training.history import History
from lion_fast.training.record import RunRecord
from lion_fast.training.resolve import Resolved
from lion_fast.training.rundir import RunFolder
from lion_fast.training.step import TrainStep


class Run:
    """One run, set up from its folder: fresh, or as its newest checkpoint left it."""

    def __init__(
        self,
        config: TrainConfig,
        resolved: Resolved,
        images: DataSet,
        folder: RunFolder,
    ) -> None:
        self.config, self.resolved, self.images = config, resolved, images
        self.plan = BatchPlan(images.num_train, config.batch_size, config.seed, config.crop_padding)
        init_started = time.perf_counter()
        model = build(config, resolved, images, self.plan)
        self.init_seconds = time.perf_counter() - init_started
        self.step = TrainStep(model, config, resolved)
        num_aux = len(model.heads.aux)
        self.history = History(
            num_heads=num_aux + 1,
            batch_size=config.batch_size,
            window=config.window,
            target=config.target_accuracy,
        )
        self.record = RunRecord(folder, config, self.history, num_aux)
        checkpoint = load_checkpoint(folder.path)
        if checkpoint is not None:
            self.record.load(checkpoint)
            self.step.load_state_dict(checkpoint["training"])

    def loader(self) -> Loader:
        """Return the loader of this run's batches; close it."""
        return make_loader(
            self.resolved.loader,
            self.images,
            self.plan,
            BatchSpec.of(
                self.images,
                num_steps=self.config.max_steps,
                device=self.resolved.device,
                dtype=self.resolved.compute_dtype,
            ),
            impl=self.resolved.impl,
            steps_per_run=self.config.steps_per_run,
            num_workers=self.config.num_workers,
        )
