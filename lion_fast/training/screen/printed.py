"""What a run prints, in words: its first lines, its figures, its outcome."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lion_fast.resolutions import Resolutions
from lion_fast.training.folder.summary import Summary

if TYPE_CHECKING:
    from lion_fast.config import TrainConfig
    from lion_fast.training.folder.record import RunRecord
    from lion_fast.training.machine.resolve import Resolved


def beginning(config: "TrainConfig", resolved: "Resolved") -> list[str]:
    """Return what is trained, and what was picked for this machine."""
    sizes = f"  resolutions {config.resolutions}" if config.resolutions else ""
    return [
        f"{config.dataset}  {config.arch}  {config.init}  seed {config.seed}{sizes}",
        "  ".join(f"{name} {value}" for name, value in resolved.to_dict().items()),
    ]


@dataclass(frozen=True)
class Progress:
    """State of a run at one log interval."""

    step: int
    max_steps: int
    loss: float
    """Mean over the interval."""
    accuracy: float
    """Main-head training accuracy over the last `window` steps, or over all where there are
    fewer."""
    gradient_ratio: float | None
    images_per_second: float
    step_milliseconds: float
    data_wait_percent: float
    memory_mib: float

    @property
    def eta_seconds(self) -> float:
        """Training seconds left at the present pace, were the run to go to max_steps."""
        return (self.max_steps - self.step) * self.step_milliseconds / 1000


HEADER = (
    f"{'step':>7} {'loss':>8} {'acc %':>7} {'aux/main':>9} {'images/s':>10} {'ms/step':>9}"
    f" {'wait %':>7} {'MiB':>7} {'eta':>8}"
)


def progress_line(p: Progress) -> str:
    """Return the figures of one interval, aligned below HEADER."""
    ratio = "-" if p.gradient_ratio is None else f"{p.gradient_ratio:.4f}"
    return (
        f"{p.step:7d} {p.loss:8.4f} {100 * p.accuracy:7.2f} {ratio:>9} {p.images_per_second:10.0f}"
        f" {p.step_milliseconds:9.3f} {p.data_wait_percent:7.1f} {p.memory_mib:7.0f}"
        f" {clock(p.eta_seconds):>8}"
    )


def clock(seconds: float) -> str:
    """Return h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


# Narrower than this a bar says nothing.
LEAST_BAR = 8


def figures(progress: Progress | None, max_steps: int, width: int) -> list[str]:
    """Return the words beside a bar that fit into `width` columns, the step counter always.

    A run that has reported nothing yet has no loss to show.
    """
    if progress is None:
        return [f"0/{max_steps}"]
    counter = f"{progress.step}/{progress.max_steps}"
    words = [
        counter,
        f"loss {progress.loss:.4f}",
        f"acc {progress.accuracy:.2%}",
        f"{progress.images_per_second:.0f} images/s",
        f"{progress.step_milliseconds:.2f} ms/step",
        f"eta {clock(progress.eta_seconds)}",
    ]
    for dispensable in (words[3], words[4], words[1], words[5], words[2]):
        if len("  ".join(words)) + LEAST_BAR < width:
            break
        words.remove(dispensable)
    return words


def ending(summary: Summary) -> list[str]:
    """Return the run's outcome in words."""
    target = (
        f"{100 * summary.target_accuracy:g} % training accuracy (mean of {summary.window} steps)"
    )
    counted = summary.steps - Resolutions.parse(summary.config["resolutions"]).num_reduced
    if summary.window > counted and summary.steps_to_target is None:
        where = " at full size" if summary.config["resolutions"] else ""
        outcome = f"{target}: not measured, the run has {max(0, counted)} steps{where} only"
    elif summary.steps_to_target is None or summary.seconds_to_target is None:
        outcome = f"{target}: not reached in {summary.steps} steps"
    else:
        outcome = (
            f"{target}: reached at step {summary.steps_to_target},"
            f" after {summary.seconds_to_target:.2f} s of training"
        )
        if summary.cost_to_target != summary.steps_to_target:
            outcome += f", at the cost of {summary.cost_to_target:.1f} steps at full size"
    reused = " (reused)" if summary.reused else ""
    return [
        outcome,
        *validation_lines(summary.val_accuracy_per_head, summary.val_iou_per_class),
        f"init {summary.init_seconds:.2f} s   set-up {summary.setup_seconds:.2f} s{reused}"
        f"   training {summary.train_seconds:.2f} s   total {summary.total_seconds:.2f} s",
        *_stops(summary.stopped_seconds),
        f"run folder: {summary.run}",
    ]


def validation_lines(
    per_head: Sequence[float], iou_per_class: Sequence[float | None] | None
) -> list[str]:
    """Return what a validation found in words: accuracies, or mIoU and what it is the mean of."""
    heads = "  ".join(f"{100 * value:.2f}" for value in per_head)
    what = "accuracy" if iou_per_class is None else "mIoU"
    lines = [f"validation {what} {100 * per_head[-1]:.2f} %   (per head, main last: {heads})"]
    if iou_per_class is not None:
        classes = "  ".join("-" if v is None else f"{100 * v:.2f}" for v in iou_per_class)
        lines.append(f"IoU of each class of the main head: {classes}")
    return lines


def _stops(seconds: float) -> list[str]:
    """Return what a person should know before believing the seconds."""
    if not seconds:
        return []
    return [f"stood still for {seconds:.1f} s (stopped, or the machine slept): not in training"]


def abandoned(record: "RunRecord") -> str:
    """Return the last line of a run whose other processes no longer answer."""
    if record.saved_step is None:
        return "the other processes do not answer, and no checkpoint was written yet"
    kept = f"the checkpoint of step {record.saved_step} is kept"
    return f"the other processes do not answer; {kept}: go on with --resume {record.folder.path}"


def farewell(record: "RunRecord") -> str:
    """Return the last line of an interrupted run."""
    if record.saved_step is None:
        return "interrupted before the first step: nothing was trained"
    return f"interrupted at step {record.saved_step}: go on with --resume {record.folder.path}"
