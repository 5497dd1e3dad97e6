"""The hot loop: steps that are enqueued on the device, and steps that have been read back."""

from collections import deque
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lion_fast.data.batches import planned_batch
from lion_fast.training.agenda import Agenda
from lion_fast.training.folder.files import DiskError
from lion_fast.training.machine.guards import Interrupted, StopSignals
from lion_fast.training.measure.probe import GradientProbe, probe_gradients
from lion_fast.training.measure.validate import Validation, validate
from lion_fast.training.screen.console import Console
from lion_fast.training.screen.progress import Reporter
from lion_fast.training.step.ahead import prepare_kernels
from lion_fast.training.step.clock import Standstill, TrainingClock

if TYPE_CHECKING:
    from lion_fast.training.stages import Equipped


# What the engine does before the first step, in words.
_SETUP = {
    "eager": "setting up",
    "compile": "compiling the step",
    "graph": "compiling and capturing the step",
}


class _Chunk(NamedTuple):
    """Steps that the device may still be working on."""

    rows: Tensor
    seconds: Callable[[], float]


class Training:
    """The hot loop of one process."""

    def __init__(self, equipped: "Equipped", signals: StopSignals, screen: Console) -> None:
        supplied, settled = equipped.supplied, equipped.supplied.settled
        self.agenda, self.resolved = Agenda.of(settled.config), settled.resolved
        self.images, self.plan, self.record = supplied.images, supplied.plan, supplied.record
        self.step, self.loader, self.engine = equipped.step, equipped.loader, equipped.engine
        self.history, self.signals, self.screen = self.record.history, signals, screen
        self.reporter = Reporter(
            screen,
            self.history,
            self.resolved.device,
            log_every=settled.config.log_every,
            max_steps=settled.config.max_steps,
        )
        self.is_set_up = settled.prepared is not None
        self.standstill = Standstill()
        self.clock = TrainingClock(
            self.resolved.device, self.history.seconds, self.standstill.seconds
        )
        self.lag = _lag(self.resolved.device)
        self.enqueued = len(self.history)
        self.pending: deque[_Chunk] = deque()

    def set_up(self) -> None:
        """Compile, capture and warm up the step, open the run's files, wait for the device.

        There is nothing to set up where the step was taken over, or the run has no step left.
        """
        if not self.is_set_up and not self.finished:
            sides = self.agenda.resolutions.sides_from(len(self.history))
            size, show = self.images.image_size, self.screen.stage
            ready = prepare_kernels(self.step, self.loader, self.resolved, size, sides, show)
            self.screen.say(ready)
            with self.screen.stage(_SETUP[self.resolved.engine]):
                self.engine.setup(len(self.history))
            self.is_set_up = True
        self.record.open()
        if self.resolved.device.type == "cuda":
            torch.cuda.synchronize(self.resolved.device)
        self.loader.data_wait_seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether no step is left to enqueue."""
        return self.agenda.is_over(self.history, self.enqueued)

    @property
    def data_wait_percent(self) -> float:
        """Share of this process's training time in which the host awaited a batch."""
        return self.reporter.data_wait_percent(self.loader)

    def train(self) -> None:
        """Train to the end, a checkpoint included.

        Raises Interrupted and DiskError, having saved one too where the disk allows it.
        """
        try:
            with closing(self.standstill):
                self.standstill.start()
                self._train()
        except (Interrupted, DiskError):
            self._save()
            raise
        self._save()

    def _train(self) -> None:
        self._save_and_validate_if_due()
        while not self.finished:
            if self._due(self.agenda.probe_every):
                self._pause()
                self.record.add_probe(self._probe())
            self._advance()
            self.reporter.report(self.record, self.loader)
            self._check_signals()
            self._save_and_validate_if_due()

    def _advance(self) -> None:
        if not self.clock.running:
            self.clock.start()
        num_steps = self.agenda.steps_before_pause(self.enqueued, self.engine.chunk_steps)
        rows = self.engine.run(num_steps)
        self.pending.append(_Chunk(_to_host(rows), self.clock.mark()))
        self.enqueued += num_steps
        self._read_meter(self.lag)

    def _read_meter(self, lag: int) -> None:
        while len(self.pending) > lag:
            chunk = self.pending.popleft()
            seconds = chunk.seconds()
            self.record.add_steps(self._measured(chunk.rows), seconds)

    def _measured(self, rows: Tensor) -> Tensor:
        """Return what the steps measured, (n, 1 + 2H), of the rows that they wrote."""
        return rows

    def _check_signals(self) -> None:
        """Raise Interrupted at a signal."""
        self.signals.check()

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
        if self._due(self.agenda.checkpoint_every):
            self._save()
        if self._due(self.agenda.eval_every) and not self.record.is_validated(self.enqueued):
            self.validate()

    def validate(self) -> Validation:
        """Measure the test split at the present step; raises Interrupted at a signal."""
        self._pause()
        with self.screen.stage("validating"):
            validation = validate(
                self.step.model,
                self.images,
                self.resolved,
                self.history.batch_size,
                self._between_test_batches,
            )
        self.record.add_validation(validation)
        return validation

    def _between_test_batches(self) -> None:
        self.signals.check()

    def _save(self) -> None:
        self._pause()
        if self.record.saved_step != len(self.history):
            self.record.save(self.step.state_dict())

    def _probe(self) -> GradientProbe:
        """Measure the gradients of the coming step's batch."""
        planned = self.plan.steps(self.enqueued, self.enqueued + 1)
        indices = torch.from_numpy(planned.indices[0])
        resolved = self.resolved
        batch = planned_batch(
            self.images,
            indices,
            resolved.device,
            resolved.compute_dtype,
            side=self.agenda.resolutions.side_at(self.enqueued),
            impl=resolved.impl,
        )
        return probe_gradients(
            self.step.model,
            batch,
            self.step.next_aux_weight(),
            step=self.enqueued + 1,
            loss=self.step.loss,
            resolved=resolved,
        )


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
