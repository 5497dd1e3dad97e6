"""Going on with a run: what must be as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from lion_fast.config import Precision, TrainConfig
from lion_fast.data.dataset import DataSet
from lion_fast.data.facts import DataFacts
from lion_fast.errors import UserError
from lion_fast.training.folder.checkpoint import load_checkpoint
from lion_fast.training.folder.files import locked
from lion_fast.training.folder.run_folder import RunFolder
from lion_fast.training.machine.paths import anchored
from lion_fast.training.machine.resolve import precision_refusal, resolve


class Earlier(NamedTuple):
    """A run folder to go on with."""

    folder: RunFolder
    checkpoint: dict[str, Any] | None
    """Its newest whole one; None where the run was stopped before its first."""


@contextmanager
def reopened(path: Path | str, config: TrainConfig) -> Iterator[Earlier]:
    """Hold the run folder `path` and check that `config` goes on with it; change nothing in it.

    Raises UserError when it is no run folder, when another process holds it, when its checkpoint
    cannot be trusted, and when `config` or config.json differ from what the run was started with.
    """
    folder, stored = RunFolder.open(path)
    with locked(folder.path):
        checkpoint = load_checkpoint(folder.path)
        if checkpoint is not None:
            stored = check_config(folder.path, checkpoint)
            steps = len(checkpoint["history"])
            if config.max_steps < steps:
                raise UserError(
                    f"max_steps is {config.max_steps}, but {path} is at step {steps}: give at least"
                    f" {steps}"
                )
        anchored(stored).check_resumable_as(anchored(config))
        yield Earlier(folder, checkpoint)


def check_config(folder: Path | str, checkpoint: dict[str, Any]) -> TrainConfig:
    """Return the config that the checkpoint's weights were trained with.

    Raises UserError that lists what the folder's config.json says otherwise, but for what a resumed
    run may be told anew.
    """
    _, written = RunFolder.open(folder)
    try:
        trained = TrainConfig.from_dict(checkpoint["config"])
        anchored(trained).check_resumable_as(anchored(written))
    except UserError as error:
        raise UserError(
            f"{Path(folder) / 'config.json'} is not what its checkpoint was trained with"
            f" ({error}): restore it"
        ) from None
    return trained


def in_its_precision(config: TrainConfig, path: Path | str | None) -> TrainConfig:
    """Return `config` with the precision that `auto` was where the run folder `path` began.

    Half a run in another precision would be neither machine's run. Raises UserError where this
    machine cannot compute in it.
    """
    checkpoint = load_checkpoint(Path(path)) if path is not None else None
    told: Precision = checkpoint.get("precision", "auto") if checkpoint else "auto"
    if config.precision != "auto" or told == "auto" or told not in get_args(Precision):
        return config
    if refusal := precision_refusal(told, resolve(config).device):
        reason, _, _ = refusal.partition(":")
        raise UserError(f"{path} computes in {told}, and {reason}: resume it there, or start anew")
    return replace(config, precision=told)


def check_data(images: DataSet, earlier: Earlier) -> None:
    """Raise UserError that lists how `images` differ from those that the run was trained on.

    Checkpoints of versions that did not note them pass.
    """
    if earlier.checkpoint is None or "data" not in earlier.checkpoint:
        return
    try:
        trained = DataFacts.from_dict(earlier.checkpoint["data"])
    except (TypeError, AttributeError):
        raise UserError(
            f"the checkpoint in {earlier.folder.path} was changed: it does not say what data it was"
            " trained on; start the run again"
        ) from None
    if differences := trained.differences(images.facts()):
        raise UserError(
            f"{images.name} is not what {earlier.folder.path} was trained on:"
            f" {'; '.join(differences)}: put its data back, or train anew"
        )
