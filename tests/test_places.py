"""`~` means a home wherever a place is typed, and a home that is not there is one line."""

import os
import subprocess
import sys

import pytest

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.places import place
from lion_fast.study.grid import load_study
from lion_fast.training import train
from lion_fast.training.folder.run_folder import RunFolder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def lion_fast(*arguments, **settings):
    command = [sys.executable, "-m", "lion_fast", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | settings
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_a_home_is_meant_in_every_command_and_spelling(home, stripes, tmp_path):
    (home / "data.npz").write_bytes(stripes.read_bytes())
    small = "--growth-rate 2 --block-layers 1 --batch-size 32 --device cpu --max-steps 2".split()
    assert not (done := lion_fast("train", "--dataset=~/data.npz", *small, "--out=~/runs")).stderr
    (run,) = (home / "runs").iterdir()
    typed = f"~/runs/{run.name}"
    for arguments in (
        ("eval", typed, "--dataset=~/data.npz"),
        ("train", f"--resume={typed}", "--max-steps=3"),
        ("study", "quickstart", "--dry-run", "--out=~/studies"),
    ):
        done = lion_fast(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
    assert not (tmp_path / "~").exists()


def test_a_home_is_meant_in_python_and_in_toml(home, stripes, tmp_path):
    config = TrainConfig(out="~/runs", data_dir="~/data", dataset="~/x.npz")
    assert (config.out, config.data_dir) == (home / "runs", home / "data")
    assert config.dataset == "~/x.npz"  # what a study knows its runs by
    (home / "s.toml").write_text('axes = {init = ["he"]}\n[base]\nout = "~/o"\n')
    study = load_study("~/s.toml")
    assert study.base.out == home / "o"
    assert study.folder("~/studies").parent == home / "studies"
    (home / "x.npz").write_bytes(stripes.read_bytes())
    run = train(TrainConfig(
        dataset="~/x.npz", out="~/runs", growth_rate=2, block_layers=1, batch_size=32,
        max_steps=2, device="cpu",
    )).run  # fmt: skip
    assert RunFolder.open(f"~/runs/{run.name}")[0].path == run
    assert not (tmp_path / "~").exists()


def test_a_path_that_no_file_can_have_is_one_line():
    for field in ("out", "data_dir", "dataset"):
        with pytest.raises(UserError, match="holds a NUL character"):
            TrainConfig(**{field: "runs\0"})


def test_a_home_that_is_not_there_is_one_line(monkeypatch):
    for typed in ("~nobody-of-that-name/runs", "~nobody-of-that-name"):
        with pytest.raises(UserError, match="there is no user 'nobody-of-that-name': give the"):
            place(typed)
        for field in ("out", "data_dir", "dataset"):
            with pytest.raises(UserError, match="no user"):
                TrainConfig(**{field: typed})
    monkeypatch.setattr("pathlib.Path.expanduser", without_home)
    with pytest.raises(UserError, match=r"this process has no home \(HOME\)"):
        place("~/runs")


def without_home(path):
    raise RuntimeError("Could not determine home directory.")
