"""Training with a class for every pixel: from a folder of masks to predictions and pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from run_results import results, table
from small_runs import small_config
from stand_in import needs_stand_in, outcomes

from lion_fast.cli import main
from lion_fast.data.masks import MaskSet
from lion_fast.data.open import load_image_set
from lion_fast.errors import UserError
from lion_fast.kernels import DenseLosses
from lion_fast.models import unet_ds
from lion_fast.training import evaluate, load_run, predict, train
from lion_fast.training.folder.masks import palette
from lion_fast.training.measure.probe import effective_rank
from lion_fast.training.step.history import PIXEL_HITS, row_width, write_row

SIDE = 16
NAMES = ("ground", "red", "green")


def scenes(num, seed):
    """Noise with a red and a green block, whose classes are 1 and 2, and an ignored column."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (num, SIDE, SIDE, 3)).astype(np.uint8)
    masks = np.zeros((num, SIDE, SIDE), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        for channel in range(2):
            top, left = rng.integers(0, SIDE - 6, 2)
            image[top : top + 6, left : left + 6, channel] += 150
            mask[top : top + 6, left : left + 6] = 1 + channel
            image[top : top + 6, left : left + 6, 1 - channel] = 0
    masks[:, :, 0] = 255
    return images, masks


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "blocks"
    for split, num in (("train", 64), ("test", 12)):
        for name, arrays in zip(("images", "masks"), scenes(num, num), strict=True):
            (folder / split / name).mkdir(parents=True)
            for index, array in enumerate(arrays):
                Image.fromarray(array).save(folder / split / name / f"{index:02}.png")
    (folder / "classes.txt").write_text("\n".join(NAMES), encoding="utf-8")
    return folder


def config_of(root, folder, **changes):
    settings = {"arch": "unet_ds", "unet_width": 4, "batch_size": 16, "max_steps": 12, "lr": 1e-2}
    return small_config(root, folder, **settings | changes)


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A run with everything in it, and its summary."""
    config = config_of(
        root, tmp_path_factory.mktemp("trained"), max_steps=60, lr=5e-3, init="he",
        gradient_ratio_every=20, eval_every=30, dice=0.5, crop_padding=2,
    )  # fmt: skip
    return config, train(config)


def test_training_learns_its_pixels(trained):
    _, summary = trained
    losses = [float(row["loss"]) for row in table(summary.run)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert summary.val_accuracy > 0.5 and summary.train_accuracy > 0.6
    assert len(summary.val_accuracy_per_head) == 3 and len(summary.val_iou_per_class) == 3
    told = json.loads((summary.run / "summary.json").read_text())
    assert told["val_iou_per_class"] == summary.val_iou_per_class
    assert np.mean(summary.val_iou_per_class) == pytest.approx(summary.val_accuracy)


def test_the_mean_of_iou_is_that_of_masks_compared_pixel_by_pixel(trained, root):
    _, summary = trained
    model, transform, classes = load_run(summary.run)
    images, masks = scenes(12, 12)
    with torch.no_grad():
        levels = model(torch.stack([transform(image) for image in images]))
    assert classes == NAMES
    for level, wanted in zip(levels, summary.val_accuracy_per_head, strict=True):
        found = level.argmax(1).repeat_interleave(SIDE // level.shape[-1], 1)
        found = found.repeat_interleave(SIDE // level.shape[-1], 2).numpy()
        valid = masks != 255
        ious = [
            ((found == k) & (masks == k)).sum() / (((found == k) & valid) | (masks == k)).sum()
            for k in range(3)
        ]
        assert np.mean(ious) == pytest.approx(wanted, abs=1e-6)
    np.testing.assert_allclose(ious, summary.val_iou_per_class, atol=1e-6)


def test_evaluation_finds_again_what_training_found(trained, root):
    _, summary = trained
    validation = evaluate(summary.run)
    assert list(validation.accuracy_per_head) == summary.val_accuracy_per_head
    assert validation.iou_per_class == summary.val_iou_per_class
    assert validation.loss == pytest.approx(summary.val_loss)


def test_lion_dg_with_a_prior_begins_at_a_gradient_of_0_and_probes_its_ranks(root, tmp_path):
    config = config_of(
        root, tmp_path, init="lion_dg", head_bias="prior", gradient_ratio_every=5, max_steps=8
    )
    probes = table(train(config).run, "probes.csv")
    assert [int(row["step"]) for row in probes] == [1, 6]
    assert float(probes[0]["gradient_ratio"]) == 0 < float(probes[1]["gradient_ratio"])
    for h in range(2):
        assert float(probes[0][f"aux_head{h}_effective_rank"]) == 0
        assert 1 <= float(probes[1][f"aux_head{h}_effective_rank"]) <= 3


def test_a_run_ends_in_a_picture_of_every_head(trained):
    _, summary = trained
    with Image.open(summary.run / "masks.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert picture.width > picture.height
    for number in (0, 1, 2):
        nearest = min(np.abs(np.array(colour, int) - palette()[number]).max() for colour in colours)
        assert nearest <= 17, number


def test_the_network_on_disk_predicts_a_mask_a_picture_of_its_size(trained, root, tmp_path, capsys):
    _, summary = trained
    large = tmp_path / "03.png"
    with Image.open(root / "test/images/03.png") as image:
        image.resize((3 * SIDE, 2 * SIDE), Image.Resampling.NEAREST).save(large)
    (told,) = predict(summary.run, large, masks=tmp_path / "out")
    assert told.mask == str(tmp_path / "out" / "03.png") and sum(told.shares.values()) == 1
    assert list(told.shares) == sorted(told.shares, key=told.shares.get, reverse=True)
    with Image.open(told.mask) as mask:
        assert mask.mode == "P" and mask.size == (3 * SIDE, 2 * SIDE)
        assert mask.getpalette()[:9] == palette()[:3].ravel().tolist()
        classes = np.asarray(mask)
    _, masks = scenes(12, 12)
    truth = masks[3].repeat(2, 0).repeat(3, 1)
    assert (classes == truth)[truth != 255].mean() > 0.8

    same = [str(root / "test/images/03.png"), str(large), str(tmp_path / "none.png")]
    assert main(["predict", str(summary.run), *same, "--json"]) == 1
    first, second, unread = json.loads(capsys.readouterr().out)
    assert "is no file" in unread["error"]
    assert first["mask"] == str(summary.run / "masks" / "03.png")
    assert second["mask"] == str(summary.run / "masks" / "03-2.png")
    assert main(["predict", str(summary.run), same[0]]) == 0
    assert "-> " in capsys.readouterr().out


def test_the_command_says_what_it_found(trained, capsys):
    _, summary = trained
    assert main(["eval", str(summary.run), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out.splitlines()[-1])["val_iou_per_class"] == summary.val_iou_per_class
    assert "validation mIoU" in told.out + told.err
    assert "IoU of each class of the main head" in told.out + told.err


def test_a_resumed_run_equals_an_uninterrupted_one(root, tmp_path):
    config = config_of(root, tmp_path, gradient_ratio_every=5, eval_every=4)
    whole = train(config)
    part = train(replace(config, max_steps=7))
    resumed = train(config, resume=part.run)
    assert results(resumed.run) == results(whole.run)
    assert resumed.val_iou_per_class == whole.val_iou_per_class


@pytest.mark.slow
def test_a_compiled_step_learns_the_same(root, tmp_path):
    eager, compiled = (
        train(
            config_of(root, tmp_path, engine=engine, max_steps=3, lr=1e-3, dice=1.0),
            model=lambda num_classes, size: unet_ds(num_classes, width=2, stages=2),
        )
        for engine in ("eager", "compile")
    )
    losses = [[float(row["loss"]) for row in table(each.run)] for each in (eager, compiled)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_network_of_ones_own_may_give_a_class_to_every_pixel(root, tmp_path):
    images = load_image_set(config_of(root, tmp_path))
    assert isinstance(images, MaskSet)
    summary = train(
        config_of(root, tmp_path, max_steps=3), images=images,
        model=lambda num_classes, size: unet_ds(num_classes, width=2, stages=3),
    )  # fmt: skip
    assert len(summary.val_accuracy_per_head) == 2


def test_hits_are_parts_in_a_million_of_the_pixels_that_count():
    losses = DenseLosses(
        torch.tensor(2.5), torch.tensor([1.0, 2.0]), torch.tensor([1, 3]), torch.tensor([3, 0]),
        torch.zeros(2, 4),
    )  # fmt: skip
    row = torch.empty(row_width(2))
    write_row(row, losses)
    assert row.tolist() == [2.5, 1.0, 2.0, PIXEL_HITS // 3, 3 * PIXEL_HITS]


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (torch.zeros(3, 4), 0),
        (torch.outer(torch.arange(1.0, 4), torch.arange(1.0, 5)), 1),
        (torch.eye(4)[:, :, None, None], 4),
    ],
)
def test_the_effective_rank_of_simple_weights_is_their_rank(matrix, rank):
    assert effective_rank(matrix) == pytest.approx(rank, abs=1e-6)


def test_a_label_for_pixels_and_one_for_images_are_told_apart(root, tmp_path, stripes):
    with pytest.raises(UserError, match="blocks has masks, and DenseNetDS gives a class to an"):
        train(config_of(root, tmp_path, arch="densenet_ds"))
    with pytest.raises(UserError, match="stripes has a label an image, and UNetDS gives a class"):
        train(config_of(stripes, tmp_path))
    with pytest.raises(UserError, match="trains on whole batches, not on 4 parts"):
        train(config_of(root, tmp_path, virtual_shards=4))
    with pytest.raises(UserError, match="resolutions has 8:2, .*: masks are not reduced"):
        train(config_of(root, tmp_path, resolutions="8:2"))
    with pytest.raises(UserError, match="loader workers delivers a label an image"):
        train(config_of(root, tmp_path, loader="workers"))


def test_a_label_beyond_the_classes_ends_a_run_with_one_line(root, tmp_path):
    images = load_image_set(config_of(root, tmp_path))
    images.train_labels[:, 3, 3] = 77
    with pytest.raises(UserError, match="loss is nan at step 1: start anew"):
        train(config_of(root, tmp_path), images=images)


@pytest.mark.slow
@needs_stand_in
@pytest.mark.parametrize("engine", ["graph/bf16", "graph-eager/fp16", "compile/bf16"])
def test_a_gpus_engines_train_on_masks(engine, tmp_path, kernel_cache):
    run = f'{engine}/unet_ds/resident/dataset="scenes"/train_fraction=0.05/unet_width=4/dice=1.0'
    found = outcomes("stand_in_runs.py", "H100", tmp_path, run, cache=kernel_cache)
    assert "result" in found[run], found[run]
    result = found[run]["result"]
    assert result["summary"] == 51 and not result["waits"]
    assert {"masks.png", "probes.csv", "checkpoint.pt"} <= set(result["files"])
