"""What the paper (arXiv 2601.02105) publishes, and of which runs.

Its +- signs are population deviations: its own Table 6 says so.
"""

from collections.abc import Mapping
from typing import NamedTuple

from lion_fast.config import TrainConfig, fields_of
from lion_fast.presets import PRESETS
from lion_fast.study.grid import course


class Published(NamedTuple):
    """A mean of the paper."""

    value: float
    std: float
    """Population deviation over its three seeds."""


NUM_STEPS = PRESETS["paper"].max_steps
"""What every run of the paper trains."""

_D10, _R10 = ("cifar10", "densenet_ds"), ("cifar10", "resnet_ds")
_D100, _R100 = ("cifar100", "densenet_ds"), ("cifar100", "resnet_ds")

TABLE_1: Mapping[tuple[str, str, str], tuple[float, float, float | None]] = {
    (*_D10, "he"): (81.11, 1.03, None),
    (*_D10, "lion_dg"): (80.59, 0.35, 8.3),
    (*_D10, "lsuv"): (80.91, 2.26, 7.0),
    (*_D10, "lion_lsuv"): (81.92, 0.66, 8.0),
    (*_R10, "he"): (89.42, 0.69, None),
    (*_R10, "lion_dg"): (87.18, 1.12, 3.6),
    (*_R10, "lsuv"): (90.02, 0.37, 5.9),
    (*_R10, "lion_lsuv"): (88.69, 0.20, 5.3),
    (*_D100, "he"): (50.72, 0.45, None),
    (*_D100, "lion_dg"): (49.93, 1.19, None),
    (*_D100, "lsuv"): (49.13, 0.68, None),
    (*_D100, "lion_lsuv"): (46.41, 1.86, None),
    (*_R100, "he"): (64.87, 1.18, None),
    (*_R100, "lion_dg"): (64.96, 0.93, 11.3),
    (*_R100, "lsuv"): (64.72, 0.40, 0.4),
    (*_R100, "lion_lsuv"): (64.08, 1.59, 11.4),
}
"""Validation accuracy in % after NUM_STEPS steps, its deviation, and the speedup in %."""

TABLE_6: Mapping[str, Mapping[int, float]] = {
    "he": {42: 79.71, 123: 82.17, 456: 81.45},
    "lion_dg": {42: 80.19, 123: 80.55, 456: 81.04},
    "lsuv": {42: 79.74, 123: 78.91, 456: 84.07},
    "lion_lsuv": {42: 81.01, 123: 82.16, 456: 82.58},
}
"""Validation accuracy in % by seed, DenseNet-DS on CIFAR-10."""

TABLE_7: Mapping[str, Mapping[int, int]] = {
    "fixup": {42: 1283, 123: 1089, 456: 1302},
    "rezero": {42: 1265, 123: 1067, 456: 1278},
}
"""Steps to 70 % training accuracy by seed, DenseNet-DS on CIFAR-10."""

# How a run is executed, how far it goes and what the paper's tables vary: the rest must be the
# paper's for its figures to apply.
_FREE = fields_of("execution") | {"seed", "dataset", "arch", "init", "max_steps", "stop_at_target"}


def _is_papers_setting(config: TrainConfig, *presets: str) -> bool:
    """Return whether it is that of one of these presets in all that the paper's figures rest on."""
    ours = course(config)
    return any(
        all(ours[name] == papers[name] for name in ours.keys() - _FREE)
        for papers in (course(PRESETS[preset]) for preset in presets)
    )


def rates_in_words(config: TrainConfig) -> str:
    """Return the course of the learning rates, which final accuracies depend on."""
    if not config.lr_warmup_steps + config.lr_cooldown_steps:
        return "constant rates"
    if not config.lr_cooldown_steps:
        return f"rates that warm up over {config.lr_warmup_steps:,} steps"
    form = "linearly" if config.schedule == "linear" else "as a cosine"
    return (
        f"rates cooled {form} to {config.lr_floor:g} of their height over"
        f" {config.lr_cooldown_steps:,} steps"
    )


def published_accuracy(config: TrainConfig) -> Published | None:
    """Return the paper's validation accuracy in % for runs of this config; None without one.

    The paper tells no schedule: accuracies at a constant rate and cooled ones are set beside it.
    """
    row = TABLE_1.get((config.dataset, config.arch, config.init))
    if row is None or not _is_papers_setting(config, "paper", "paper-cooled"):
        return None
    if config.stop_at_target or config.max_steps != NUM_STEPS:
        return None
    return Published(row[0], row[1])


def published_accuracy_by_seed(config: TrainConfig) -> Mapping[int, float] | None:
    """Return the paper's validation accuracy in % by seed; None where it gives none."""
    is_of_table_6 = (config.dataset, config.arch) == _D10 and published_accuracy(config)
    return TABLE_6.get(config.init) if is_of_table_6 else None


def published_speedup(config: TrainConfig) -> float | None:
    """Return the paper's speedup over He-init in %; None where it gives none."""
    row = TABLE_1.get((config.dataset, config.arch, config.init))
    if row is None or not _is_papers_setting(config, "paper") or config.max_steps < NUM_STEPS:
        return None
    return row[2]


def published_steps(config: TrainConfig) -> Mapping[int, int] | None:
    """Return the paper's steps to 70 % training accuracy by seed; None where it gives none."""
    if (config.dataset, config.arch) != _D10 or not _is_papers_setting(config, "paper"):
        return None
    return TABLE_7.get(config.init)
