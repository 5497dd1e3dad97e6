"""What can be done with a run folder: validate it, load its network, classify images with it."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lion_fast.config import Precision, TrainConfig
from lion_fast.data.dataset import DataSet
from lion_fast.data.decode import image_pixels
from lion_fast.data.facts import DataFacts
from lion_fast.data.open import load_image_set, open_data, open_test_data
from lion_fast.errors import UserError
from lion_fast.models import DeeplySupervised, build_model
from lion_fast.places import place
from lion_fast.training.folder.checkpoint import load_checkpoint
from lion_fast.training.folder.masks import MaskFolder
from lion_fast.training.folder.resume import trained_facts
from lion_fast.training.folder.run_folder import RunFolder
from lion_fast.training.machine.device import chosen_device
from lion_fast.training.machine.host_memory import keep_freed_memory
from lion_fast.training.machine.paths import moved_advice
from lion_fast.training.machine.precision import precision_refusal
from lion_fast.training.machine.resolve import Resolved, resolve
from lion_fast.training.measure.validate import Validation, validate
from lion_fast.training.screen.console import Console, Silent
from lion_fast.training.step.step import float32_precision, made_current

_BATCH_SIZE = 64


@dataclass(frozen=True)
class Transform:
    """What turns an image into what a run's network was trained on."""

    image_size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, float, float]
    """Per channel, in units of full scale (0 to 1)."""
    std: tuple[float, float, float]

    def __call__(self, image: Path | str | Image.Image | np.ndarray | Tensor) -> Tensor:
        """Return the image as (3, H, W) float32, resized and normalised.

        image: a JPEG or PNG file, a PIL image, or an array; see `image_pixels`. Raises UserError on
        a file that cannot be read, and on an array of another shape or type.
        """
        pixels = image_pixels(image, self.image_size)
        # A decoder's array may be read-only, and torch wants one that is not.
        levels = torch.from_numpy(np.array(pixels)).float().permute(2, 0, 1) / 255
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (levels - mean[:, None, None]) / std[:, None, None]


class LoadedRun(NamedTuple):
    """A trained network and what it takes to use it."""

    model: DeeplySupervised
    """In eval mode; `model(batch)` returns logits (B, K) of every head, the main one's last."""
    transform: Transform
    """From an image to (3, H, W); stack several to a batch."""
    classes: tuple[str, ...]
    """Name of each of the K classes."""


class Prediction(NamedTuple):
    """What the main head takes an image for."""

    image: str
    class_name: str
    probability: float
    """Softmax of the main head's logits, 0 to 1."""


class MaskPrediction(NamedTuple):
    """What the main head takes every pixel of an image for."""

    image: str
    mask: str
    """A PNG of the image's size in the colours of `palette`, whose levels are the classes."""
    shares: dict[str, float]
    """Share of the pixels of each class that there is, 0 to 1, the largest first."""


class Unread(NamedTuple):
    """An image that could not be read."""

    image: str
    error: str
    """Why, and what to do, in one line."""


def load_run(
    run: Path | str, *, device: str = "auto", dataset: Path | str | None = None
) -> LoadedRun:
    """Return the network of the run folder's newest checkpoint on `device`, ready to predict.

    dataset: where the run's images lie now. Only checkpoints of early versions need them, which do
    not hold what an image is normalised with; of others it is checked that they are the run's.

    Raises UserError when `run` is no run folder or holds no whole checkpoint, and on other data
    than the run's.
    """
    folder, config, checkpoint = _open(run, dataset)
    resolved = resolve(_anywhere(config, device))
    facts = _facts(folder, config, checkpoint, is_told=dataset is not None)
    names, size = facts.class_names, facts.image_size
    model = _network(folder, config, checkpoint, len(names), size, resolved)
    return LoadedRun(model.eval(), Transform(size, facts.mean, facts.std), names)


def predict(
    run: Path | str,
    images: Sequence[Path | str] | Path | str,
    *,
    device: str = "auto",
    dataset: Path | str | None = None,
    masks: Path | str | None = None,
) -> list[Prediction] | list[MaskPrediction]:
    """Return what the run's network takes each image file, or the one, for, in fp32.

    dataset: see `load_run`. masks: of a network that gives a class to every pixel, the folder in
    which the masks of this call are written; by default masks/ in the run folder.

    Raises UserError as `load_run` does, and on an image that cannot be read.
    """
    if isinstance(images, str | Path):
        images = [images]
    found: list[Any] = []
    for told in predict_each(run, images, device=device, dataset=dataset, masks=masks):
        if isinstance(told, Unread):
            raise UserError(told.error)
        found.append(told)
    return found


def predict_each(
    run: Path | str,
    images: Sequence[Path | str],
    *,
    device: str = "auto",
    dataset: Path | str | None = None,
    masks: Path | str | None = None,
) -> Iterator[Prediction | MaskPrediction | Unread]:
    """Yield what `predict` returns, and of an image that cannot be read why, in the given order.

    Raises UserError as `load_run` does, and where masks cannot be written.
    """
    model, transform, classes = load_run(run, device=device, dataset=dataset)
    where = next(model.parameters()).device
    told: Callable[[Sequence[Path | str], Tensor], Iterator[Prediction | MaskPrediction]]
    told = partial(_predictions, classes=classes)
    if model.heads.is_dense:
        folder = place(run) / "masks" if masks is None else place(masks)
        told = partial(_mask_predictions, classes=classes, folder=MaskFolder(folder))
    for start in range(0, len(images), _BATCH_SIZE):
        paths = images[start : start + _BATCH_SIZE]
        read = [_read(path, transform) for path in paths]
        pixels = [each for each in read if isinstance(each, Tensor)]
        found: Iterator[Prediction | MaskPrediction] = iter(())
        if pixels:
            known = [p for p, each in zip(paths, read, strict=True) if isinstance(each, Tensor)]
            with torch.no_grad():
                found = told(known, model(torch.stack(pixels).to(where))[-1])
        for each in read:
            yield each if isinstance(each, Unread) else next(found)


def _predictions(
    paths: Sequence[Path | str], logits: Tensor, classes: Sequence[str]
) -> Iterator[Prediction]:
    """Yield what each image is taken for, of logits (B, K)."""
    best = logits.float().softmax(1).max(1)
    for path, label, share in zip(paths, best.indices.tolist(), best.values.tolist(), strict=True):
        yield Prediction(str(path), classes[label], share)


def _mask_predictions(
    paths: Sequence[Path | str], logits: Tensor, classes: Sequence[str], folder: MaskFolder
) -> Iterator[MaskPrediction]:
    """Yield what each pixel is taken for, of logits (B, K, H, W), and write it as a PNG."""
    for path, mask in zip(paths, logits.argmax(1).cpu(), strict=True):
        written = folder.write(Path(path), mask.byte().numpy())
        counts = mask.flatten().bincount(minlength=len(classes)).double() / mask.numel()
        order = counts.argsort(descending=True, stable=True).tolist()
        shares = {classes[label]: counts[label].item() for label in order if counts[label]}
        yield MaskPrediction(str(path), str(written), shares)


def _read(path: Path | str, transform: Transform) -> Tensor | Unread:
    try:
        if not Path(path).is_file():
            return Unread(str(path), f"{path} is no file: give images as JPEG or PNG files")
        return transform(path)
    except UserError as error:
        return Unread(str(path), str(error))
    except OSError as error:  # such as a name that no file system takes
        return Unread(str(path), f"{path} cannot be read: {error.strerror}")


def evaluate(
    run: Path | str,
    *,
    device: str = "auto",
    dataset: Path | str | None = None,
    console: Console | None = None,
) -> Validation:
    """Return loss and per-head accuracy of the run folder's newest checkpoint on its test split.

    dataset: where the run's images lie now, if no longer where it found them.

    The run may have trained elsewhere: engine and loader are chosen for `device`. The precision is
    the run's, or what `auto` picks where `device` does not have that one; the console is told so.
    Raises UserError when `run` is no run folder or holds no whole checkpoint, and, with what
    differs, on other data than the run's.
    """
    console = console or Silent()
    folder, config, checkpoint = _open(run, dataset)
    precision = _precision_of(folder, config, checkpoint)
    refusal = precision_refusal(precision, chosen_device(device))
    if refusal is not None:
        console.say([f"not in the run's precision: {refusal}"])
    resolved = resolve(_anywhere(config, device, "auto" if refusal else precision))
    console.say([f"device {resolved.device}  precision {resolved.precision}"])
    advice = moved_advice(config.dataset, has_trained=dataset is None)
    with console.stage(f"loading {config.dataset}"), advice:
        images = _test_data(folder, config, checkpoint)
    model = _network(folder, config, checkpoint, images.num_classes, images.image_size, resolved)
    if resolved.device.type == "cpu":
        keep_freed_memory()
    with (
        made_current(resolved.device),
        float32_precision(resolved),
        console.stage("validating"),
    ):
        return validate(model, images, resolved, config.batch_size)


def _open(run: Path | str, dataset: Path | str | None) -> tuple[Path, TrainConfig, dict[str, Any]]:
    """Return a run's folder, its config, with its images at `dataset`, and newest checkpoint."""
    folder = place(run)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give the run folder that holds config.json")
    _, config = RunFolder.open(folder)
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint yet: go on with --resume {folder}")
    if dataset is not None:
        config = replace(config, dataset=str(dataset))
    return folder, config, checkpoint


def _anywhere(config: TrainConfig, device: str, precision: Precision = "auto") -> TrainConfig:
    """Return `config` without what it says of the machine that it trained on."""
    return replace(
        config,
        device=device,
        engine="auto",
        loader="auto",
        precision=precision,
        impl="auto",
        backbone="auto",
    )


def _facts(
    folder: Path, config: TrainConfig, checkpoint: dict[str, Any], *, is_told: bool
) -> DataFacts:
    """Return what the checkpoint says of the run's images, or, if it is an old one, the set.

    is_told: whether their place was, so that what is there must be what the checkpoint says.
    """
    with moved_advice(config.dataset, has_trained=not is_told):
        if "data" not in checkpoint:
            return load_image_set(config).facts()
        facts = trained_facts(checkpoint, folder)
        if is_told:
            open_test_data(config, facts)
        return facts


def _test_data(folder: Path, config: TrainConfig, checkpoint: dict[str, Any]) -> DataSet:
    """Return the images to validate on; an old checkpoint cannot tell whether they are the same."""
    if "data" not in checkpoint:
        return open_data(config, config.loader)
    return open_test_data(config, trained_facts(checkpoint, folder))


def _network(
    folder: Path,
    config: TrainConfig,
    checkpoint: dict[str, Any],
    num_classes: int,
    image_size: tuple[int, int],
    resolved: Resolved,
) -> DeeplySupervised:
    model = build_model(config, num_classes, image_size)
    weights = checkpoint["training"].get("model")
    if not isinstance(weights, dict):
        raise UserError(f"the checkpoint of {folder} was changed, it has no weights: train anew")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"the checkpoint of {folder} does not fit {config.arch} with {num_classes} classes, so"
            f" {config.dataset} or config.json has changed since: restore it"
            f" ({_first_complaint(error)})"
        ) from None
    model.to(resolved.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _first_complaint(error: RuntimeError) -> str:
    """Return the first tensor that `load_state_dict` names."""
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines()[1:])
    return next(iter(lines), str(error))


def _precision_of(folder: Path, config: TrainConfig, checkpoint: dict[str, Any]) -> Precision:
    """Return the precision that a run trained in, whatever `auto` was there.

    Checkpoints of earlier versions do not say it; then the summary does, if the run ended.
    """
    told = checkpoint.get("precision")
    if told is None:
        try:
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8-sig"))
            told = summary["resolved"]["precision"]
        except (OSError, ValueError, KeyError, TypeError):
            return config.precision
    return told if told in get_args(Precision) else config.precision
