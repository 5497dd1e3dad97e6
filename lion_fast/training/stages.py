"""The stages of a run before its first step: settle, supply, equip.

Each returns a frozen value that holds what it has found out and the value of the stage before, so
that no later stage asks again. This is what one process does; what several that train one network
do otherwise says `together`.
"""

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from lion_fast.config import BatchNorm, TrainConfig
from lion_fast.data.batches import BatchSpec, Loader
from lion_fast.data.dataset import DataSet
from lion_fast.data.make import make_loader
from lion_fast.data.open import open_data
from lion_fast.data.plan import BatchPlan
from lion_fast.data.sides import check_sides
from lion_fast.models import DeeplySupervised, build_model
from lion_fast.resolutions import Resolutions
from lion_fast.training.folder.record import RunRecord
from lion_fast.training.folder.resume import (
    Earlier,
    check_data,
    reopened,
    restore,
)
from lion_fast.training.folder.run_folder import RunFolder
from lion_fast.training.loop import Training
from lion_fast.training.machine.device import chosen_device
from lion_fast.training.machine.guards import StopSignals
from lion_fast.training.machine.host_memory import keep_freed_memory
from lion_fast.training.machine.paths import anchored, moved_advice
from lion_fast.training.machine.resolve import Resolved, fit_backbone, remarks, resolve
from lion_fast.training.ranks.sharing import Sharing
from lion_fast.training.screen.console import Console, Silent
from lion_fast.training.step.build import check_labels, initialise, on_device
from lion_fast.training.step.engine import Engine, make_engine
from lion_fast.training.step.own import Own
from lion_fast.training.step.reuse import Prepared, Shelf, StepCache
from lion_fast.training.step.step import TrainStep, float32_precision, made_current


@dataclass(frozen=True)
class Settled:
    """What a run is to be; nothing is loaded or written yet."""

    config: TrainConfig
    """With absolute paths."""
    resolved: Resolved
    """What `auto` means here or, where an earlier run goes on, has meant there."""
    own: Own
    earlier: Earlier | None
    """The run that goes on, its folder held; None for a new one."""
    shelf: Shelf | None
    """Where its step is kept for runs to come; None where it is not."""
    prepared: Prepared | None
    """What a run of its like was set up with, to be taken over."""


@dataclass(frozen=True)
class Supplied:
    """What a run trains, and on what; its folder is held."""

    settled: Settled
    """With a backbone that fits these images and this network."""
    images: DataSet
    plan: BatchPlan
    model: DeeplySupervised
    """Initialised, or yet to be loaded from the earlier run's checkpoint."""
    record: RunRecord
    init_seconds: float
    resumed: tuple[str, ...] = ()
    """What was executed otherwise from some step on; see `Earlier.changes`."""
    sharing: Sharing | None = None
    """What puts a step together from the parts of its batch; None where it is one part."""


@dataclass(frozen=True)
class Equipped:
    """What executes a run, as the earlier run's checkpoint left it; not compiled or captured yet.

    Only a step that was taken over is.
    """

    supplied: Supplied
    step: TrainStep
    loader: Loader
    engine: Engine
    kept_open: ExitStack
    """Closes the loader when the run ends; emptied where the loader serves runs to come."""
    setup_started: float
    """perf_counter() when the loader was begun."""


class Stages:
    """Takes a run from its config to its first step, in one process.

    held: what is to be left when the run ends, in whatever way. parts: into how many a batch is cut
    before it is processed.
    """

    parts = 1
    record_kind: type[RunRecord] = RunRecord

    def __init__(self, held: ExitStack) -> None:
        self.held = held

    def settle(
        self, config: TrainConfig, own: Own, resume: Path | str | None, reuse: StepCache | None
    ) -> Settled:
        """Find out what is to be done, and let the process compute as that says until the end.

        A step that `reuse` holds for the like of `config` is taken from it; one that is resumed is
        set up anew, because a checkpoint's optimizer state brings tensors of its own.
        """
        config = own.described(anchored(config))
        earlier = self.reopen(config, own, resume)
        resolved = self.decide(config, earlier)
        if resolved.device.type == "cpu":
            keep_freed_memory()
        self.held.enter_context(made_current(resolved.device))
        self.held.enter_context(float32_precision(resolved))
        shelf = Shelf.of(reuse, config, resolved, own) if reuse is not None else None
        prepared = shelf.take() if shelf and earlier is None else None
        return Settled(config, resolved, own, earlier, shelf, prepared)

    def reopen(self, config: TrainConfig, own: Own, resume: Path | str | None) -> Earlier | None:
        """Return the run folder to go on with, held and read, if there is one."""
        if resume is None:
            return None
        earlier = self.held.enter_context(reopened(resume, config))
        if earlier.checkpoint is not None:
            own.check_same_as(earlier.checkpoint.get("own", []), resume)
        return earlier

    def decide(self, config: TrainConfig, earlier: Earlier | None) -> Resolved:
        """Return what `auto` means; an earlier run keeps its precision."""
        if earlier is not None and config.precision == "auto":
            precision = earlier.precision_on(chosen_device(config.device))
            config = replace(config, precision=precision)
        return resolve(config)

    def supply(self, settled: Settled, screen: Console) -> Supplied:
        """Load the images, plan the batches, make the run folder and the initialised network."""
        with screen.stage(f"loading {settled.config.dataset}"):
            images = self.load(settled)
        supplied = self.build(settled, images, screen)
        fitted = supplied.settled.resolved
        notes = remarks(settled.config.backbone, fitted)
        screen.say([images.describe(), *notes, *supplied.resumed[-1:]])
        return supplied

    def load(self, settled: Settled) -> DataSet:
        """Return the images."""
        if settled.prepared is not None:
            return settled.prepared.images
        if settled.own.images is not None:
            return settled.own.images
        dataset, earlier = settled.config.dataset, settled.earlier
        with moved_advice(dataset, earlier is not None and earlier.found_images_at(dataset)):
            return open_data(settled.config, settled.resolved.loader)

    def build(self, settled: Settled, images: DataSet, screen: Console) -> Supplied:
        """Check all that can be checked, and only then make the folder; initialise the network."""
        started = time.perf_counter()
        config, resolved, earlier = settled.config, settled.resolved, settled.earlier
        if earlier is not None:
            check_data(images, config.dataset, earlier)
        resolutions = Resolutions.parse(config.resolutions)
        check_sides(resolutions, images.image_size, has_masks=images.has_masks)
        plan = self.plan(
            BatchPlan(images.num_train, config.batch_size, config.seed, config.crop_padding)
        )
        if settled.own.model is not None:
            model = settled.own.network(images)
        else:
            model = build_model(config, images.num_classes, images.image_size)
        check_labels(model, images)
        on_device(model, resolved)
        resolved = fit_backbone(
            config.backbone,
            resolved,
            model,
            images.image_size,
            config.batch_size // self.parts,
            sides=[stage.side for stage in resolutions.stages],
            shares_norms=self.shares_norms(config.batch_norm, config.virtual_shards),
        )
        settled = replace(settled, resolved=resolved)
        folder = self.folder(settled)
        if earlier is None or earlier.checkpoint is None:
            with screen.stage(f"initialising ({config.init})"):
                initialise(model, config, resolved, images, plan)
        init_seconds = time.perf_counter() - started
        resumed = earlier.changes(config.to_dict(), resolved.to_dict()) if earlier else []
        facts = {
            "own": settled.own.names(),
            "data": images.facts().to_dict(),
            "precision": resolved.precision,
            "resolved": resolved.to_dict(),
            "resumed": resumed,
        }
        heads = model.heads
        record = self.record_kind(folder, config, len(heads.aux), facts, is_dense=heads.is_dense)
        self.held.enter_context(closing(record))
        return Supplied(settled, images, plan, model, record, init_seconds, tuple(resumed))

    def shares_norms(self, batch_norm: BatchNorm, virtual_shards: int) -> bool:
        """Whether batch norms see more images than this process has."""
        return False

    def plan(self, whole: BatchPlan) -> BatchPlan:
        """Return what this process trains on, of the plan of all batches."""
        return whole

    def folder(self, settled: Settled) -> RunFolder:
        """Return the run folder, held."""
        if settled.earlier is not None:
            return settled.earlier.folder
        return self.held.enter_context(RunFolder.create(settled.config))

    def equip(self, supplied: Supplied) -> Equipped:
        """Make step, loader and engine, or take over those of an earlier run in this process."""
        settled, plan = supplied.settled, supplied.plan
        config, resolved, prepared = settled.config, settled.resolved, settled.prepared
        step = self.step(supplied)
        started = time.perf_counter()
        if prepared is not None and prepared.loader is not None:
            loader = prepared.loader
            loader.replan(plan)
        else:
            loader = make_loader(
                resolved.loader,
                supplied.images,
                plan,
                BatchSpec.of(
                    supplied.images,
                    num_steps=config.max_steps,
                    device=resolved.device,
                    dtype=resolved.compute_dtype,
                    reduces=bool(config.resolutions),
                ),
                impl=resolved.impl,
                steps_per_run=config.steps_per_run,
                num_workers=config.most_workers,
                fewer_workers=config.num_workers == "auto",
            )
        kept_open = self.held.enter_context(ExitStack())
        kept_open.enter_context(closing(loader))
        if prepared is None:
            engine = make_engine(step, loader, step.row_width, config, resolved)
        else:
            prepared.step.become(step)
            step, engine = prepared.step, prepared.engine
            engine.restart(loader)
        return Equipped(supplied, step, loader, engine, kept_open, started)

    def step(self, supplied: Supplied) -> TrainStep:
        """Return the step as the earlier run's checkpoint left it, or as it begins."""
        settled, earlier = supplied.settled, supplied.settled.earlier
        step = TrainStep(
            supplied.model, settled.config, settled.resolved, settled.own, supplied.sharing
        )
        if earlier is not None:
            if earlier.checkpoint is not None:
                restore(earlier.checkpoint, supplied.record, step)
            supplied.record.write_config()
        return step

    def training(self, equipped: Equipped, signals: StopSignals, screen: Console) -> Training:
        """Return the hot loop."""
        return Training(equipped, signals, screen)

    def heard(self, console: Console | None) -> Console:
        """Return where this process speaks."""
        return console or Silent()
