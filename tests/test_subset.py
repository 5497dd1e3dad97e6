"""take_subset: fewer classes, fewer training images."""

import dataclasses

import numpy as np
import pytest

from lion_fast.config import TrainConfig
from lion_fast.data.open import load_image_set, open_data, open_test_data
from lion_fast.errors import UserError


@pytest.fixture
def path(tmp_path):
    """Three classes of 30, 20 and 10 training images; an image's value is its row."""
    y_train = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [30, 20, 10]))
    rows = np.arange(60, dtype=np.uint8).reshape(-1, 1, 1, 1)
    path = tmp_path / "rows.npz"
    np.savez(
        path,
        x_train=np.broadcast_to(rows, (60, 8, 8, 3)),
        y_train=y_train,
        x_test=np.broadcast_to(rows[:9], (9, 8, 8, 3)),
        y_test=np.arange(9) % 3,
    )
    return path


def load(path, **fields):
    images = load_image_set(TrainConfig(dataset=str(path), **fields))
    return images, images.train_images[:, 0, 0, 0].tolist()


def test_the_first_classes_are_kept_in_both_splits(path):
    everything, rows = load(path)
    images, kept = load(path, num_classes=2)
    assert (images.num_classes, len(images.test_labels)) == (2, 6)
    assert kept == [row for row in rows if everything.train_labels[row] < 2]
    assert images.train_labels.tolist() == everything.train_labels[kept].tolist()


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 1.0])
def test_a_fraction_keeps_the_first_images_of_each_class(path, fraction):
    everything, rows = load(path)
    images, kept = load(path, train_fraction=fraction)
    for label, count in enumerate((30, 20, 10)):
        of_class = [row for row in rows if everything.train_labels[row] == label]
        expected = of_class[: round(fraction * count)]
        assert [row for row in kept if everything.train_labels[row] == label] == expected
    assert images.train_labels.tolist() == everything.train_labels[kept].tolist()
    assert len(images.test_labels) == 9


def test_a_class_keeps_at_least_one_image(path):
    images, kept = load(path, train_fraction=0.001)
    assert sorted(images.train_labels.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_classes": 4}, "num_classes is 4, but .* has 3: lower it"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"train_fraction": 0.0}, "train_fraction is 0.0"),
        ({"train_fraction": 1.5}, "train_fraction is 1.5"),
    ],
)
def test_a_subset_that_cannot_be_is_refused(path, fields, words):
    with pytest.raises(UserError, match=words):
        load(path, **fields)


def test_a_folder_that_stays_on_disk_cannot_be_thinned(tmp_path):
    with pytest.raises(UserError, match="take --loader resident"):
        open_data(TrainConfig(dataset=str(tmp_path), train_fraction=0.5), "dali")


def test_classes_kept_without_a_test_image_are_refused(path):
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"y_test": np.full(9, 2)})
    with pytest.raises(UserError, match="num_classes is 2, and .* has no test image of the first"):
        load(path, num_classes=2)
    facts = load(path)[0].facts()
    kept = dataclasses.replace(facts, class_names=facts.class_names[:2])
    with pytest.raises(UserError, match="has no test image of the run's 2 classes: add some"):
        open_test_data(TrainConfig(dataset=str(path), num_classes=2), kept)
