"""A run before its first step: network, step and record, fresh or as a checkpoint left them."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from lion_fast.config import TrainConfig
from lion_fast.data.batches import BatchSpec, Loader
from lion_fast.data.dataset import DataSet
from lion_fast.data.make import make_loader
from lion_fast.data.plan import BatchPlan
from lion_fast.errors import UserError
from lion_fast.training.folder.record import RunRecord, UnwrittenRecord
from lion_fast.training.folder.resume import Earlier, check_data, reopened
from lion_fast.training.folder.run_folder import RunFolder
from lion_fast.training.machine.resolve import Resolved, fit_backbone
from lion_fast.training.ranks.restart import mark_run, restarted_run
from lion_fast.training.ranks.shared_norm import share_norms
from lion_fast.training.ranks.sharing import check_shares, make_sharing
from lion_fast.training.ranks.world import ALONE, World
from lion_fast.training.screen.console import Console
from lion_fast.training.step.build import initialise, on_device
from lion_fast.training.step.engine import Engine
from lion_fast.training.step.history import History
from lion_fast.training.step.own import Own
from lion_fast.training.step.reuse import Prepared, StepCache, reuse_key
from lion_fast.training.step.step import TrainStep


@contextmanager
def opened(
    config: TrainConfig,
    resolved: Resolved,
    own: Own,
    resume: Path | str | None,
    screen: Console,
    reuse: StepCache | None = None,
    world: World = ALONE,
) -> Iterator["Run"]:
    """Hold a new run folder, or go on with `resume`; nothing is written before all is checked.

    A step that `reuse` holds for the like of `config` is taken from it; one that is resumed is set
    up anew, because a checkpoint's optimizer state brings tensors of its own. Of the ranks of
    `world` the first alone holds the folder. Raises UserError on bad input; see `reopened`.
    """
    with ExitStack() as held:
        earlier, resume = _reopened(config, resume, world, held)
        checkpoint = world.share(earlier.checkpoint if earlier else None)
        key = None if reuse is None or world.size > 1 else reuse_key(config, resolved, own)
        prepared = reuse.take(key) if reuse is not None and key and earlier is None else None
        with world.agreed():
            check_shares(config, world)
            if checkpoint is not None:
                own.check_same_as(checkpoint.get("own", []), resume)
        with screen.stage(f"loading {config.dataset}"):
            images = world.in_turn(
                lambda: prepared.images if prepared else own.open_images(config, resolved)
            )
        if world.size > 1:
            world.check_same_data(images.facts().fingerprint)
        started = time.perf_counter()
        with world.agreed():
            if earlier is not None:
                check_data(images, earlier)
            plan = _plan(config, images, world)
            model = on_device(own.network(config, images), resolved)
            part = config.batch_size // max(world.size, config.virtual_shards)
            shares_norms = (
                world.size > 1 and config.batch_norm == "global" and not config.virtual_shards
            )
            resolved = fit_backbone(
                config, resolved, model, images.image_size, part, shares_norms=shares_norms
            )
            own_folder = _folder(config, earlier, world, held)
            if checkpoint is None:
                with screen.stage(f"initialising ({config.init})"):
                    initialise(model, config, resolved, images, plan)
            if shares_norms:
                share_norms(model, resolved, world)
        init_seconds = time.perf_counter() - started
        # Where it lies is known to all ranks, and only the one that holds it writes there.
        path = world.share(own_folder.path if own_folder else Path())
        folder = own_folder or RunFolder(path)
        world.same_weights(model)
        sharing = make_sharing(model, config, world, resolved.device)
        with world.agreed():
            step = TrainStep(model, config, resolved, own, sharing)
            run = Run(
                config, resolved, images, plan, step, folder, own.names(), init_seconds,
                prepared=prepared, world=world,
            )  # fmt: skip
            run.keeps = key is not None
            if checkpoint is not None:
                run.restore(checkpoint)
            if earlier is not None:
                folder.write_config(config)
        yield run
        if reuse is not None and key and run.ready is not None:
            reuse.keep(key, run.ready)


def _reopened(
    config: TrainConfig, resume: Path | str | None, world: World, held: ExitStack
) -> tuple[Earlier | None, Path | str | None]:
    """Return, on rank 0 alone, the folder to go on with, held; and on all where it lies."""
    earlier = None
    with world.agreed():
        if world.leads:
            resume = restarted_run(config) or resume
            if resume is not None:
                earlier = held.enter_context(reopened(resume, config))
    return earlier, world.share(resume)


def _plan(config: TrainConfig, images: DataSet, world: World) -> BatchPlan:
    return BatchPlan(
        images.num_train,
        config.batch_size,
        config.seed,
        config.crop_padding,
        rank=world.rank,
        world_size=world.size,
    )


def _folder(
    config: TrainConfig, earlier: Earlier | None, world: World, held: ExitStack
) -> RunFolder | None:
    """Return the run folder, held, on rank 0; None on the others."""
    if not world.leads:
        return None
    folder = earlier.folder if earlier else held.enter_context(RunFolder.create(config))
    mark_run(config, folder.path)
    return folder


class Run:
    """What a run consists of."""

    def __init__(
        self,
        config: TrainConfig,
        resolved: Resolved,
        images: DataSet,
        plan: BatchPlan,
        step: TrainStep,
        folder: RunFolder,
        own_parts: list[str],
        init_seconds: float,
        *,
        prepared: Prepared | None = None,
        world: World = ALONE,
    ) -> None:
        self.config, self.resolved, self.images, self.plan = config, resolved, images, plan
        self.step, self.init_seconds = prepared.step if prepared else step, init_seconds
        self._fresh, self._prepared = step, prepared
        self.world, self.keeps = world, False
        self.ready: Prepared | None = None
        num_aux = len(step.model.heads.aux)
        facts = {
            "own": own_parts,
            "data": images.facts().to_dict(),
            "precision": resolved.precision,
        }
        self.history = History(
            num_heads=num_aux + 1,
            batch_size=config.batch_size,
            window=config.window,
            target=config.target_accuracy,
        )
        kind = RunRecord if world.leads else UnwrittenRecord
        self.record = kind(folder, config, self.history, num_aux, facts)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Bring weights, optimizer and record to where `checkpoint` left them."""
        try:
            self.record.load(checkpoint)
            self.step.load_state_dict(checkpoint["training"])
        except torch.OutOfMemoryError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"the checkpoint in {self.record.folder.path} does not fit its config, so it was"
                f" changed or another version wrote it ({str(error)[:200]}): start the run again"
            ) from None

    @property
    def reused(self) -> bool:
        """Whether step, engine and images come from an earlier run."""
        return self._prepared is not None

    def restarted_engine(self, loader: Loader) -> Engine | None:
        """Return the earlier run's engine, ready for this run's first step, if there is one."""
        if self._prepared is None:
            return None
        self.step.become(self._fresh)
        self._prepared.engine.restart(loader)
        return self._prepared.engine

    def keep(self, loader: Loader, engine: Engine) -> None:
        """Offer what this run was set up with to runs after it."""
        kept = loader if loader.walks_on_device else None
        self.ready = Prepared(self.images, self.step, engine, kept)

    def loader(self) -> Loader:
        """Return the loader of this run's batches; close it, unless it is kept."""
        if self._prepared is not None and self._prepared.loader is not None:
            self._prepared.loader.replan(self.plan)
            return self._prepared.loader
        return make_loader(
            self.resolved.loader,
            self.images,
            self.plan,
            BatchSpec.of(
                self.images,
                num_steps=self.config.max_steps,
                device=self.resolved.device,
                dtype=self.resolved.compute_dtype,
            ),
            impl=self.resolved.impl,
            steps_per_run=self.config.steps_per_run,
            num_workers=self.config.num_workers,
        )
