"""A run folder belongs to one process, tells the truth, and survives disks that are full."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_results import results, table
from small_runs import small_config
from test_interrupts import Listener

from lion_fast.data.sources import data_fingerprint
from lion_fast.errors import UserError
from lion_fast.training import evaluate, train
from lion_fast.training.folder.checkpoint import NAME, load_checkpoint
from lion_fast.training.folder.files import LOCK
from lion_fast.training.folder.run_folder import RunFolder
from lion_fast.training.machine import precision


@pytest.fixture
def config(tmp_path, stripes):
    return small_config(stripes, tmp_path, max_steps=9, log_every=3)


@pytest.fixture
def run(config):
    """A finished run of 9 steps."""
    return train(config).run


def contents(run):
    return {path.name: path.read_bytes() for path in run.iterdir()}


def assert_not_gone_on_with(run, config, words):
    before = contents(run)
    with pytest.raises(UserError, match=words):
        train(config, resume=run)
    assert contents(run) == before


HOLD = """
import fcntl, os, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print(os.getpid(), file=file, flush=True)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_told_who_holds_the_folder_and_touches_nothing(run, config):
    command = [sys.executable, "-c", HOLD, str(run / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        words = f"in use by process {holder.pid}: wait"
        assert_not_gone_on_with(run, replace(config, max_steps=12), words)
        holder.kill()
    # The lock has ended with its process, though the file is still there.
    assert train(replace(config, max_steps=12), resume=run).steps == 12
    assert not (run / LOCK).exists()


def test_a_folder_is_held_against_the_same_process_too(config):
    errors = []

    def resume_meanwhile():
        (run,) = config.out.iterdir()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}") as caught:
            train(config, resume=run)
        errors.append(caught.value)

    assert train(config, console=Listener(resume_meanwhile, at=3)).steps == 9
    assert errors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.5}, "lr 0.005 -> 0.5"),
        ({"batch_size": 64, "window": 4}, "batch_size 32 -> 64, window 3 -> 4"),
        ({"init": "he"}, "init lion_dg -> he"),
    ],
)
def test_an_edited_config_is_refused_and_its_changes_are_listed(run, config, changes, words):
    edited = replace(config, **changes)
    RunFolder(run).write_config(edited.to_dict())
    told = f"config.json is not what its checkpoint was trained with .*{words}"
    for asked in (config, edited):
        assert_not_gone_on_with(run, asked, told)


def test_another_config_is_refused_from_python_too(run, config):
    assert_not_gone_on_with(run, replace(config, seed=7), "seed 42 -> 7")


def test_a_run_cannot_be_resumed_to_fewer_steps_than_it_has(run, config):
    words = "max_steps is 5, but .* is at step 9: give at least 9"
    assert_not_gone_on_with(run, replace(config, max_steps=5), words)


def test_a_folder_that_is_no_run_is_not_resumed(config, tmp_path):
    for path in (tmp_path, Path(config.dataset), tmp_path / "nowhere"):
        with pytest.raises(UserError, match="is not a run folder"):
            train(config, resume=path)
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 5000}, "batch_size is 5000"),
        ({"dataset": "nowhere.npz"}, "no such file"),
        ({"placement": "residual"}, "placement is 'residual'"),
        ({"num_classes": 9}, "num_classes is 9"),
        ({"engine": "graph"}, "engine graph"),
    ],
)
def test_a_refused_run_leaves_no_folder(config, changes, words):
    with pytest.raises(UserError, match=words):
        train(replace(config, **changes))
    assert not config.out.exists()


def test_a_dataset_given_by_a_relative_path_is_found_from_anywhere(config, monkeypatch, tmp_path):
    dataset = Path(config.dataset)
    monkeypatch.chdir(dataset.parent)
    run = train(replace(config, dataset=dataset.name)).run
    monkeypatch.chdir(tmp_path)
    assert json.loads((run / "config.json").read_text())["dataset"] == str(dataset)
    assert train(replace(config, max_steps=12), resume=str(run)).steps == 12


def test_folders_and_checkpoints_of_earlier_versions_still_open(run, config):
    state = load_checkpoint(run)
    state = {key: state[key] for key in ("training", "config", "history", "validations", "probes")}
    torch.save(state | {"rng": torch.get_rng_state()}, run / NAME)
    train(replace(config, max_steps=12), resume=run)
    whole = train(replace(config, max_steps=12)).run
    assert table(run) == table(whole)
    assert results(run) == results(whole)


def test_a_resumed_run_keeps_the_precision_that_auto_was_where_it_began(config, monkeypatch):
    config = replace(config, cpu_bf16=True)
    monkeypatch.setattr(precision, "cpu_bf16_instructions", lambda: "AMX")
    run = train(config).run
    whole = train(replace(config, max_steps=12))
    assert whole.resolved["precision"] == "bf16"
    monkeypatch.setattr(precision, "cpu_bf16_instructions", lambda: None)
    (run / "summary.json").unlink()
    lines = Listener()
    evaluate(run, console=lines)
    assert "device cpu  precision bf16" in lines.lines
    assert train(replace(config, max_steps=12), resume=run).resolved == whole.resolved
    assert table(run) == table(whole.run)


def test_a_run_in_a_precision_that_is_not_here_is_not_gone_on_with_in_another(run, config):
    torch.save(load_checkpoint(run) | {"precision": "fp16"}, run / NAME)
    words = "computes in fp16, and .* needs a CUDA GPU: resume it th"
    assert_not_gone_on_with(run, replace(config, max_steps=12), words)


def test_a_checkpoint_of_another_network_is_one_line(run, config):
    state = load_checkpoint(run)
    state["training"]["model"].pop("heads.main.linear.weight")
    torch.save(state, run / NAME)
    with pytest.raises(UserError, match="does not fit its config"):
        train(config, resume=run)


def rewrite(path, **changes):
    """Change arrays of an .npz in place."""
    with np.load(path) as archive:
        np.savez(path, **(dict(archive) | changes))


def other_pixel(arrays):
    arrays = arrays.copy()
    arrays.flat[0] ^= 1
    return arrays


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: {"x_train": other_pixel(x)}, "other training images or labels"),
        (lambda x, y: {"x_train": x[:400], "y_train": y[:400]}, "400 training images, and there"),
        (
            lambda x, y: {"y_train": np.minimum(y, 2), "y_test": y[:200] % 3},
            "classes that are gone",
        ),
        (
            lambda x, y: {"x_train": x.repeat(2, 1), "x_test": x[:200].repeat(2, 1)},
            "images are 16x8 and were 8x8",
        ),
    ],
)
def test_other_data_at_the_same_path_is_refused_with_what_differs(config, tmp_path, change, words):
    dataset = Path(shutil.copy(config.dataset, tmp_path / "data.npz"))
    config = replace(config, dataset=str(dataset))
    run = train(config).run
    with np.load(dataset) as archive:
        x, y = archive["x_train"], archive["y_train"]
    rewrite(dataset, **change(x, y))
    told = f"data is not what .* was trained on: .*{words}"
    assert_not_gone_on_with(run, replace(config, max_steps=12), told)


def fill_the_disk_of(name):
    """Let every further write of this process's open file of that name fail with ENOSPC."""
    full = os.open("/dev/full", os.O_WRONLY)
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and os.readlink(link).endswith(name):
            os.dup2(full, int(link.name))
    os.close(full)


def test_a_disk_full_at_the_metrics_costs_no_step(config):
    console = Listener(lambda: fill_the_disk_of("metrics.csv"), at=3)
    with pytest.raises(UserError, match="cannot write .*metrics.csv: No space left") as caught:
        train(config, console=console)
    (run,) = config.out.iterdir()
    assert f"then --resume {run}" in str(caught.value)
    assert len(load_checkpoint(run)["history"]) == 6
    train(config, resume=run)
    assert table(run) == table(train(config).run)


@pytest.mark.parametrize("name", ["metrics.csv", "summary.json.tmp", "config.json.tmp", LOCK])
def test_a_file_that_cannot_be_written_is_one_line(run, config, name):
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    shown = re.escape(str(run / name.removesuffix(".tmp")))
    with pytest.raises(UserError, match=f"cannot write {shown}: .*then --resume") as caught:
        train(replace(config, max_steps=12), resume=run)
    assert "\n" not in str(caught.value)
    (run / name).rmdir()
    assert train(replace(config, max_steps=12), resume=run).steps == 12


def test_a_picture_that_cannot_be_drawn_costs_nothing_but_a_line(config):
    console = Listener()
    console.act = lambda: next(config.out.iterdir()).joinpath("curves.tmp").mkdir()
    console.at = 3
    summary = train(config, console=console)
    assert json.loads((summary.run / "summary.json").read_text())["steps"] == 9
    assert any(line.startswith("no curves.png, all else is written") for line in console.lines)


def test_no_room_for_a_run_folder_is_one_line_and_leaves_none(config, monkeypatch):
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match="cannot make a run folder: .*No space left"):
        train(config)
    assert not list(config.out.iterdir())


def no_space(descriptor):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["x" * 240, "\u0436" * 118, "a-\u00e9" * 60])
def test_a_data_set_of_a_long_name_can_be_trained_on(config, tmp_path, name):
    path = tmp_path / f"{name}.npz"
    shutil.copy(config.dataset, path)
    summary = train(replace(config, dataset=str(path), max_steps=2))
    assert (summary.run / "summary.json").exists()
    assert len(os.fsencode(summary.run.name)) < 230 and name[:20] in summary.run.name
    assert summary.config["dataset"] == str(path)


def test_a_config_that_an_editor_gave_a_byte_order_mark_is_read(config):
    summary = train(replace(config, max_steps=2))
    path = summary.run / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(evaluate(summary.run, device="cpu").accuracy_per_head) == 3
    assert train(replace(config, max_steps=3), resume=summary.run).steps == 3


def test_a_summary_says_which_data_the_run_saw(config):
    summary = train(replace(config, max_steps=2))
    told = json.loads((summary.run / "summary.json").read_text(encoding="utf-8"))
    assert told["data_fingerprint"] == data_fingerprint(config)
