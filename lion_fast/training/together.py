"""What several processes that train one network do otherwise than one, stage by stage.

What may fail on one of them alone is agreed upon, so that none waits for another that has gone. A
single process does so too, as a world of one, where it puts a step together from virtual shards or
where torchrun may restart it.
"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lion_fast.config import BatchNorm, TrainConfig
from lion_fast.data.dataset import DataSet
from lion_fast.data.plan import BatchPlan
from lion_fast.training.folder.record import RunRecord, UnwrittenRecord
from lion_fast.training.folder.resume import Earlier
from lion_fast.training.folder.run_folder import RunFolder
from lion_fast.training.loop import Training
from lion_fast.training.machine.guards import Interrupted, StopSignals
from lion_fast.training.machine.resolve import Resolved
from lion_fast.training.measure.probe import GradientProbe
from lion_fast.training.ranks.meeting import joined
from lion_fast.training.ranks.restart import is_job, mark_run, restarted_run, unmark_run
from lion_fast.training.ranks.shared_norm import share_norms, unshared
from lion_fast.training.ranks.sharing import Sharing, check_shares, make_sharing
from lion_fast.training.ranks.torchrun import ranks_here
from lion_fast.training.ranks.world import World
from lion_fast.training.screen.console import Console, Silent
from lion_fast.training.screen.printed import abandoned
from lion_fast.training.stages import Equipped, Settled, Stages, Supplied
from lion_fast.training.step.own import Own
from lion_fast.training.step.reuse import StepCache
from lion_fast.training.step.step import TrainStep


@contextmanager
def assembled(out: Path, virtual_shards: int, rendezvous_timeout: float) -> Iterator[Stages]:
    """Yield the stages of a run: of this process alone, or of all that torchrun has started.

    out: folder of the run folders. rendezvous_timeout: seconds to wait for them to start.
    Raises UserError when they cannot meet, and when one of them has gone.
    """
    if ranks_here().size == 1 and virtual_shards < 2 and not is_job():
        with ExitStack() as held:
            yield Stages(held)
        return
    with joined(rendezvous_timeout) as world, ExitStack() as held:
        yield SharedStages(held, world, virtual_shards)
        if world.leads:
            unmark_run(out)


class SharedStages(Stages):
    """Takes all ranks of `world` together from a config to their first step.

    The first alone holds the run folder, reads an earlier one, writes and speaks.
    """

    def __init__(self, held: ExitStack, world: World, num_shards: int) -> None:
        super().__init__(held)
        self.world = world
        self.parts = max(world.size, num_shards)
        self.record_kind = RunRecord if world.leads else UnwrittenRecord

    def settle(
        self, config: TrainConfig, own: Own, resume: Path | str | None, reuse: StepCache | None
    ) -> Settled:
        """See `Stages.settle`; a step that exchanges with others is not kept."""
        return super().settle(config, own, resume, reuse if self.world.size == 1 else None)

    def reopen(self, config: TrainConfig, own: Own, resume: Path | str | None) -> Earlier | None:
        """Return what rank 0 has read of the folder that it holds."""
        earlier = None
        with self.world.agreed():
            if self.world.leads:
                earlier = super().reopen(config, own, restarted_run(config.out) or resume)
        return self.world.share(earlier)

    def decide(self, config: TrainConfig, earlier: Earlier | None) -> Resolved:
        """Decide for each rank's own device; go on only where all decide alike."""
        with self.world.agreed():
            resolved = super().decide(self.world.placed(config), earlier)
        self.world.connect(config, resolved)
        with self.world.agreed():
            check_shares(config, self.world)
        return resolved

    def supply(self, settled: Settled, screen: Console) -> Supplied:
        """See `Stages.supply`; all ranks end with the same network and folder."""
        supplied = super().supply(settled, screen)
        if self.world.size > 1:
            each = settled.config.batch_size
            screen.say([f"{self.world.size} processes share every batch of {each}"])
        return supplied

    def load(self, settled: Settled) -> DataSet:
        """Let one rank of each machine load first, for the others; compare what all have."""
        images = self.world.in_turn(lambda: super(SharedStages, self).load(settled))
        if self.world.size > 1:
            self.world.check_same_data(images.facts().fingerprint)
        return images

    def build(self, settled: Settled, images: DataSet, screen: Console) -> Supplied:
        """Build on every rank; what rank 0 has initialised goes to all."""
        config, world = settled.config, self.world
        with world.agreed():
            supplied = super().build(settled, images, screen)
            if self.shares_norms(config.batch_norm, config.virtual_shards):
                share_norms(supplied.model, supplied.settled.resolved, world)
        # Where it lies is known to all ranks, and only the one that holds it writes there.
        supplied.record.folder = RunFolder(world.share(supplied.record.folder.path))
        world.same_weights(supplied.model)
        sharing = make_sharing(supplied.model, config, world, settled.resolved.device)
        return replace(supplied, sharing=sharing)

    def shares_norms(self, batch_norm: BatchNorm, virtual_shards: int) -> bool:
        """Whether batch norms are those of all ranks; virtual shards have their own statistics."""
        return self.world.size > 1 and batch_norm == "global" and not virtual_shards

    def plan(self, whole: BatchPlan) -> BatchPlan:
        """Return this rank's part."""
        return whole.of_rank(self.world.rank, self.world.size)

    def folder(self, settled: Settled) -> RunFolder:
        """Hold the folder on rank 0, where a restart finds it."""
        if not self.world.leads:
            return RunFolder(Path())
        folder = super().folder(settled)
        mark_run(settled.config.out, folder.path)
        return folder

    def step(self, supplied: Supplied) -> TrainStep:
        """Make the step on every rank."""
        with self.world.agreed():
            return super().step(supplied)

    def training(self, equipped: Equipped, signals: StopSignals, screen: Console) -> Training:
        """Return a hot loop that stops on all ranks at once."""
        sharing = equipped.supplied.sharing
        if sharing is None:
            return super().training(equipped, signals, screen)
        return SharedTraining(equipped, signals, screen, sharing)

    def heard(self, console: Console | None) -> Console:
        """Let rank 0 alone speak."""
        return super().heard(console) if self.world.leads else Silent()


class SharedTraining(Training):
    """The hot loop of a step that is put together from parts.

    The last value of a step's row says whether any rank wants to stop: all read it, and stop, at
    the same step.
    """

    def __init__(
        self, equipped: Equipped, signals: StopSignals, screen: Console, sharing: Sharing
    ) -> None:
        super().__init__(equipped, signals, screen)
        self.sharing, self.is_alone = sharing, sharing.world.size == 1
        # Every rank probes the whole batch by itself: it takes no other rank, and the numbers are
        # those of one process.
        self.plan = self.plan.whole
        self.all_stop = False
        self.most_seconds = equipped.supplied.settled.config.rendezvous_timeout
        sharing.world.patience.last_words = self._last_words

    def train(self) -> None:
        """See `Training.train`; set up, no rank has a reason to keep others waiting for long."""
        self.sharing.most_seconds = self.most_seconds
        super().train()

    def _last_words(self) -> None:
        """Say what is kept of a run that ends in the middle of a step."""
        self.screen.close()
        self.screen.say([abandoned(self.record)])

    def _advance(self) -> None:
        self.sharing.where = f"in step {self.enqueued + 1}"
        if not self.is_alone and self.signals.received:
            self.sharing.ask_to_stop()
        super()._advance()

    def _read_meter(self, lag: int) -> None:
        with self.sharing.waiting():
            super()._read_meter(lag)

    def _measured(self, rows: Tensor) -> Tensor:
        self.all_stop |= bool(rows[:, -1].any())
        return rows[:, :-1]

    def _check_signals(self) -> None:
        """Raise Interrupted when all have read that one has to stop."""
        if self.is_alone:
            super()._check_signals()
        elif self.all_stop:
            raise Interrupted(self.signals.received or signal.SIGTERM)

    def _between_test_batches(self) -> None:
        # Every rank measures all images, so that none waits for another, or stops without it.
        if self.is_alone:
            super()._between_test_batches()

    def _probe(self) -> GradientProbe:
        with unshared(self.step.model):
            return super()._probe()
