import json
import math
import threading
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from run_results import results, table
from small_runs import small_config

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.training import evaluate, train
from lion_fast.training.screen.console import Silent
from lion_fast.training.step.step import TrainStep


@pytest.fixture
def config(tmp_path, stripes):
    """A network, a set and a run small enough to train in a second."""
    return small_config(
        stripes, tmp_path, growth_rate=4, max_steps=30, window=5, target_accuracy=0.7
    )


def test_training_learns_and_reaches_its_target(config):
    summary = train(config)
    losses = [float(row["loss"]) for row in table(summary.run)]
    assert len(losses) == summary.steps == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert 5 <= summary.steps_to_target < 30
    assert 0 < summary.seconds_to_target < summary.train_seconds < summary.total_seconds
    assert summary.val_accuracy == summary.val_accuracy_per_head[-1] > 0.3
    assert len(summary.val_accuracy_per_head) == 3


def test_the_run_folder_explains_itself(config):
    run = train(config).run
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "metrics.csv",
        "validation.csv",
        "summary.json",
        "env.txt",
        "curves.png",
        "checkpoint.pt",
    }
    assert TrainConfig.from_dict(json.loads((run / "config.json").read_text())) == config
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert f"torch: {version('torch')}" in (run / "env.txt").read_text()


def test_steps_to_target_is_the_first_crossing_in_the_metrics(config):
    summary = train(config)
    windowed = [row["train_accuracy_windowed"] for row in table(summary.run)]
    crossing = next(i for i, value in enumerate(windowed, 1) if value and float(value) >= 0.7)
    assert summary.steps_to_target == crossing


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(config):
    first, again = train(config), train(config)
    assert table(first.run) == table(again.run)
    assert results(first.run) == results(again.run)
    assert table(train(replace(config, seed=43)).run) != table(first.run)


def test_stop_at_target_ends_the_run_there(config):
    summary = train(replace(config, stop_at_target=True))
    assert summary.steps == summary.steps_to_target < config.max_steps


def test_an_unreached_target_is_null(config):
    summary = train(replace(config, max_steps=3))
    stored = json.loads((summary.run / "summary.json").read_text())
    assert stored["steps_to_target"] is stored["seconds_to_target"] is None


@pytest.mark.parametrize("init", ["he", "lion_dg"])
def test_the_gradient_ratio_starts_at_exactly_zero_for_lion_dg_alone(config, init):
    run = train(replace(config, init=init, gradient_ratio_every=5, max_steps=11)).run
    probes = table(run, "probes.csv")
    assert [int(row["step"]) for row in probes] == [1, 6, 11]
    first, *later = (float(row["gradient_ratio"]) for row in probes)
    assert (first == 0.0) == (init == "lion_dg")
    assert all(ratio > 0 for ratio in later)


def test_probing_and_validating_leave_the_run_as_it_was(config):
    plain = train(config)
    watched = train(replace(config, gradient_ratio_every=7, eval_every=10))
    assert table(plain.run) == table(watched.run)
    assert [int(row["step"]) for row in table(watched.run, "validation.csv")] == [10, 20, 30]


def test_the_warm_up_before_the_clock_teaches_nothing(config):
    """A fresh network's first recorded loss is its loss at initialisation."""
    summary = train(replace(config, init="fixup", aux_weight=0.0, max_steps=1))
    assert float(table(summary.run)[0]["loss"]) == pytest.approx(math.log(4))


def test_aux_warm_up_ramps_the_auxiliary_weight(config):
    run = train(replace(config, init="he", aux_warmup_steps=10, max_steps=12)).run
    for step, row in enumerate(table(run)):
        aux = float(row["loss_head0"]) + float(row["loss_head1"])
        weight = 0.3 * min(1.0, step / 10)
        total = float(row["loss_head2"]) + weight * aux
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("loader", ["workers", "dali"])
def test_every_loader_trains_the_same_run(config, loader):
    reference = train(replace(config, max_steps=6))
    other = train(replace(config, max_steps=6, loader=loader, num_workers=1))
    for ours, theirs in zip(table(reference.run), table(other.run), strict=True):
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-4)


def test_evaluate_repeats_the_final_validation(config):
    summary = train(config)
    validation = evaluate(summary.run, device="cpu")
    assert list(validation.accuracy_per_head) == summary.val_accuracy_per_head
    assert validation.loss == summary.val_loss


def test_a_resumed_run_equals_an_uninterrupted_one(config):
    """Stopped at step 12, in the middle of everything, then resumed."""
    config = replace(config, gradient_ratio_every=5, eval_every=8)
    whole = train(config)
    part = train(replace(config, max_steps=12))
    assert not (part.run / "checkpoint.previous.pt").exists()
    resumed = train(config, resume=part.run)
    for name in ("metrics.csv", "probes.csv"):
        assert table(resumed.run, name) == table(whole.run, name)
    assert results(resumed.run) == results(whole.run)


def test_resuming_a_finished_run_repeats_its_summary(config):
    first = train(config)
    before = table(first.run), results(first.run)
    train(config, resume=first.run)
    assert (table(first.run), results(first.run)) == before


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(config, monkeypatch):
    step = TrainStep.__call__

    def diverging(self, batch, row):
        step(self, batch, row)
        if self.steps_done == 14:
            self.model.heads.main.linear.weight.data.fill_(float("inf"))

    monkeypatch.setattr(TrainStep, "__call__", diverging)
    with pytest.raises(
        UserError, match="at step 15: start anew with a lower --lr.*checkpoint of step 10"
    ) as caught:
        train(replace(config, checkpoint_every=5))
    assert "\n" not in str(caught.value)
    (run,) = config.out.iterdir()
    assert len(table(run)) == 14
    monkeypatch.undo()
    assert train(replace(config, checkpoint_every=5), resume=run).steps == 30


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({}, "lower --lr; no checkpoint"),
        ({"precision": "bf16"}, "lower --lr or with --precision fp32; no checkpoint"),
        ({"optimizer": "muon"}, "lower --lr or --muon-lr; no checkpoint"),
    ],
)
def test_the_advice_on_a_non_finite_loss_is_not_what_the_run_has_already(config, changes, remedy):
    with pytest.raises(UserError, match=remedy):
        train(replace(config, **changes, lr=1e30, muon_lr=1e30))


def test_running_out_of_memory_says_what_to_lower(config, monkeypatch):
    def greedy(self, batch, row):
        torch.empty(1 << 60)

    monkeypatch.setattr(TrainStep, "__call__", greedy)
    with pytest.raises(UserError, match="out of memory at batch_size 32: .* lower --batch-size"):
        train(config)


def test_a_training_run_reports_through_its_console(config):
    class Listener(Silent):
        lines, progress_seen = [], []

        def say(self, lines):
            self.lines += lines

        def progress(self, progress):
            self.progress_seen.append(progress)

        def close(self):
            self.lines.append("closed")

    listener = Listener()
    train(replace(config, log_every=10), console=listener)
    assert [p.step for p in listener.progress_seen] == [10, 20, 30]
    assert all(p.images_per_second > 0 and p.memory_mib > 0 for p in listener.progress_seen)
    assert listener.progress_seen[-1].eta_seconds == 0
    assert any("reached at step" in line for line in listener.lines)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": "graph"}, "engine graph needs a CUDA GPU"),
        ({"precision": "fp16"}, "precision fp16 needs a CUDA GPU"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"batch_size": 5000}, "batch_size is 5000"),
        ({"placement": "residual"}, "placement is 'residual'"),
    ],
)
def test_what_cannot_run_here_is_said_in_one_line(config, changes, words):
    with pytest.raises(UserError, match=words) as caught:
        train(replace(config, **changes))
    assert "\n" not in str(caught.value)


def test_bf16_trains_on_the_cpu(config):
    summary = train(replace(config, precision="bf16"))
    assert summary.steps_to_target is not None


@pytest.mark.slow
def test_the_compiled_engine_follows_the_eager_one(config):
    config = replace(config, max_steps=8)
    eager, compiled = train(config), train(replace(config, engine="compile"))
    for ours, theirs in zip(table(eager.run), table(compiled.run), strict=True):
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-3)


def test_training_works_outside_the_main_thread(config):
    """Signal handlers can be set in the main thread only, and a server may train elsewhere."""
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(train(replace(config, max_steps=2))))
    thread.start()
    thread.join()
    assert outcome[0].steps == 2
