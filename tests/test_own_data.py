"""ImageSet.from_tensors and from_datasets: the caller's own data."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

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


CLASSES = ("cat", "dog", "emu")


def named(images, labels, classes):
    data = Listed(images, labels)
    data.classes = list(classes)
    return data


class Features(list):
    """Items with the schema that Hugging Face's sets have."""

    def __init__(self, items, names):
        super().__init__(items)
        self.features = {"image": None, "label": SimpleNamespace(names=list(names))}


def features(images, labels, classes):
    items = zip(images, labels, strict=True)
    rows = [{"image": image.numpy(), "label": int(label)} for image, label in items]
    return Features(rows, classes)


@pytest.mark.parametrize("make", [named, features])
@pytest.mark.parametrize("held", [CLASSES, CLASSES[1:], ("emu", "cat")])
def test_test_images_belong_to_the_class_of_their_name(make, held):
    kept = [row for row in range(6) if CLASSES[TEST_LABELS[row]] in held]
    labels = [held.index(CLASSES[TEST_LABELS[row]]) for row in kept]
    images = ImageSet.from_datasets(
        make(TRAIN, TRAIN_LABELS, CLASSES), make(TEST[kept], labels, held)
    )
    assert images.class_names == CLASSES
    assert torch.equal(images.test_labels, TEST_LABELS[kept])


def test_classes_in_two_unicode_spellings_are_one():
    composed, taken_apart = ("caf\u00e9", "dog", "emu"), ("emu", "cafe\u0301", "dog")
    images = ImageSet.from_datasets(
        named(TRAIN, TRAIN_LABELS, composed), named(TEST, (TEST_LABELS + 1) % 3, taken_apart)
    )
    assert torch.equal(images.test_labels, TEST_LABELS)


def test_a_part_of_a_set_keeps_its_classes():
    whole = named(TRAIN, TRAIN_LABELS, CLASSES)
    of_test = named(TEST, (TEST_LABELS + 2) % 3, ("dog", "emu", "cat"))
    train = Subset(ConcatDataset([Subset(whole, range(6)), Subset(whole, range(6, 12))]), range(12))
    images = ImageSet.from_datasets(train, Subset(of_test, range(6)))
    assert images.class_names == CLASSES
    assert torch.equal(images.test_labels, TEST_LABELS)


def test_given_names_rename_the_classes_of_train_and_test_alike():
    train = named(TRAIN, TRAIN_LABELS, CLASSES)
    test = named(TEST, (TEST_LABELS + 2) % 3, ("dog", "emu", "cat"))
    images = ImageSet.from_datasets(train, test, class_names=["x", "y", "z"])
    assert images.class_names == ("x", "y", "z")
    assert torch.equal(images.test_labels, TEST_LABELS)
    bare = Listed(TRAIN)
    assert torch.equal(
        ImageSet.from_datasets(bare, test, class_names=CLASSES).test_labels, TEST_LABELS
    )


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (CLASSES, ("cat", "eel", "fox"), "classes that train lacks: eel, fox; train has cat, dog"),
        (CLASSES, ("dog", "emu"), r"test\[2\] has the label 2, and test.classes names 2 classes"),
        (("cat", "cat", "emu"), CLASSES, "train.classes holds 'cat' twice"),
        (("caf\u00e9", "cafe\u0301", "emu"), CLASSES, "train.classes holds .* twice"),
    ],
)
def test_classes_that_do_not_belong_together_are_refused_by_name(train, test, words):
    with pytest.raises(UserError, match=words):
        ImageSet.from_datasets(named(TRAIN, TRAIN_LABELS, train), named(TEST, TEST_LABELS, test))


def test_joined_sets_of_other_classes_are_refused():
    parts = [named(TRAIN, TRAIN_LABELS, names) for names in (CLASSES, ("dog", "emu", "fox"))]
    with pytest.raises(UserError, match="train joins sets that number different classes"):
        ImageSet.from_datasets(ConcatDataset(parts), Listed(TEST))


def test_synonyms_and_numbers_name_classes_as_words():
    synonyms = named(TRAIN, TRAIN_LABELS, [("tench", "Tinca tinca"), 7, np.str_("emu")])
    assert ImageSet.from_datasets(synonyms, Listed(TEST)).class_names == (
        "tench, Tinca tinca", "7", "emu",
    )  # fmt: skip
    array = Listed(TRAIN)
    array.classes = np.array(CLASSES)
    assert ImageSet.from_datasets(array, Listed(TEST)).class_names == CLASSES


ITEMS = {
    "triple": lambda image, label: (image, label, "more"),
    "list": lambda image, label: [image, label],
    "dictionary": lambda image, label: {"image": image, "label": label},
    "of Hugging Face's CIFAR": lambda image, label: {"img": image, "fine_label": label, "id": 1},
    "with an absent value": lambda image, label: {"image": image, "labels": label, "label": None},
    "float": lambda image, label: (image, float(label)),
    "0-d array": lambda image, label: (image, np.int16(label)),
    "0-d tensor": lambda image, label: (image, torch.tensor(label, dtype=torch.bfloat16)),
    "array of one": lambda image, label: (image, np.array([label])),
    "fraction": lambda image, label: (image, Fraction(2 * label, 2)),
}


@pytest.mark.parametrize("form", ITEMS)
def test_items_of_every_sensible_form_are_the_same_set(form):
    item = ITEMS[form]
    train, test = (
        [item(image, int(label)) for image, label in zip(images, labels, strict=True)]
        for images, labels in ((TRAIN, TRAIN_LABELS), (TEST, TEST_LABELS))
    )
    assert_is_the_set(ImageSet.from_datasets(train, test))


BAD_ITEMS = {
    "half": ((TRAIN[0], 0.5), r"train\[1\] has the label 0.5: a label is the number"),
    "string": ((TRAIN[0], "cat"), "has the label 'cat': .*names: their position"),
    "digit": ((TRAIN[0], "1"), "has the label '1'"),
    "NaN": ((TRAIN[0], float("nan")), "has the label nan"),
    "infinite": ((TRAIN[0], float("inf")), "has the label inf"),
    "None": ((TRAIN[0], None), "has the label None"),
    "negative": ((TRAIN[0], -1), "has the label -1"),
    "huge": ((TRAIN[0], 10**30), "has the label 10000"),
    "complex": ((TRAIN[0], 1j), "has the label 1j"),
    "one-hot": ((TRAIN[0], torch.eye(3)[1]), "one-hot labels: label.argmax"),
    "one-hot list": ((TRAIN[0], [0, 1, 0]), "one-hot labels"),
    "dict without a label": ({"image": TRAIN[0], "id": 3}, "has the keys image, id: give"),
    "dict of two images": ({"image": 1, "img": 2, "label": 0}, "has the keys image, img, label"),
    "one part": ((TRAIN[0],), "has 1 parts: give an image and its label"),
    "no pair": (TRAIN[0], r"train\[1\] is a Tensor: give an image and its label"),
    "None at all": (None, "is a NoneType"),
    "bf16": ((TRAIN[0].bfloat16(), 0), "is bfloat16: give PIL or uint8 images"),
    "a number": ((3, 0), "is int: give PIL"),
    "nowhere": (("nowhere.png", 0), "nowhere.png cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_items_that_cannot_be_meant_are_refused_with_their_index(name):
    item, words = BAD_ITEMS[name]
    train = [(TRAIN[0], 0), item, (TRAIN[1], 1)]
    with pytest.raises(UserError, match=words) as caught:
        ImageSet.from_datasets(train, Listed(TEST))
    assert len(str(caught.value).splitlines()) == 1


def test_what_has_no_length_is_refused():
    with pytest.raises(UserError, match="train is a generator: it must be map-style"):
        ImageSet.from_datasets((item for item in ()), Listed(TEST))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"labels": ["cat"] * 12}, "train_labels is list, no array of numbers"),
        ({"labels": None}, "train_labels is NoneType, no array of numbers"),
        ({"train": TRAIN.bfloat16()}, "train_images is bfloat16, no array of numbers"),
        ({"train": "photos/"}, "train_images is str, no array of numbers"),
        ({"class_names": ["cat", "cat", "emu"]}, "class_names holds 'cat' twice"),
    ],
)
def test_tensors_of_what_are_no_numbers_are_refused_in_one_line(changed, words):
    with pytest.raises(UserError, match=words) as caught:
        from_tensors(**changed)
    assert len(str(caught.value).splitlines()) == 1
