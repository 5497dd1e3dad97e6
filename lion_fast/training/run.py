"""train(config): from a config to a run folder and a Summary, stage by stage."""

import time
from contextlib import ExitStack, closing
from pathlib import Path

from lion_fast.config import TrainConfig
from lion_fast.data.dataset import DataSet
from lion_fast.models import DeeplySupervised
from lion_fast.training.folder.summary import Summary
from lion_fast.training.loop import Training
from lion_fast.training.machine.guards import StopSignals, memory_advice
from lion_fast.training.outcome import summarize
from lion_fast.training.screen.console import Console
from lion_fast.training.screen.printed import beginning, ending, farewell
from lion_fast.training.screen.progress import Steady
from lion_fast.training.step.own import MakeModel, MakeOptimizer, Own, Schedule
from lion_fast.training.step.reuse import Prepared, Shelf, StepCache
from lion_fast.training.together import assembled


def train(
    config: TrainConfig,
    *,
    resume: Path | str | None = None,
    console: Console | None = None,
    model: DeeplySupervised | MakeModel | None = None,
    images: DataSet | None = None,
    optimizer: MakeOptimizer | None = None,
    schedule: Schedule | None = None,
    reuse: StepCache | None = None,
) -> Summary:
    """Train one network as `config` says, or go on with the run folder `resume`.

    model: a network of your own, or a function from num_classes and image_size to one; it is
    initialised by `config.init` like ours. images: a set of your own. optimizer: from parameters to
    an optimizer, instead of `config.optimizer`. schedule: from a step, counted from 0, to the
    factor of the learning rate in it, instead of `config.schedule`. reuse: where steps are kept
    from one call to the next, so that a run of the same shape as an earlier one (`setup_key`) is
    not set up anew; its numbers are those of a run without it.

    On a CPU, the process keeps freed memory from now on (see `keep_freed_memory`).

    Writes a run folder and returns its summary. Raises UserError on bad input, on a non-finite loss
    (the last good checkpoint stays) and when memory or disk run out; Interrupted, which is a
    KeyboardInterrupt, on Ctrl-C, SIGTERM and SIGHUP, after saving a checkpoint. A console that can
    no longer be written does not end the run.

    In processes that torchrun has started, all train this one network, each on its part of every
    batch. The first alone writes and speaks; all return the same numbers, but for their own clocks.
    """
    started = time.perf_counter()
    own = Own(model, images, optimizer, schedule)
    with (
        StopSignals() as signals,
        memory_advice(config.batch_size),
        assembled(config.out, config.virtual_shards, config.rendezvous_timeout) as stages,
        closing(Steady(stages.heard(console))) as screen,
    ):
        settled = stages.settle(config, own, resume, reuse)
        screen.say(beginning(settled.config, settled.resolved))
        supplied = stages.supply(settled, screen)
        try:
            equipped = stages.equip(supplied)
            training = stages.training(equipped, signals, screen)
            training.set_up()
            setup_seconds = time.perf_counter() - equipped.setup_started
            with signals.deferred():
                training.train()
                validation = training.validate()
                summary = summarize(
                    equipped,
                    validation,
                    setup_seconds=setup_seconds,
                    total_seconds=time.perf_counter() - started,
                    data_wait_percent=training.data_wait_percent,
                    stopped_seconds=training.standstill.total(),
                )
                screen.say(supplied.record.finish(summary))
        except KeyboardInterrupt:
            screen.close()
            screen.say([farewell(supplied.record)])
            raise
        if settled.shelf is not None and training.is_set_up:
            _keep(training, settled.shelf, equipped.kept_open)
        screen.close()
        screen.say(ending(summary))
    return summary


def _keep(training: Training, shelf: Shelf, kept_open: ExitStack) -> None:
    """Offer what this run was set up with to runs after it."""
    loader = training.loader
    if loader.walks_on_device:
        kept_open.pop_all()
    kept = loader if loader.walks_on_device else None
    shelf.keep(Prepared(training.images, training.step, training.engine, kept))
