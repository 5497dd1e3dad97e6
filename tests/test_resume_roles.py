"""A resumed run keeps what it learns; where and how that is computed, and kept, it may be told."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_results import table
from small_runs import small_config

from lion_fast.cli import main
from lion_fast.config import FREE_ON_RESUME, fields_of
from lion_fast.errors import UserError
from lion_fast.training import evaluate, predict, train
from lion_fast.training.folder.checkpoint import NAME, load_checkpoint

SMALL = "--growth-rate 2 --block-layers 1 --batch-size 32 --window 3 --device cpu".split()


@pytest.fixture
def photos(tmp_path, stripes):
    """A place of the images that can be moved."""
    (tmp_path / "job1").mkdir()
    return Path(shutil.copy(stripes, tmp_path / "job1" / "photos.npz"))


@pytest.fixture
def config(tmp_path, photos):
    return small_config(photos, tmp_path, max_steps=6)


@pytest.fixture
def run(config):
    """A finished run of 6 steps."""
    return train(config).run


def test_all_but_what_is_learned_is_free_on_resume():
    kept = fields_of("numbers") - {"dataset", "max_steps"}
    assert not kept & FREE_ON_RESUME
    every = fields_of("numbers") | fields_of("execution") | fields_of("housekeeping")
    assert every - kept == FREE_ON_RESUME


def moved(photos):
    (photos.parent.parent / "job2").mkdir()
    return Path(shutil.move(photos, photos.parent.parent / "job2" / "images.npz"))


def test_a_run_follows_its_images_to_where_they_have_gone(config, run, photos):
    place = moved(photos)
    told = evaluate(run, device="cpu", dataset=place)
    summary = json.loads((run / "summary.json").read_text())
    assert told.to_dict() == {name: summary[name] for name in told.to_dict()}
    again = train(replace(config, max_steps=9, dataset=str(place)), resume=run)
    assert again.resumed == (f"from step 6 on: dataset {photos} -> {place}",)
    whole = train(replace(config, max_steps=9, dataset=str(place)))
    assert table(run) == table(whole.run)
    assert evaluate(run, device="cpu").accuracy == again.val_accuracy


def test_images_that_are_gone_end_in_the_flag_that_says_where_they_are(config, run, photos, capsys):
    place = moved(photos)
    for command in (["eval", str(run)], ["train", "--resume", str(run), "--max-steps", "9"]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and f"no longer at {photos}: say with --dataset" in told
        assert main([*command, "--dataset", str(place)]) == 0
        capsys.readouterr()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(path)
    return path


def test_predict_follows_the_images_where_they_are_the_runs(run, photos, image):
    alone = predict(run, image, device="cpu")
    place = moved(photos)
    assert predict(run, image, device="cpu") == alone  # a checkpoint knows what it takes
    assert predict(run, image, device="cpu", dataset=place) == alone


def test_predict_with_an_early_checkpoint_needs_its_images_and_says_so(run, photos, image, capsys):
    alone = predict(run, image, device="cpu")
    state = load_checkpoint(run)
    del state["data"]
    torch.save(state, run / NAME)
    place = moved(photos)
    command = ["predict", str(run), str(image), "--device", "cpu"]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"no longer at {photos}: say with --dataset" in told
    assert main([*command, "--dataset", str(place), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["probability"] == pytest.approx(alone[0].probability)


@pytest.mark.parametrize("command", [["eval"], ["predict"], ["train", "--resume"]])
def test_a_place_with_nothing_at_it_is_named_as_it_was_told(command, run, image, capsys):
    rest = [str(image)] if command == ["predict"] else []
    assert main([*command, str(run), *rest, "--dataset", "/nowhere.npz"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "/nowhere.npz" in told and "no longer" not in told


def test_other_images_at_another_place_are_refused(config, run, stripes, tmp_path, image):
    other = tmp_path / "other.npz"
    with np.load(stripes) as archive:
        np.savez(other, **{n: 255 - a if n[0] == "x" else a for n, a in archive.items()})
    for attempt in (
        lambda: train(replace(config, max_steps=9, dataset=str(other)), resume=run),
        lambda: evaluate(run, device="cpu", dataset=other),
        lambda: predict(run, image, device="cpu", dataset=other),
    ):
        with pytest.raises(UserError, match="other is not what|other.npz is not what"):
            attempt()
    assert len(load_checkpoint(run)["history"]) == 6


def test_a_checkpoint_that_knows_nothing_of_its_images_is_not_moved(config, run, photos):
    state = load_checkpoint(run)
    del state["data"]
    torch.save(state, run / NAME)
    place = moved(photos)
    with pytest.raises(UserError, match="cannot tell whether .*images.npz holds the same images"):
        train(replace(config, max_steps=9, dataset=str(place)), resume=run)


@pytest.mark.parametrize(
    "flags",
    [
        ["--num-workers", "0", "--loader", "workers"],
        ["--steps-per-run", "4"],
        ["--engine", "eager"],
        ["--backbone", "modules"],
        ["--eval-every", "2"],
        ["--gradient-ratio-every", "2"],
    ],
)
def test_where_and_how_a_run_computes_may_be_told_anew(run, flags, capsys):
    assert main(["train", "--resume", str(run), "--max-steps", "9", *flags]) == 0
    told = json.loads((run / "summary.json").read_text())
    assert told["steps"] == 9
    is_told = flags[0] not in ("--engine", "--backbone")  # these are what auto was
    assert bool(told["resumed"]) == is_told
    assert ("from step 6 on:" in capsys.readouterr().out) == is_told


def test_a_run_goes_on_in_another_precision_and_says_from_where(config):
    """As the message of a loss that is not finite advises."""
    run = train(replace(config, precision="bf16")).run
    again = train(replace(config, precision="fp32", max_steps=9), resume=run)
    assert again.resolved["precision"] == "fp32"
    assert again.resumed == ("from step 6 on: precision bf16 -> fp32",)
    last = train(replace(config, precision="fp32", num_workers=0, max_steps=12), resume=run)
    assert last.resumed == (*again.resumed, "from step 9 on: num_workers 2 -> 0")


@pytest.mark.parametrize("scale", [{}, {"scale": 4.0, "growth_factor": 2.0, "backoff_factor": 0.5}])
def test_a_checkpoint_of_a_scaled_loss_or_of_a_gpu_serves_elsewhere(config, run, scale):
    state = load_checkpoint(run)
    for group in state["training"]["optimizer"]["param_groups"]:
        group["capturable"] = True
    state["training"]["scaler"] = scale
    torch.save(state, run / NAME)
    train(replace(config, max_steps=9), resume=run)
    groups = load_checkpoint(run)["training"]["optimizer"]["param_groups"]
    assert [group["capturable"] for group in groups] == [False]


def test_a_loss_that_is_not_finite_advises_what_the_run_accepts(config, capsys):
    with pytest.raises(UserError, match="loss is") as caught:
        train(replace(config, precision="bf16", lr=1e30, checkpoint_every=1, max_steps=50))
    (run,) = config.out.iterdir()
    advice = f"or go on with --resume {run} --precision fp32"
    assert "start anew with a lower --lr" in str(caught.value) and advice in str(caught.value)
    flags = advice.removeprefix("or go on with ").split()
    assert main(["train", *flags, "--max-steps", "1"]) in (0, 2)
    assert "keeps its settings" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state["data"].update(shade=3), "does not say what data it was trained on"),
        (lambda state: state["data"].pop("mean"), "does not say what data it was trained on"),
        (lambda state: state.update(data=3), "its 'data' is none"),
        (lambda state: state.update(resumed=3), "its 'resumed' is none"),
        (lambda state: state["training"].pop("model"), " was changed"),
    ],
)
def test_a_checkpoint_of_another_version_or_that_was_changed_is_one_line(
    change, words, run, image, capsys
):
    state = load_checkpoint(run)
    change(state)
    torch.save(state, run / NAME)
    for command in (["eval"], ["predict"], ["train", "--max-steps", "9", "--resume"]):
        rest = [str(image)] if command == ["predict"] else []
        assert main([*command, str(run), *rest]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and words in told, told
