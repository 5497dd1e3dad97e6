"""Digits on a canvas: what the set is, and that it is the same everywhere and for every count."""

import numpy as np
import pytest
import torch

from lion_fast.config import TrainConfig
from lion_fast.data.arrays import IGNORED
from lion_fast.data.digits import read_levels
from lion_fast.data.masks import MaskSet
from lion_fast.data.open import load_image_set, open_data
from lion_fast.data.scenes import CLASS_NAMES, NUM_TEST, NUM_TRAIN, SIDE, make_scenes, read_scenes
from lion_fast.data.sources import data_fingerprint
from lion_fast.errors import UserError

CONFIG = TrainConfig(dataset="scenes")


@pytest.fixture(scope="module")
def scenes():
    return load_image_set(CONFIG)


def test_scenes_are_grey_canvases_with_a_mask_each(scenes):
    assert isinstance(scenes, MaskSet) and scenes.has_masks
    assert (scenes.num_train, scenes.num_test) == (NUM_TRAIN, NUM_TEST) == (4000, 400)
    assert scenes.image_size == (SIDE, SIDE) and scenes.class_names == CLASS_NAMES
    assert scenes.train_images.dtype == scenes.train_labels.dtype == torch.uint8
    assert scenes.train_labels.shape == scenes.train_images.shape[:3]
    assert (scenes.train_images[..., 0] == scenes.train_images[..., 2]).all()
    assert set(scenes.test_labels.unique().tolist()) == {*range(11), IGNORED}
    assert scenes.describe() == (
        "4,000 training images, 400 test images, 11 classes of pixels, 32x32"
    )


def test_the_pixels_and_masks_are_the_same_on_every_machine(scenes):
    """Their digests; another value here means that older results are of another set."""
    facts = scenes.facts()
    assert facts.train_fingerprint == "8b409b213be7827b4770e0ce37b20e1f8c59471b"
    assert facts.test_fingerprint == "cee1a3a7d1e0af8057fce1bc3576f0854d70705c"
    assert data_fingerprint(CONFIG) == facts.fingerprint


def test_four_of_five_labelled_pixels_are_background_and_no_digit_is_rare(scenes):
    share = scenes.class_counts() / scenes.class_counts().sum()
    assert 0.79 < share[0] < 0.83
    assert share[1:].min() > 0.016 and share[1:].max() < 0.021


def test_a_digit_stands_where_its_mask_says(scenes):
    images, masks = scenes.train_images[..., 0].float(), scenes.train_labels
    ink, ground = images[(masks > 0) & (masks != IGNORED)], images[masks == 0]
    assert ink.mean() > ground.mean() + 2 * ground.std()


def test_the_first_scenes_do_not_depend_on_how_many_are_made():
    (levels, digits), _ = read_levels()
    some, more = (make_scenes(levels, digits, count, seed=5) for count in (3, 8))
    assert np.array_equal(some.masks, more.masks[:3])
    assert np.array_equal(some.images, more.images[:3])
    assert not np.array_equal(some.masks, make_scenes(levels, digits, 3, seed=6).masks)


def test_foreground_alone_ignores_the_background_and_keeps_the_images(scenes):
    arrays = read_scenes(foreground_only=True)
    masks = scenes.train_labels.numpy()
    assert np.array_equal(arrays.train_images, scenes.train_images.numpy())
    assert np.array_equal(arrays.train_labels, np.where(masks == 0, IGNORED, masks))
    images = MaskSet.from_arrays("scenes_foreground", arrays, "scenes_foreground")
    assert torch.equal(images.class_counts()[1:], scenes.class_counts()[1:])
    assert images.class_counts()[0] == 0


def test_a_share_of_the_scenes_is_the_first_ones():
    images = load_image_set(TrainConfig(dataset="scenes", train_fraction=0.01))
    assert images.num_train == 40 and images.num_test == NUM_TEST


def test_scenes_have_no_first_classes_to_keep():
    with pytest.raises(UserError, match="num_classes is 3, and each image of scenes"):
        open_data(TrainConfig(dataset="scenes", num_classes=3), "resident")
