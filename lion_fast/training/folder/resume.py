"""Going on with a run: what its folder says, read once, and what must be as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from lion_fast.config import Precision, TrainConfig, fields_of
from lion_fast.data.dataset import DataSet
from lion_fast.data.facts import DataFacts
from lion_fast.errors import OtherData, UserError
from lion_fast.training.folder.checkpoint import load_checkpoint
from lion_fast.training.folder.files import locked
from lion_fast.training.folder.record import RunRecord
from lion_fast.training.folder.run_folder import RunFolder
from lion_fast.training.machine.paths import anchored
from lion_fast.training.machine.precision import precision_refusal
from lion_fast.training.step.step import TrainStep


class Earlier(NamedTuple):
    """A run folder to go on with."""

    folder: RunFolder
    checkpoint: dict[str, Any] | None
    """Its newest whole one; None where the run was stopped before its first."""

    def found_images_at(self, place: str) -> bool:
        """Whether the run has trained on the images of that place, as far as it says."""
        return self.checkpoint is None or self.checkpoint["config"].get("dataset") == place

    def precision_on(self, device: torch.device) -> Precision:
        """Return the precision that `auto` was where the run began; auto where nothing says so.

        Half a run in another precision would be neither machine's run. Raises UserError where
        `device` cannot compute in it.
        """
        told: Precision = self.checkpoint.get("precision", "auto") if self.checkpoint else "auto"
        if told not in get_args(Precision) or told == "auto":
            return "auto"
        if refusal := precision_refusal(told, device):
            reason, _, _ = refusal.partition(":")
            raise UserError(
                f"{self.folder.path} computes in {told}, and {reason}: resume it there, or go on"
                " in another: --precision fp32"
            )
        return told

    def changes(self, asked: dict[str, Any], resolved: dict[str, str]) -> list[str]:
        """Return, a line a resumption, what has been executed otherwise than before from then on.

        asked: the config's fields, with absolute paths. resolved: what `auto` means now; what it
        meant until now a checkpoint of an earlier version does not say.
        """
        if self.checkpoint is None:
            return []
        told: list[str] = list(self.checkpoint.get("resumed", []))
        noted = self.checkpoint.get("resolved", {})
        before = self.checkpoint["config"] | noted
        after = asked | (resolved if noted else {})
        words = [
            f"{name} {before[name]} -> {after[name]}"
            for name in sorted(fields_of("execution") | {"dataset"})
            if name in before and before[name] != after[name]
        ]
        if words:
            told.append(f"from step {len(self.checkpoint['history'])} on: {', '.join(words)}")
        return told


@contextmanager
def reopened(path: Path | str, config: TrainConfig) -> Iterator[Earlier]:
    """Hold the run folder `path` and check that `config` goes on with it; change nothing in it.

    config: with absolute paths. Raises UserError when it is no run folder, when another process
    holds it, when its checkpoint cannot be trusted, and when `config` or config.json differ from
    what the run was started with.
    """
    folder, written = RunFolder.open(path)
    stored = anchored(written)
    with locked(folder.path):
        checkpoint = load_checkpoint(folder.path)
        if checkpoint is not None:
            stored = _trained_config(folder, checkpoint, stored)
            steps = len(checkpoint["history"])
            if config.max_steps < steps:
                raise UserError(
                    f"max_steps is {config.max_steps}, but {path} is at step {steps}: give at least"
                    f" {steps}"
                )
        stored.check_resumable_as(config)
        yield Earlier(folder, checkpoint)


def _trained_config(
    folder: RunFolder, checkpoint: dict[str, Any], written: TrainConfig
) -> TrainConfig:
    """Return the config that the checkpoint's weights were trained with.

    Raises UserError that lists what `written`, the folder's config.json, says otherwise, but for
    what a resumed run may be told anew.
    """
    try:
        trained = anchored(TrainConfig.from_dict(checkpoint["config"]))
        trained.check_resumable_as(written)
    except UserError as error:
        raise UserError(
            f"{folder.path / 'config.json'} is not what its checkpoint was trained with"
            f" ({error}): restore it"
        ) from None
    return trained


def check_data(images: DataSet, place: str, earlier: Earlier) -> None:
    """Raise OtherData that lists how `images` differ from those that the run was trained on.

    place: where they lie, as an absolute path, or the name of a built-in set.
    Checkpoints of versions that did not note them pass where the images lie where they did.
    """
    if earlier.checkpoint is None:
        return
    if "data" not in earlier.checkpoint:
        before = earlier.checkpoint["config"].get("dataset")
        if before != place:
            raise UserError(
                f"{earlier.folder.path} was trained on {before}, and its checkpoint, of an earlier"
                f" version, cannot tell whether {place} holds the same images: put them back there"
            )
        return
    trained = trained_facts(earlier.checkpoint, earlier.folder.path)
    if differences := trained.differences(images.facts()):
        raise OtherData(
            f"{images.name} is not what {earlier.folder.path} was trained on:"
            f" {'; '.join(differences)}: put its data back, or train anew"
        )


def trained_facts(checkpoint: dict[str, Any], folder: Path) -> DataFacts:
    """Return what a checkpoint says of its data; raise UserError where it says something else."""
    try:
        return DataFacts.from_dict(checkpoint["data"])
    except TypeError:
        raise UserError(
            f"the checkpoint in {folder} does not say what data it was trained on: another version"
            " wrote it, or it was changed; use that version, or start the run again"
        ) from None


def restore(checkpoint: dict[str, Any], record: RunRecord, step: TrainStep) -> None:
    """Bring record, weights and optimizer to where `checkpoint` left them."""
    try:
        record.load(checkpoint)
        step.load_state_dict(checkpoint["training"])
    except torch.OutOfMemoryError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"the checkpoint in {record.folder.path} does not fit its config, so it was changed or"
            f" another version wrote it ({str(error)[:200]}): start the run again"
        ) from None
