"""The training record: what each step measured, and the crossing of the target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from lion_fast.errors import UserError
from lion_fast.kernels import DenseLosses
from lion_fast.models import Losses
from lion_fast.resolutions import FULL_SIZE, Resolutions

PIXEL_HITS = 1_000_000
"""What hits are out of where every pixel has a class: the numbers of pixels that count differ from
batch to batch, and parts in a million are whole numbers of which float32 holds every one."""


def row_width(num_heads: int) -> int:
    """Floats that one step writes to the device meter: loss, H losses, H hit counts."""
    return 1 + 2 * num_heads


def write_row(row: Tensor, losses: Losses) -> None:
    """Write one step's measurements into `row` (1 + 2H,) float32, without a host sync.

    Hits are of images, or of PIXEL_HITS where every pixel has a class.
    """
    correct = losses.correct
    if isinstance(losses, DenseLosses):
        correct = correct * PIXEL_HITS // losses.valid.clamp(min=1)
    torch.cat(
        (losses.loss.detach().reshape(1).float(), losses.per_head.float(), correct.float()),
        out=row,
    )


@dataclass(frozen=True)
class StepRecord:
    """One training step, measured before its update."""

    step: int
    """1-based."""
    loss: float
    per_head: tuple[float, ...]
    correct: tuple[int, ...]
    """Hits of each head, of `History.hits_of`."""
    seconds: float
    """Training clock when this step, or the replay that held it, had finished on the device."""
    images_per_second: float
    """Throughput, averaged over the steps that finished together; 0 where the clock did not
    move."""


class History:
    """Every step so far, and the first whose windowed main-head accuracy reaches the target.

    The window holds the last `window` steps on images of one size, so that it begins anew at
    another, and counts only when full, at full size. Hits are integers, so the crossing does not
    depend on summation order.

    hits_of: what a step's hits are out of, by default the images of a batch.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        batch_size: int,
        window: int,
        target: float,
        hits_of: int | None = None,
        resolutions: Resolutions = FULL_SIZE,
    ) -> None:
        self.num_heads = num_heads
        self.batch_size = batch_size
        self.hits_of = hits_of or batch_size
        self.window = window
        self.target = target
        self.resolutions = resolutions
        self.records: list[StepRecord] = []
        self.windowed: list[float | None] = []
        """Accuracy of the window that ends with each step; None where it does not count."""
        self.windowed_before: list[float | None] = []
        """The same of smaller images, which does not count; None at full size."""
        self.target_record: StepRecord | None = None
        self._hits_in_window = self._steps_in_window = 0

    def __len__(self) -> int:
        return len(self.records)

    @property
    def seconds(self) -> float:
        """Training clock at the last recorded step."""
        return self.records[-1].seconds if self.records else 0.0

    def extend(self, rows: Tensor, seconds: float) -> list[StepRecord]:
        """Append n steps, done at `seconds`, from meter rows (n, 1 + 2H) on the CPU.

        Raises UserError at the first non-finite loss; the steps before it are kept.
        """
        added = []
        heads = self.num_heads
        elapsed = seconds - self.seconds
        rate = len(rows) * self.batch_size / elapsed if elapsed > 0 else 0.0
        for row in rows.tolist():
            if not all(map(math.isfinite, row)):
                raise NonFiniteLoss(len(self.records) + 1, row[0])
            record = StepRecord(
                step=len(self.records) + 1,
                loss=row[0],
                per_head=tuple(row[1 : 1 + heads]),
                correct=tuple(int(hits) for hits in row[1 + heads :]),
                seconds=seconds,
                images_per_second=rate,
            )
            self._append(record)
            added.append(record)
        return added

    def _append(self, record: StepRecord) -> None:
        if len(self.records) in self.resolutions.changes:
            self._hits_in_window = self._steps_in_window = 0
        self.records.append(record)
        self._hits_in_window += record.correct[-1]
        self._steps_in_window += 1
        if self._steps_in_window > self.window:
            self._hits_in_window -= self.records[-1 - self.window].correct[-1]
            self._steps_in_window = self.window
        is_full_size = len(self.records) > self.resolutions.num_reduced
        found = self.recent_accuracy() if self._steps_in_window == self.window else None
        accuracy = found if is_full_size else None
        self.windowed.append(accuracy)
        self.windowed_before.append(None if is_full_size else found)
        if self.target_record is None and accuracy is not None and accuracy >= self.target:
            self.target_record = record

    def accuracy(self, record: StepRecord) -> float:
        """Training accuracy of the main head in that step's batch."""
        return record.correct[-1] / self.hits_of

    def median_step_milliseconds(self) -> float | None:
        """Median over steps of milliseconds per step."""
        rates = [r.images_per_second for r in self.records if r.images_per_second]
        return median(1000 * self.batch_size / rate for rate in rates) if rates else None

    def recent_accuracy(self) -> float:
        """Main-head training accuracy over the last `window` steps of one size, or all so far."""
        num_steps = self._steps_in_window
        return self._hits_in_window / (num_steps * self.hits_of) if num_steps else 0.0

    def state(self) -> Tensor:
        """Return the whole record as (S, 2 + 2H) float64, for a checkpoint."""
        rows = [[r.seconds, r.loss, *r.per_head, *r.correct] for r in self.records]
        return torch.tensor(rows, dtype=torch.float64).reshape(
            len(rows), 1 + row_width(self.num_heads)
        )

    def load_state(self, state: Tensor) -> None:
        """Restore from `state()`."""
        _, counts = torch.unique_consecutive(state[:, 0], return_counts=True)
        for rows in state.split(counts.tolist()):
            self.extend(rows[:, 1:], float(rows[0, 0]))


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite."""

    def __init__(self, step: int, loss: float) -> None:
        self.step = step
        super().__init__(f"loss is {loss} at step {step}")


def record_columns(num_heads: int) -> list[str]:
    """Header of metrics.csv."""
    heads = range(num_heads)
    return [
        "step",
        "loss",
        *(f"loss_head{h}" for h in heads),
        "train_accuracy",
        *(f"accuracy_head{h}" for h in heads),
        "train_accuracy_windowed",
        "seconds",
        "images_per_second",
    ]


def record_values(history: History, record: StepRecord) -> Sequence[object]:
    """One row of metrics.csv, in the order of `record_columns`."""
    windowed = history.windowed[record.step - 1]
    return [
        record.step,
        record.loss,
        *record.per_head,
        history.accuracy(record),
        *(hits / history.hits_of for hits in record.correct),
        "" if windowed is None else windowed,
        record.seconds,
        record.images_per_second,
    ]
