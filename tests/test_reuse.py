"""A step that earlier runs have set up trains the next one as if it had been set up for it."""

import itertools
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from run_results import results, table
from small_runs import small_config
from stand_in import needs_stand_in, outcomes

from lion_fast.errors import UserError
from lion_fast.study.studies import find_study
from lion_fast.training import StepCache, setup_key, stages, train
from lion_fast.training.folder.checkpoint import load_checkpoint


@pytest.fixture
def config(tmp_path, stripes):
    return small_config(stripes, tmp_path, max_steps=6, crop_padding=1, engine="eager")


def outcome(summary):
    """All that a run leaves behind but its clock: rows, summary, weights and optimizer state."""
    state = load_checkpoint(summary.run)["training"]
    found = results(summary.run)
    found.pop("reused")
    found["config"].pop("out")
    return table(summary.run), found, state


def assert_same(ours, theirs):
    assert ours[:2] == theirs[:2]
    torch.testing.assert_close(ours[2], theirs[2], rtol=0, atol=0)


def assert_reused_equals_fresh(first, second):
    cache = StepCache()
    train(first, reuse=cache)
    reused = train(second, reuse=cache)
    assert reused.reused and json.loads((reused.run / "summary.json").read_text())["reused"]
    fresh = train(second)
    assert not fresh.reused
    assert_same(outcome(reused), outcome(fresh))


def test_a_reset_step_trains_as_a_fresh_one_to_the_bit(config):
    second = replace(config, seed=7, init="he", aux_weight=0.1, target_accuracy=0.3, window=2)
    assert_reused_equals_fresh(config, second)


@pytest.mark.parametrize("init", ["lion_lsuv", "fixup", "rezero"])
def test_every_initialiser_resets_a_step(config, init):
    first = replace(config, max_steps=2, init="xavier")
    assert_reused_equals_fresh(first, replace(first, seed=1, init=init))


def test_a_whitened_stem_resets_a_step(config):
    assert_reused_equals_fresh(config, replace(config, seed=1, whiten=2))


def test_constants_of_an_optimizer_that_no_graph_holds_are_reset_too(config):
    second = replace(
        config, lr=1e-3, weight_decay=0.2, aux_warmup_steps=4, schedule="linear", lr_warmup_steps=3
    )
    assert_reused_equals_fresh(config, second)
    assert_reused_equals_fresh(second, config)
    muon = replace(second, optimizer="muon")
    sgd = replace(config, optimizer="sgd", lr=0.1)
    assert_reused_equals_fresh(sgd, replace(sgd, lr=0.05))
    assert_reused_equals_fresh(muon, replace(muon, muon_lr=0.01, lr_warmup_steps=5, lr=2e-3))


def test_a_loader_that_no_graph_holds_is_made_anew(config):
    workers = replace(config, loader="workers", num_workers=0)
    assert_reused_equals_fresh(workers, replace(workers, seed=3))


@pytest.mark.slow
def test_compiled_code_serves_the_next_run(config, monkeypatch):
    compiled = replace(config, engine="compile")
    assert_reused_equals_fresh(compiled, replace(compiled, seed=7, init="he", aux_weight=0.1))


def test_a_reused_step_is_neither_built_nor_rehearsed_again(config, monkeypatch):
    cache = StepCache()
    first = train(config, reuse=cache)
    monkeypatch.setattr(stages, "make_engine", None)
    started = time.perf_counter()
    second = train(replace(config, seed=1), reuse=cache)
    print(f"a run of {config.max_steps} steps: {time.perf_counter() - started:.3f} s,")
    print(f"set-up {first.setup_seconds:.3f} s, reused {second.setup_seconds:.4f} s")
    assert second.setup_seconds < first.setup_seconds


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 16},
        {"growth_rate": 3},
        {"max_steps": 5},
        {"optimizer": "muon"},
        {"label_smoothing": 0.1},
        {"num_classes": 2},
        {"crop_padding": 0},
        {"precision": "bf16"},
        {"loader": "workers", "num_workers": 0},
    ],
)
def test_a_run_of_another_shape_is_set_up_anew(config, change):
    cache = StepCache()
    train(config, reuse=cache)
    assert not train(replace(config, **change), reuse=cache).reused
    assert train(config, reuse=cache).reused


def test_data_that_changed_on_disk_are_read_again(config, stripes, tmp_path):
    path = tmp_path / "own.npz"
    arrays = dict(np.load(stripes))
    np.savez(path, **arrays)
    config, cache = replace(config, dataset=str(path)), StepCache()
    train(config, reuse=cache)
    np.savez(path, **{**arrays, "x_train": 255 - arrays["x_train"]})
    after = train(config, reuse=cache)
    assert not after.reused
    assert_same(outcome(after), outcome(train(config)))


def test_a_file_of_a_folder_that_changed_in_place_is_read_again(config, tmp_path):
    for split, label in itertools.product(("train", "test"), ("dark", "light")):
        folder = tmp_path / "set" / split / label
        folder.mkdir(parents=True)
        for index in range(20):
            Image.new("RGB", (8, 8), (20 * (label == "light") + index,) * 3).save(
                folder / f"{index}.png"
            )
    config, cache = replace(config, dataset=str(tmp_path / "set")), StepCache()
    train(config, reuse=cache)
    assert train(config, reuse=cache).reused
    Image.new("RGB", (8, 8), (250, 0, 0)).save(tmp_path / "set" / "train" / "dark" / "3.png")
    after = train(config, reuse=cache)
    assert not after.reused
    assert_same(outcome(after), outcome(train(config)))


def test_at_most_so_many_steps_are_held_and_the_oldest_goes(config):
    cache = StepCache(capacity=1)
    other = replace(config, growth_rate=3)
    for each in (config, other):
        assert not train(each, reuse=cache).reused
        assert len(cache) == 1
    assert train(other, reuse=cache).reused
    assert not train(config, reuse=cache).reused
    cache.clear()
    assert len(cache) == 0
    with pytest.raises(UserError, match="capacity is 0"):
        StepCache(capacity=0)


def test_a_run_that_failed_leaves_no_step_behind(config):
    cache = StepCache()
    train(config, reuse=cache)
    with pytest.raises(UserError, match="loss is"):
        train(replace(config, lr=1e30), reuse=cache)
    assert len(cache) == 0
    assert not train(config, reuse=cache).reused


def test_a_resumed_run_is_set_up_anew_and_then_kept(config):
    cache = StepCache()
    train(config, reuse=cache)
    part = train(replace(config, max_steps=3), reuse=cache)
    resumed = train(config, resume=part.run, reuse=cache)
    assert not resumed.reused
    second = replace(config, seed=9)
    reused = train(second, reuse=cache)
    assert reused.reused
    assert_same(outcome(reused), outcome(train(second)))


def test_own_parts_are_not_reused_but_the_same_images_are(config):
    from lion_fast.data.open import load_image_set

    cache, images = StepCache(), load_image_set(config)
    own = dict(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    for _ in range(2):
        assert not train(config, reuse=cache, **own).reused
    assert len(cache) == 0
    assert not train(config, reuse=cache, images=images).reused
    assert train(replace(config, seed=1), reuse=cache, images=images).reused
    assert not train(config, reuse=cache, images=load_image_set(config)).reused


def test_a_study_of_the_paper_needs_few_set_ups():
    """table1 crosses two data sets, two networks, initialisers and seeds."""
    cells = find_study("table1").cells()
    keys = {setup_key(replace(cell.config, device="cpu")) for cell in cells}
    assert len(keys) == 4 < len(cells)


def test_what_a_graph_holds_is_part_of_its_key(config, monkeypatch):
    from lion_fast.training.machine.resolve import resolve
    from lion_fast.training.step import reuse

    for engine, differs in (("eager", False), ("graph", True)):
        resolved = replace(resolve(config), engine=engine)
        slow, fast = (reuse.setup_key(replace(config, lr=lr), resolved) for lr in (1e-3, 1e-2))
        assert (slow != fast) == differs


@pytest.mark.slow
@needs_stand_in
@pytest.mark.parametrize("loader", ["resident", "workers"])
def test_a_captured_graph_serves_the_next_run(tmp_path, kernel_cache, loader):
    run = f"graph-eager/bf16/densenet_ds/{loader}/gradient_ratio_every=0/eval_every=0"
    found = outcomes("stand_in_reuse.py", "H100", tmp_path, run, cache=kernel_cache)[run]
    assert "result" in found, found
    first, second = found["result"]
    assert (first["reused"], second["reused"]) == (False, True)
    assert len(first["captures"]) == 2 and second["captures"] == []
    # 40 steps with a checkpoint after 20: twice two replays of 8 and four of 1.
    assert first["replays"] == second["replays"] and len(second["replays"]) == 12
