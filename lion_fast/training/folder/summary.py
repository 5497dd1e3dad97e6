"""What a finished run reports."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Summary:
    """The outcome of one run; what was not reached or not measured is None."""

    run: Path
    """Run folder."""
    steps: int
    """Steps trained."""
    target_accuracy: float
    window: int
    steps_to_target: int | None
    """First step whose windowed main-head training accuracy reached the target."""
    seconds_to_target: float | None
    """Training clock at the end of that step (with engine graph: of the replay that held it), data
    loading included."""
    init_seconds: float
    """Building and initialising the network."""
    setup_seconds: float
    """Compilation, warm-up, graph capture, loader start."""
    train_seconds: float
    """Training clock at the end."""
    total_seconds: float
    """Wall time of `train()`."""
    process_seconds: float | None
    """Wall time since the process started: the cold total."""
    train_accuracy: float | None
    """Main head, over the last `window` steps; of masks, among the pixels of the foreground."""
    val_accuracy: float
    """Of images; or, of masks, the mean over classes of intersection over union (mIoU)."""
    val_accuracy_per_head: list[float]
    """Each tap as an early exit; the main head last."""
    val_loss: float
    images_per_second: float | None
    """Images trained over training seconds."""
    step_milliseconds_median: float | None
    data_wait_percent: float
    """Share of training time in which the host waited for a batch."""
    loader_host_mib: float
    loader_device_mib: float
    peak_memory_mib: float
    """Allocated on the GPU, or resident size of the process on the CPU."""
    num_parameters: int
    num_skipped_images: int
    resolved: dict[str, str]
    """Device, engine, loader, precision and impl that ran."""
    config: dict[str, Any]
    environment: dict[str, Any]
    world_size: int = 1
    """Processes that trained together; seconds and memory are those of the first."""
    images_per_second_per_device: float | None = None
    data_fingerprint: str | None = None
    """What tells the images and labels from any others."""
    stopped_seconds: float = 0.0
    """Time in which the process stood still while it trained (Ctrl-Z, SIGSTOP, a machine that
    slept), since it was last resumed; it is in no training seconds, but in total_seconds."""
    resumed: tuple[str, ...] = ()
    """From which step on what was executed otherwise, where a resumed run was told so: the last
    digits of its numbers may be others than an uninterrupted run's."""
    val_iou_per_class: list[float | None] | None = None
    """Of masks: intersection over union of each class, of the main head; None where the test split
    has no pixel of it."""
    cost: float | None = None
    """Steps at full size that compute as much: one at another size counts as the square of its side
    over the full one."""
    cost_to_target: float | None = None
    """The same of the first `steps_to_target` steps."""
    reused: bool = False
    """Whether compiled code, graphs and data are those of an earlier run in the same process."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self) | {"run": str(self.run), "resumed": list(self.resumed)}
