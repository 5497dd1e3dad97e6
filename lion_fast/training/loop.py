"""train(config): from a config to a run folder and a Summary."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lion_fast.config import TrainConfig
from lion_fast.data import make_loader
from lion_fast.data.batches import Loader
from lion_fast.data.encoded import EncodedSet, open_data
from lion_fast.data.images import ImageSet
from lion_fast.data.plan import BatchPlan
from lion_fast.training.build import build, planned_batch
from lion_fast.training.checkpoint import load_checkpoint
from lion_fast.training.clock import TrainingClock
from lion_fast.training.console import Console, Progress, Silent, ending
from lion_fast.training.engine import make_engine
from lion_fast.training.environment import (
    environment,
    peak_memory_mib,
    seconds_since_process_start,
)
from lion_fast.training.guards import deferred_interrupt, memory_advice
from lion_fast.training.history import History, row_width
from lion_fast.training.probe import probe_gradients
from lion_fast.training.record import RunRecord
from lion_fast.training.resolve import Resolved, resolve
from lion_fast.training.rundir import RunFolder
from lion_fast.training.step import TrainStep, float32_precision
from lion_fast.training.summary import Summary
from lion_fast.training.validate import Validation, validate

# On a GPU the host reads the meter this many chunks behind the device: far enough that reading
# never waits for work in progress, fixed so that a run stopped at its target always stops at the
# same step.
_READ_LAG_CHUNKS = 2


def train(
    config: TrainConfig, *, resume: Path | None = None, console: Console | None = None
) -> Summary:
    """Train one network as `config` says, or go on with the run folder `resume`.

    Writes a run folder and returns its summary. Raises UserError on bad input, on a non-finite loss
    (the last good checkpoint stays) and when memory or disk run out; KeyboardInterrupt on Ctrl-C,
    after saving a checkpoint.
    """
    started = time.perf_counter()
    console = console or Silent()
    resolved = resolve(config)
    images = open_data(config, resolved.loader)
    folder = RunFolder.reopen(resume, config) if resume else RunFolder.create(config)
    picked = "  ".join(f"{name} {value}" for name, value in resolved.to_dict().items())
    console.say([f"{config.dataset}  {config.arch}  {config.init}  seed {config.seed}", picked])
    try:
        with float32_precision(resolved), memory_advice(config), closing(console):
            summary = _Run(config, resolved, images, folder, console).execute(started)
    except KeyboardInterrupt:
        console.say([f"interrupted: go on with --resume {folder.path}"])
        raise
    console.say(ending(summary))
    return summary


class _Chunk(NamedTuple):
    """Steps that the device may still be working on."""

    rows: Tensor
    seconds: Callable[[], float]


class _Run:
    """One run in progress."""

    def __init__(
        self,
        config: TrainConfig,
        resolved: Resolved,
        images: ImageSet | EncodedSet,
        folder: RunFolder,
        console: Console,
    ) -> None:
        self.config, self.resolved, self.images, self.console = config, resolved, images, console
        self.plan = BatchPlan(images.num_train, config.batch_size, config.seed, config.crop_padding)
        init_started = time.perf_counter()
        self.model = build(config, resolved, images, self.plan)
        self.init_seconds = time.perf_counter() - init_started
        self.step = TrainStep(self.model, config, resolved)
        num_aux = len(self.model.heads.aux)
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
        self.enqueued = len(self.history)
        self.pending: deque[_Chunk] = deque()
        self.lag = _READ_LAG_CHUNKS if resolved.device.type == "cuda" else 0
        self.seconds_before = self.history.seconds
        self.reported_step, self.reported_seconds = self.enqueued, self.history.seconds

    def execute(self, started: float) -> Summary:
        """Train to the end and return the summary."""
        config, resolved = self.config, self.resolved
        setup_started = time.perf_counter()
        loader = make_loader(
            resolved.loader,
            self.images,
            self.plan,
            num_steps=config.max_steps,
            device=resolved.device,
            dtype=resolved.compute_dtype,
            impl=resolved.impl,
            steps_per_run=config.steps_per_run,
            num_workers=config.num_workers,
        )
        with closing(loader), closing(self.record):
            self.engine = make_engine(
                self.step, loader, row_width(self.history.num_heads), config, resolved
            )
            if not self._finished():
                self.engine.setup(self.enqueued)
            self.record.open()
            if resolved.device.type == "cuda":
                torch.cuda.synchronize(resolved.device)
            setup_seconds = time.perf_counter() - setup_started
            self.clock = TrainingClock(resolved.device, self.history.seconds)
            loader.data_wait_seconds = 0.0
            with deferred_interrupt() as interrupted:
                self._train(loader, interrupted)
            validation = self._validate()
            self._save()
            summary = self._summary(validation, loader, setup_seconds, started)
            self.record.finish(summary)
        return summary

    def _train(self, loader: Loader, interrupted: threading.Event) -> None:
        config = self.config
        while not self._finished():
            if self._due(config.gradient_ratio_every):
                self._pause()
                self._probe()
            if not self.clock.running:
                self.clock.start()
            num_steps = self._steps_before_pause()
            rows = self.engine.run(num_steps)
            self.pending.append(_Chunk(_to_host(rows), self.clock.mark()))
            self.enqueued += num_steps
            self._read_meter(self.lag)
            self._report(loader)
            if interrupted.is_set():
                self._save()
                raise KeyboardInterrupt
            if self.enqueued < config.max_steps:
                if self._due(config.eval_every):
                    self._validate()
                if self._due(config.checkpoint_every):
                    self._save()
        self._pause()

    def _finished(self) -> bool:
        reached = self.config.stop_at_target and self.history.target_record is not None
        return reached or self.enqueued >= self.config.max_steps

    def _due(self, every: int) -> bool:
        return every > 0 and self.enqueued % every == 0

    def _steps_before_pause(self) -> int:
        """Return a chunk, cut short before the next validation, checkpoint, probe or the end."""
        config = self.config
        periods = (config.eval_every, config.checkpoint_every, config.gradient_ratio_every)
        gaps = [period - self.enqueued % period for period in periods if period]
        return min(self.engine.chunk_steps, config.max_steps - self.enqueued, *gaps)

    def _read_meter(self, lag: int) -> None:
        while len(self.pending) > lag:
            chunk = self.pending.popleft()
            seconds = chunk.seconds()
            self.record.add_steps(chunk.rows, seconds)

    def _pause(self) -> None:
        """Wait for the device, read the whole meter, stop the clock."""
        self._read_meter(0)
        self.clock.pause()

    def _probe(self) -> None:
        config, resolved, step = self.config, self.resolved, len(self.history)
        indices = torch.from_numpy(self.plan.steps(step, step + 1).indices[0])
        probe = probe_gradients(
            self.model,
            planned_batch(self.images, indices, resolved.device, resolved.compute_dtype),
            self.step.next_aux_weight(),
            step=step + 1,
            label_smoothing=config.label_smoothing,
            resolved=resolved,
        )
        self.record.add_probe(probe)

    def _validate(self) -> Validation:
        self._pause()
        validation = validate(self.model, self.images, self.resolved)
        self.record.add_validation(validation)
        return validation

    def _save(self) -> None:
        self._pause()
        self.record.save(self.step.state_dict())

    def _report(self, loader: Loader) -> None:
        """Show a log line when the meter has passed the next multiple of log_every."""
        history, config = self.history, self.config
        step = len(history)
        if step // config.log_every == self.reported_step // config.log_every:
            return
        self.record.flush()
        interval = history.records[self.reported_step : step]
        seconds = history.seconds - self.reported_seconds
        self.console.progress(
            Progress(
                step=step,
                max_steps=config.max_steps,
                loss=sum(record.loss for record in interval) / len(interval),
                accuracy=history.recent_accuracy(),
                gradient_ratio=self.record.last_gradient_ratio,
                images_per_second=len(interval) * config.batch_size / seconds,
                step_milliseconds=1000 * seconds / len(interval),
                data_wait_percent=self._data_wait_percent(loader),
                memory_mib=peak_memory_mib(self.resolved.device),
            )
        )
        self.reported_step, self.reported_seconds = step, history.seconds

    def _data_wait_percent(self, loader: Loader) -> float:
        trained = self.history.seconds - self.seconds_before
        return 100 * loader.data_wait_seconds / trained if trained else 0.0

    def _summary(
        self, validation: Validation, loader: Loader, setup_seconds: float, started: float
    ) -> Summary:
        history, config, device = self.history, self.config, self.resolved.device
        target = history.target_record
        host_bytes, device_bytes = loader.memory_bytes()
        return Summary(
            run=self.record.folder.path,
            steps=len(history),
            target_accuracy=config.target_accuracy,
            window=config.window,
            steps_to_target=target.step if target else None,
            seconds_to_target=target.seconds if target else None,
            init_seconds=self.init_seconds,
            setup_seconds=setup_seconds,
            train_seconds=history.seconds,
            total_seconds=time.perf_counter() - started,
            process_seconds=seconds_since_process_start(),
            train_accuracy=history.recent_accuracy(),
            val_accuracy=validation.accuracy,
            val_accuracy_per_head=list(validation.accuracy_per_head),
            val_loss=validation.loss,
            images_per_second=len(history) * config.batch_size / history.seconds,
            step_milliseconds_median=history.median_step_milliseconds(),
            data_wait_percent=self._data_wait_percent(loader),
            loader_host_mib=host_bytes / 2**20,
            loader_device_mib=device_bytes / 2**20,
            peak_memory_mib=peak_memory_mib(device),
            num_parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            num_skipped_images=self.images.num_skipped + loader.num_skipped,
            resolved=self.resolved.to_dict(),
            config=config.to_dict(),
            environment=environment(device),
        )


def _to_host(rows: Tensor) -> Tensor:
    """Start copying meter rows to the host; whole once work enqueued after this has finished."""
    if rows.device.type == "cpu":
        return rows.clone()
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    return host.copy_(rows, non_blocking=True)
