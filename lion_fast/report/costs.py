"""What runs that nobody has made would cost, by steps that were measured: on a card, on a CPU."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.report.markdown import significant
from lion_fast.report.results import Run, StudyResults


class CardTimes(NamedTuple):
    """Median milliseconds of a training step of 128 images on one card, by network."""

    name: str
    milliseconds: dict[str, float]
    source: str


# Whole runs of 3,000 steps, engine graph, bf16, AdamW; DenseNet-DS with the fused backbone.
CARDS = {
    "H200": CardTimes(
        "an H200",
        {"densenet_ds": 1.199, "resnet_ds": 2.357},
        "bench/results/gpu/2026-11-27-h200",
    ),
}
"""What has been measured; no card is estimated by another's figures."""
DEFAULT_CARD = "H200"


def times_of(card: str) -> CardTimes:
    """Return what was measured on a card; raise UserError where nothing was."""
    if card not in CARDS:
        raise UserError(f"card is {card!r}, which was not measured: take one of {', '.join(CARDS)}")
    return CARDS[card]


def cost_note(card: str) -> str:
    """Return in words what the costs of a page rest on."""
    times = times_of(card)
    steps = ", ".join(f"{ms} ms on {arch}" for arch, ms in times.milliseconds.items())
    return (
        f"Not run: minutes on {times.name} are steps x the median step measured there ({steps};"
        f" {times.source}), the paper's networks, engine graph in bf16, DenseNet-DS with the fused"
        " backbone. CPU hours are steps x the median step of the same network's runs on this page,"
        " whatever else ran beside them. Both take every run to its last step; set-up, probes and"
        " GradInit's own search come on top."
    )


def cost_text(
    missing: Sequence[TrainConfig], studies: Iterable[StudyResults], card: str = DEFAULT_CARD
) -> str:
    """Return what the missing runs need, in words: on a card that was measured, and on a CPU."""
    times = times_of(card)
    milliseconds = sum(
        config.max_steps * times.milliseconds[config.arch] * config.batch_size / 128
        for config in missing
    )
    minutes = significant(milliseconds / 6e4, 2)
    text = f"needs {minutes} minutes on {times.name} ({len(missing)} runs)"
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
