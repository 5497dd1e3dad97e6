"""DataFacts: what a run remembers of its data, and evaluation from that alone."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lion_fast.config import TrainConfig
from lion_fast.data.facts import DataFacts
from lion_fast.data.images import ImageSet
from lion_fast.data.open import load_image_set, open_data, open_test_data
from lion_fast.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    """Three classes of 4 training and 2 test images."""
    for split, num in (("train", 4), ("test", 2)):
        for name in ("cat", "dog", "emu"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for index in range(num):
                image = Image.fromarray(RNG.integers(0, 256, (12, 10, 3), np.uint8))
                image.save(tmp_path / "set" / split / name / f"{index}.png")
    return tmp_path / "set"


@pytest.fixture
def npz(tmp_path):
    """The path of a set whose images and labels are easily changed."""
    path = tmp_path / "set.npz"
    np.savez(path, **arrays())
    return path


def arrays():
    rng = np.random.default_rng(1)
    return {
        "x_train": rng.integers(0, 256, (30, 9, 11, 3), np.uint8),
        "y_train": np.arange(30) % 3,
        "x_test": rng.integers(0, 256, (12, 9, 11, 3), np.uint8),
        "y_test": np.arange(12) % 3,
    }


def config(path, **fields):
    return TrainConfig(dataset=str(path), **fields)


def facts_of(path, loader="resident", **fields):
    return open_data(config(path, **fields), loader).facts()


def test_facts_survive_json_unchanged(npz):
    facts = facts_of(npz)
    assert DataFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts
    assert (facts.num_train, facts.num_test, facts.image_size) == (30, 12, (9, 11))


def test_the_same_data_have_no_differences_however_they_are_read(folder, tmp_path):
    facts = facts_of(folder)
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    for loader in ("resident", "dali"):
        assert facts.differences(facts_of(copy, loader)) == []
        assert facts_of(copy, loader).fingerprint == facts.fingerprint


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_one_changed_value_is_noticed(npz, key):
    before = facts_of(npz)
    content = arrays()
    content[key].flat[5] = (content[key].flat[5] + 1) % 3
    np.savez(npz, **content)
    split = "training" if "train" in key else "test"
    assert before.differences(facts_of(npz)) == [
        f"other {split} images or labels, as many as before"
    ]


def test_counts_classes_and_sizes_that_differ_are_said(npz):
    before = facts_of(npz)
    content = arrays()
    np.savez(npz, **content | {"x_test": content["x_test"][:11], "y_test": content["y_test"][:11]})
    assert before.differences(facts_of(npz)) == ["11 test images, and there were 12"]
    smaller = {key: content[key][:, :, :9] for key in ("x_train", "x_test")}
    np.savez(npz, **content | smaller)
    assert before.differences(facts_of(npz)) == ["images are 9x9 and were 9x11"]
    named = dataclasses.replace(before, class_names=("0", "1", "2", "3"))
    assert before.differences(named) == ["classes that are new: 3"]
    assert named.differences(before) == ["classes that are gone: 3"]
    turned = dataclasses.replace(before, class_names=("1", "0", "2"))
    assert before.differences(turned) == ["the classes stand in another order"]


@pytest.mark.parametrize("loader", ["resident", "dali"])
def test_a_renamed_class_folder_is_called_that(folder, loader):
    before = facts_of(folder, loader)
    for split in ("train", "test"):
        (folder / split / "dog").rename(folder / split / "zebra")
    assert before.differences(facts_of(folder, loader)) == ["class 'dog' is now 'zebra'"]


def test_a_large_set_is_sampled_evenly_to_the_last_image():
    images = torch.zeros(3000, 96, 96, 3, dtype=torch.uint8)
    images[::2] = 255
    labels = torch.arange(3000) % 2
    large = ImageSet.from_tensors(images, labels, images[:2], labels[:2])
    before = large.facts()
    images[-1, 0, 0, 0] = 7
    assert before.differences(large.facts()) != []


@pytest.mark.parametrize("loader", ["resident", "dali"])
@pytest.mark.parametrize("fields", [{}, {"num_classes": 2}])
def test_a_folder_is_tested_on_without_its_training_images(folder, loader, fields):
    loader = "resident" if fields else loader
    whole = open_data(config(folder, **fields), loader)
    shutil.rmtree(folder / "train")
    images = open_test_data(config(folder, **fields), whole.facts())
    assert (images.mean, images.std) == (whole.mean, whole.std)
    assert images.class_names == whole.class_names and images.num_train == 0
    for ours, theirs in zip(images.test_chunks(4), whole.test_chunks(4), strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("fields", [{}, {"num_classes": 2}])
def test_an_npz_is_tested_on_without_its_training_images(npz, fields):
    whole = load_image_set(config(npz, **fields))
    content = arrays()
    np.savez(npz, x_test=content["x_test"], y_test=content["y_test"])
    images = open_test_data(config(npz, **fields), whole.facts())
    assert (images.mean, images.std) == (whole.mean, whole.std)
    assert torch.equal(images.test_images, whole.test_images)
    assert torch.equal(images.test_labels, whole.test_labels)


def test_the_built_in_digits_are_tested_on():
    whole = load_image_set(TrainConfig())
    images = open_test_data(TrainConfig(), whole.facts())
    assert torch.equal(images.test_images, whole.test_images)


def test_a_test_class_that_the_run_does_not_know_is_refused(folder):
    facts = facts_of(folder)
    (folder / "test" / "dog").rename(folder / "test" / "hound")
    with pytest.raises(UserError, match="hound is a class that the run does not know: rename it"):
        open_test_data(config(folder), facts)


def test_other_test_images_are_refused_with_what_differs(folder, npz):
    facts = facts_of(folder)
    (folder / "test" / "dog" / "1.png").unlink()
    with pytest.raises(UserError, match="not what the run was trained on: 5 test images"):
        open_test_data(config(folder), facts)
    facts = facts_of(npz)
    content = arrays()
    content["x_test"][3] ^= 1
    np.savez(npz, **content)
    with pytest.raises(UserError, match="other test images or labels, as many as before: put"):
        open_test_data(config(npz), facts)


def test_broken_test_images_are_named_or_skipped_in_an_evaluation_too(folder):
    facts = facts_of(folder)
    broken = folder / "test" / "cat" / "0.png"
    broken.write_bytes(broken.read_bytes()[:150])
    with pytest.raises(UserError, match="0.png cannot be decoded"):
        open_test_data(config(folder), facts)
    with pytest.raises(UserError, match="5 test images, and there were 6"):
        open_test_data(config(folder, skip_corrupt=True), facts)
