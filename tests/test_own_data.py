"""ImageSet.from_tensors and from_datasets: the caller's own data."""

import numpy as np
import pytest
import torch
from PIL import Image

from lion_fast.data.images import ImageSet
from lion_fast.errors import UserError

SHAPE = (12, 9, 11, 3)
TRAIN = torch.randint(256, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TRAIN_LABELS = torch.arange(12) % 3
TEST, TEST_LABELS = TRAIN.flip(0)[:6], TRAIN_LABELS[:6]


def from_tensors(train=TRAIN, labels=TRAIN_LABELS, **options):
    return ImageSet.from_tensors(train, labels, TEST, TEST_LABELS, **options)


def assert_is_the_set(images):
    assert torch.equal(images.train_images, TRAIN) and torch.equal(images.test_images, TEST)
    assert torch.equal(images.train_labels, TRAIN_LABELS)
    assert images.train_images.is_contiguous()
    pixels = TRAIN.double() / 255
    assert images.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist())
    assert images.std == pytest.approx(pixels.std((0, 1, 2), correction=0).tolist())


def test_tensors_of_either_layout_are_the_same_set():
    assert_is_the_set(from_tensors())
    planes = [images.permute(0, 3, 1, 2).contiguous() for images in (TRAIN, TEST)]
    assert_is_the_set(ImageSet.from_tensors(planes[0], TRAIN_LABELS, planes[1], TEST_LABELS))
    assert from_tensors().class_names == ("0", "1", "2")
    assert from_tensors(class_names=["cat", "dog", "emu"]).class_names == ("cat", "dog", "emu")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train": TRAIN / 255}, "train_images is float32: store pixels as uint8"),
        ({"train": TRAIN[:, :8]}, "test_images: images are 9x11 here, but 8x11 for training"),
        ({"labels": TRAIN_LABELS[:-1]}, "train_labels has shape"),
        ({"labels": torch.eye(3)[TRAIN_LABELS]}, "y.argmax"),
        ({"class_names": ["cat", "dog"]}, "the label 2, out of range for 2 classes"),
        ({"class_names": "abcd"}, "class 3 .d. has no training image"),
        ({"labels": torch.zeros(12, dtype=torch.int64)}, "out of range for 1 classes"),
    ],
)
def test_tensors_that_cannot_be_meant_are_refused(changed, words):
    with pytest.raises(UserError, match=words):
        from_tensors(**changed)


class Listed:
    """A map-style data set of a list of (image, label)."""

    def __init__(self, images, labels=TRAIN_LABELS, as_image=lambda image: image):
        self.images, self.labels, self.as_image = images, labels, as_image

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.as_image(self.images[index]), int(self.labels[index])


@pytest.mark.parametrize(
    "as_image",
    [
        lambda image: Image.fromarray(image.numpy()),
        lambda image: image.numpy(),
        lambda image: image.permute(2, 0, 1),
    ],
    ids=["PIL", "HWC", "CHW"],
)
def test_map_style_sets_of_any_image_are_the_same_set(as_image):
    assert_is_the_set(
        ImageSet.from_datasets(Listed(TRAIN, as_image=as_image), Listed(TEST, as_image=as_image))
    )


def test_the_classes_of_a_map_style_set_are_taken_unless_others_are_given():
    train = Listed(TRAIN)
    train.classes = ["cat", "dog", "emu"]
    assert ImageSet.from_datasets(train, Listed(TEST)).class_names == ("cat", "dog", "emu")
    given = ImageSet.from_datasets(train, Listed(TEST), class_names=["x", "y", "z"])
    assert given.class_names == ("x", "y", "z")


def test_grey_images_are_repeated_to_three_channels():
    grey = Listed(TRAIN, as_image=lambda image: image[..., 0])
    images = ImageSet.from_datasets(grey, grey)
    for channel in range(3):
        assert torch.equal(images.train_images[..., channel], TRAIN[..., 0])


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (Listed(TRAIN / 255), r"train\[0\] is float32: give PIL or uint8 images, without ToTensor"),
        (Listed([TRAIN[0], TRAIN[1, 1:]]), r"train\[1\] is 8x11 and train\[0\] 9x11: bring all"),
        (Listed([]), "train is empty"),
        (Listed(TRAIN[..., :2]), r"train\[0\] has shape \(9, 11, 2\)"),
        (Listed(TRAIN[:, :7]), "images of test: images are 9x11 here, but 7x11 for training"),
    ],
)
def test_map_style_sets_that_cannot_be_meant_are_refused(train, words):
    with pytest.raises(UserError, match=words):
        ImageSet.from_datasets(train, Listed(TEST))


def test_tiny_tensors_are_refused_by_name():
    tiny = np.ascontiguousarray(TRAIN[:, :7])
    with pytest.raises(UserError, match="tensors: images are 7x11 pixels"):
        ImageSet.from_tensors(torch.from_numpy(tiny), TRAIN_LABELS, TEST[:, :7], TEST_LABELS)
