"""What runs that nobody has made would cost: GPU minutes from counts, CPU hours from other runs."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from lion_fast.config import TrainConfig
from lion_fast.report.markdown import significant
from lion_fast.report.results import Run, StudyResults


class StepCount(NamedTuple):
    """One training step of 128 images in a CUDA graph, counted and not timed."""

    launches: int
    bytes_moved: int
    operations: int
    """Of convolutions, forward and backward: three times the forward pass's."""

    @property
    def floor_seconds(self) -> float:
        """Time below which no H100 takes the step, as its data sheet has it."""
        work = max(self.bytes_moved / _BYTES_PER_SECOND, self.operations / _OPERATIONS_PER_SECOND)
        return work + self.launches * _SECONDS_PER_LAUNCH


# An H100's memory, its bf16 tensor cores without sparsity, and the gap between two kernels of a
# graph that this project's design assumes.
_BYTES_PER_SECOND = 3.35e12
_OPERATIONS_PER_SECOND = 989e12
_SECONDS_PER_LAUNCH = 2.5e-6
_PAPERS_SECONDS = 50.0
"""A run of the paper on a V100 (its A.2)."""

COUNTS = {
    # bench/results/counts/H100.json, engine graph
    "densenet_ds": StepCount(283, 2_108_416_932, 24_264_889_344),
    "resnet_ds": StepCount(216, 2_746_779_948, 426_568_089_600),
}

NOTE = (
    "Not run: GPU minutes are predicted, not measured. The first figure is a floor for an H100,"
    " counted on a stand-in (bench/results/counts): steps x (the longer of bytes / 3.35 TB/s and"
    " operations / 989 TFLOP/s, plus 2.5 µs a launch). The second is the paper's own 50 s a run on"
    " a V100. CPU hours are steps x the median step of the same network's runs on this page,"
    " whatever else ran beside them. All of them take every run to its last step; probes and"
    " GradInit's own search come on top."
)


def cost_text(missing: Sequence[TrainConfig], studies: Iterable[StudyResults]) -> str:
    """Return what the missing runs need, in words."""
    floor = sum(
        config.max_steps * COUNTS[config.arch].floor_seconds * config.batch_size / 128
        for config in missing
    )
    by_paper = _PAPERS_SECONDS * len(missing)
    text = (
        f"needs {significant(floor / 60, 2)} to {significant(by_paper / 60, 2)} GPU minutes"
        f" ({len(missing)} runs)"
    )
    hours = _cpu_hours(missing, studies)
    return text if hours is None else f"{text}, or {significant(hours, 2)} CPU hours"


def _cpu_hours(missing: Sequence[TrainConfig], studies: Iterable[StudyResults]) -> float | None:
    """Return the hours of a CPU that has run steps of all these networks; None without one."""
    seen: dict[tuple[str, int], list[float]] = {}
    for results in studies:
        for run in results.runs:
            milliseconds = run.summary.get("step_milliseconds_median")
            if milliseconds is not None and _took_the_papers_steps(run):
                seen.setdefault(_network(run.config), []).append(milliseconds)
    if not missing or any(_network(config) not in seen for config in missing):
        return None
    return sum(c.max_steps * median(seen[_network(c)]) for c in missing) / 3.6e6


def _network(config: TrainConfig) -> tuple[str, int]:
    return config.arch, config.base_width if config.arch == "resnet_ds" else config.growth_rate


def _took_the_papers_steps(run: Run) -> bool:
    """Whether it stepped on a CPU over the paper's batches with its optimizer."""
    on_cpu = run.summary["resolved"].get("device") == "cpu"
    is_cifar = run.config.dataset.startswith("cifar")
    return on_cpu and is_cifar and (run.config.batch_size, run.config.optimizer) == (128, "adamw")
