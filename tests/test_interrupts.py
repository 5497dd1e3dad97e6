"""A run that is told to stop saves what it has, whenever that happens and whoever says so."""

import signal
from dataclasses import replace

import pytest
from run_results import results, table

from lion_fast.config import TrainConfig
from lion_fast.training import loop, train
from lion_fast.training.folder.checkpoint import load_checkpoint
from lion_fast.training.machine.guards import Interrupted, StopSignals
from lion_fast.training.screen.console import Silent
from lion_fast.training.step.engine import StepEngine


@pytest.fixture
def config(tmp_path, stripes):
    return TrainConfig(
        dataset=str(stripes),
        growth_rate=2,
        block_layers=1,
        batch_size=32,
        max_steps=20,
        window=5,
        checkpoint_every=0,
        log_every=7,
        device="cpu",
        out=tmp_path / "runs",
    )


class Listener(Silent):
    """A console that does `act` at the log line of a step."""

    def __init__(self, act=lambda: None, at=7):
        self.lines, self.act, self.at = [], act, at

    def say(self, lines):
        self.lines += lines

    def progress(self, progress):
        if progress.step == self.at:
            self.act()

    def close(self):
        pass


def only_run(config):
    (run,) = config.out.iterdir()
    return run


@pytest.fixture(autouse=True)
def handlers_are_left_as_they_were():
    # Under nohup SIGHUP is ignored from the start, and a run leaves an ignored signal ignored.
    found = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before
    signal.signal(signal.SIGHUP, found)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
)
def test_every_way_to_say_stop_saves_and_a_resumed_run_ends_as_if_never_stopped(config, number):
    console = Listener(lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted) as caught:
        train(config, console=console)
    assert caught.value.signal_number == number
    run = only_run(config)
    assert len(load_checkpoint(run)["history"]) == 7
    assert f"interrupted at step 7: go on with --resume {run}" in console.lines
    train(config, resume=run)
    whole = train(config).run
    assert table(run) == table(whole)
    assert results(run) == results(whole)


@pytest.mark.parametrize(("at_validation", "saved"), [(1, 8), (2, 16), (3, 20)])
def test_a_signal_during_a_validation_loses_nothing(config, monkeypatch, at_validation, saved):
    """Validations are due at 8, 16 and the end; no checkpoint but the one of the signal."""
    config = replace(config, eval_every=8)
    whole = train(config).run
    validate, calls = loop.validate, []

    def stopped(model, images, resolved, batch_size, between_batches):
        calls.append(None)
        if len(calls) == at_validation:
            signal.raise_signal(signal.SIGTERM)
        return validate(model, images, resolved, batch_size, between_batches)

    monkeypatch.setattr(loop, "validate", stopped)
    with pytest.raises(Interrupted):
        train(replace(config, out=config.out / "stopped"))
    monkeypatch.undo()
    (run,) = (config.out / "stopped").iterdir()
    assert len(load_checkpoint(run)["history"]) == saved
    assert not (run / "summary.json").exists()
    train(config, resume=run)
    for name in ("metrics.csv", "validation.csv"):
        assert table(run, name) == table(whole, name)


def test_a_signal_during_set_up_acts_at_once_and_leaves_no_folder(config, monkeypatch):
    setup = StepEngine.setup

    def stopped(self, first_step):
        signal.raise_signal(signal.SIGINT)
        setup(self, first_step)
        pytest.fail("set-up went on")

    monkeypatch.setattr(StepEngine, "setup", stopped)
    with pytest.raises(Interrupted):
        train(config)
    assert not list(config.out.iterdir())


def test_a_second_signal_acts_at_once(config):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(config, console=Listener(twice))
    assert not isinstance(caught.value, Interrupted)


def test_a_signal_that_was_ignored_stays_ignored():
    """As for a run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            signals.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_warning_signal_that_the_caller_uses_or_ignores_stays_the_callers():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append("mine"))
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR2)
            signals.check()
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGUSR2, ignored)
    assert heard == ["mine"]


def test_the_final_checkpoint_stands_before_the_final_validation(config, monkeypatch):
    def broken(*_):
        raise OSError("a test image is gone")

    monkeypatch.setattr(loop, "validate", broken)
    with pytest.raises(OSError, match="is gone"):
        train(config)
    monkeypatch.undo()
    run = only_run(config)
    assert len(load_checkpoint(run)["history"]) == 20
    assert train(config, resume=run).steps == 20


@pytest.mark.parametrize("error", [BrokenPipeError, OSError(28, "No space left on device")])
def test_a_console_that_cannot_be_written_does_not_stop_the_run(config, error):
    class Gone(Listener):
        calls = 0

        def say(self, lines):
            self.calls += 1
            raise error

        progress = close = say

    console = Gone()
    assert train(config, console=console).steps == 20
    assert console.calls == 1
