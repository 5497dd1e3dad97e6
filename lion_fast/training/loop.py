"""train(config): from a config to a run folder and a Summary."""

import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Loader, planned_batch
from lion_fast.data.dataset import DataSet
from lion_fast.models import DeeplySupervised
from lion_fast.training.folder.files import DiskError
from lion_fast.training.folder.resume import in_its_precision
from lion_fast.training.folder.summary import Summary
from lion_fast.training.machine.guards import Interrupted, StopSignals, memory_advice
from lion_fast.training.machine.host_memory import keep_freed_memory
from lion_fast.training.machine.paths import anchored
from lion_fast.training.machine.resolve import remarks, resolve
from lion_fast.training.measure.probe import probe_gradients
from lion_fast.training.measure.validate import Validation, validate
from lion_fast.training.outcome import summarize
from lion_fast.training.ranks.restart import unmark_run
from lion_fast.training.ranks.shared_norm import unshared
from lion_fast.training.ranks.torchrun import ranks_here
from lion_fast.training.ranks.world import joined
from lion_fast.training.run import Run, opened
from lion_fast.training.screen.console import Console, Silent, ending
from lion_fast.training.screen.progress import Reporter, Steady, farewell
from lion_fast.training.step.clock import TrainingClock
from lion_fast.training.step.engine import Engine, make_engine
from lion_fast.training.step.history import row_width
from lion_fast.training.step.own import MakeModel, MakeOptimizer, Own, Schedule
from lion_fast.training.step.reuse import StepCache
from lion_fast.training.step.step import float32_precision, made_current


def train(
    config: TrainConfig,
    *,
    resume: Path | str | None = None,
    console: Console | None = None,
    model: DeeplySupervised | MakeModel | None = None,
    images: DataSet | None = None,
    optimizer: MakeOptimizer | None = None,
    schedule: Schedule | None = None,
    reuse: StepCache | None = None,
) -> Summary:
    """Train one network as `config` says, or go on with the run folder `resume`.

    model: a network of your own, or a function from num_classes and image_size to one; it is
    initialised by `config.init` like ours. images: a set of your own. optimizer: from parameters to
    an optimizer, instead of `config.optimizer`. schedule: from a step, counted from 0, to the
    factor of the learning rate in it, instead of `config.schedule`. reuse: where steps are kept
    from one call to the next, so that a run of the same shape as an earlier one (`setup_key`) is
    not set up anew; its numbers are those of a run without it.

    On a CPU, the process keeps freed memory from now on (see `keep_freed_memory`).

    Writes a run folder and returns its summary. Raises UserError on bad input, on a non-finite loss
    (the last good checkpoint stays) and when memory or disk run out; Interrupted, which is a
    KeyboardInterrupt, on Ctrl-C, SIGTERM and SIGHUP, after saving a checkpoint. A console that can
    no longer be written does not end the run.

    In processes that torchrun has started, all train this one network, each on its part of every
    batch. The first alone writes and speaks; all return the same numbers, but for their own clocks.
    """
    started = time.perf_counter()
    own = Own(model, images, optimizer, schedule)
    config = own.described(anchored(config))
    screen = Steady(console if console and ranks_here().leads else Silent())
    with StopSignals() as signals, closing(screen), memory_advice(config), joined() as world:
        with world.agreed():
            resolved = resolve(world.placed(in_its_precision(config, resume)))
        if resolved.device.type == "cpu":
            keep_freed_memory()
        world.connect(config, resolved)
        picked = "  ".join(f"{name} {value}" for name, value in resolved.to_dict().items())
        screen.say([f"{config.dataset}  {config.arch}  {config.init}  seed {config.seed}", picked])
        with (
            made_current(resolved.device),
            float32_precision(resolved),
            opened(config, resolved, own, resume, screen, reuse, world) as run,
        ):
            screen.say([run.images.describe(), *remarks(config, run.resolved)])
            if world.size > 1:
                screen.say([f"{world.size} processes share every batch of {config.batch_size}"])
            try:
                summary = _execute(run, screen, signals, started=started)
            except KeyboardInterrupt:
                screen.close()
                screen.say([farewell(run.record)])
                raise
            if world.leads:
                unmark_run(config)
        screen.close()
        screen.say(ending(summary))
    return summary


def _execute(
    run: Run,
    screen: Console,
    signals: StopSignals,
    *,
    started: float,
) -> Summary:
    """Train to the end and return the summary; `started`: perf_counter() at the start."""
    config, resolved, record = run.config, run.resolved, run.record
    setup_started = time.perf_counter()
    # A shared step's row ends with the wish of any rank to stop.
    width = row_width(run.history.num_heads) + (run.step.sharing is not None)
    with ExitStack() as held, closing(record):
        loader = held.enter_context(closing(run.loader()))
        engine = run.restarted_engine(loader)
        if engine is None:
            engine = make_engine(run.step, loader, width, config, resolved)
        reporter = Reporter(screen, config, run.history, resolved.device)
        training = _Training(run, loader, engine, reporter, signals, screen)
        is_set_up = run.reused
        if not run.reused and not training.finished:
            with screen.stage(_SETUP[resolved.engine]):
                engine.setup(len(run.history))
            is_set_up = True
        record.open()
        if resolved.device.type == "cuda":
            torch.cuda.synchronize(resolved.device)
        setup_seconds = time.perf_counter() - setup_started
        loader.data_wait_seconds = 0.0
        with signals.deferred():
            training.train()
            validation = training.validate()
            summary = summarize(
                run,
                validation,
                loader,
                setup_seconds=setup_seconds,
                total_seconds=time.perf_counter() - started,
                data_wait_percent=reporter.data_wait_percent(loader),
            )
            screen.say(record.finish(summary))
        if is_set_up and run.keeps:
            run.keep(loader, engine)
            if loader.walks_on_device:
                held.pop_all()
    return summary


# What the engine does before the first step, in words.
_SETUP = {
    "loop": "setting up",
    "eager": "setting up",
    "compile": "compiling the step",
    "graph": "compiling and capturing the step",
}


class _Chunk(NamedTuple):
    """Steps that the device may still be working on."""

    rows: Tensor
    seconds: Callable[[], float]


class _Training:
    """The hot loop: steps that are enqueued on the device, and steps that have been read back."""

    def __init__(
        self,
        run: Run,
        loader: Loader,
        engine: Engine,
        reporter: Reporter,
        signals: StopSignals,
        screen: Console,
    ) -> None:
        self.config, self.history, self.record = run.config, run.history, run.record
        self.images, self.plan, self.resolved = run.images, run.plan, run.resolved
        self.step, self.loader, self.engine = run.step, loader, engine
        self.reporter, self.signals, self.screen = reporter, signals, screen
        self.is_alone, self.all_stop = run.world.size == 1, False
        self.clock = TrainingClock(run.resolved.device, run.history.seconds)
        self.lag = _lag(run.resolved.device)
        self.enqueued = len(run.history)
        self.pending: deque[_Chunk] = deque()

    @property
    def finished(self) -> bool:
        """Whether no step is left to enqueue."""
        reached = self.config.stop_at_target and self.history.target_record is not None
        return reached or self.enqueued >= self.config.max_steps

    def train(self) -> None:
        """Train to the end, a checkpoint included.

        Raises Interrupted and DiskError, having saved one too where the disk allows it.
        """
        try:
            self._save_and_validate_if_due()
            while not self.finished:
                self._probe_if_due()
                self._advance()
                self.reporter.report(self.record, self.loader)
                self._check_signals()
                self._save_and_validate_if_due()
        except (Interrupted, DiskError):
            self._save()
            raise
        self._save()

    def _advance(self) -> None:
        if not self.clock.running:
            self.clock.start()
        if not self.is_alone and self.signals.received and self.step.sharing:
            self.step.sharing.ask_to_stop()
        num_steps = self._steps_before_pause()
        rows = self.engine.run(num_steps)
        self.pending.append(_Chunk(_to_host(rows), self.clock.mark()))
        self.enqueued += num_steps
        self._read_meter(self.lag)

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
            rows = chunk.rows
            if self.step.sharing is not None:
                rows, flags = rows[:, :-1], rows[:, -1]
                self.all_stop |= bool(flags.any())
            self.record.add_steps(rows, seconds)

    def _check_signals(self) -> None:
        """Raise Interrupted at a signal: of several ranks all at once, when all have read of it."""
        if self.is_alone:
            self.signals.check()
        elif self.all_stop:
            raise Interrupted(self.signals.received or signal.SIGTERM)

    def _pause(self) -> None:
        """Wait for the device, read the whole meter, stop the clock."""
        self._read_meter(0)
        self.clock.pause()

    def _due(self, every: int) -> bool:
        return every > 0 and self.enqueued % every == 0

    def _save_and_validate_if_due(self) -> None:
        """Do what is due between steps: save first, for a validation may be cut short."""
        if self.enqueued == 0 or self.finished:
            return
        if self._due(self.config.checkpoint_every):
            self._save()
        if self._due(self.config.eval_every) and not self.record.is_validated(self.enqueued):
            self.validate()

    def validate(self) -> Validation:
        """Measure the test split at the present step; raises Interrupted at a signal."""
        self._pause()
        # Every rank measures all images, so that none waits for another, or stops without it.
        check = self.signals.check if self.is_alone else lambda: None
        with self.screen.stage("validating"):
            validation = validate(self.step.model, self.images, self.resolved, check)
        self.record.add_validation(validation)
        return validation

    def _save(self) -> None:
        self._pause()
        if self.record.saved_step != len(self.history):
            self.record.save(self.step.state_dict())

    def _probe_if_due(self) -> None:
        if not self._due(self.config.gradient_ratio_every):
            return
        self._pause()
        # Every rank probes the whole batch by itself: it takes no other rank, and the numbers are
        # those of one process.
        planned = self.plan.whole.steps(self.enqueued, self.enqueued + 1)
        indices = torch.from_numpy(planned.indices[0])
        resolved = self.resolved
        batch = planned_batch(
            self.images, indices, resolved.device, resolved.compute_dtype, impl=resolved.impl
        )
        with unshared(self.step.model):
            probe = probe_gradients(
                self.step.model,
                batch,
                self.step.next_aux_weight(),
                step=self.enqueued + 1,
                loss=self.step.loss,
                resolved=self.resolved,
            )
        self.record.add_probe(probe)


def _lag(device: torch.device) -> int:
    """Return how many chunks behind the device the host reads the meter.

    On a GPU far enough that reading never waits for work in progress, and always as many, so that a
    run stopped at its target stops at the same step each time.
    """
    return 2 if device.type == "cuda" else 0


def _to_host(rows: Tensor) -> Tensor:
    """Start copying meter rows to the host; whole once work enqueued after this has finished."""
    if rows.device.type == "cpu":
        return rows.clone()
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    return host.copy_(rows, non_blocking=True)
