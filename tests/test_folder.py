"""Folders of encoded images: listing, decoding, resizing, skipping."""

import dataclasses
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_images import NOISE, encoded
from PIL import Image

from lion_fast.config import TrainConfig
from lion_fast.data.decode import decode_image
from lion_fast.data.encoded import open_encoded
from lion_fast.data.folder import list_image_folder, read_image_folder
from lion_fast.data.images import ImageSet
from lion_fast.data.open import load_image_set, open_data, open_test_data
from lion_fast.errors import UserError


def pixels(*place: object, size: tuple[int, int] = (12, 10)) -> np.ndarray:
    """Return an image that belongs to one place of the folder."""
    rng = np.random.default_rng(list("/".join(map(str, place)).encode()))
    return rng.integers(0, 256, (*size, 3), np.uint8)


@pytest.fixture
def root(tmp_path):
    """Return a good folder: three classes, 4 + 2 images each, written in no particular order."""
    folder = tmp_path / "shapes.v2"
    for split, num in (("test", 2), ("train", 4)):
        for name in ("square", "Circle", "dot"):
            (folder / split / name).mkdir(parents=True)
            for index in reversed(range(num)):
                image = Image.fromarray(pixels(split, name, index))
                image.save(folder / split / name / f"{index}.png")
    return folder


def load(root: Path, **fields: object) -> ImageSet:
    return load_image_set(TrainConfig(dataset=str(root), **fields))


def refusal(root: Path, **fields: object) -> str:
    """Return the message with which the folder is refused, which must be one line."""
    with pytest.raises(UserError) as caught:
        load(root, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_listing_is_ordered_by_class_then_file_whatever_the_disk_says(root):
    listing = list_image_folder(root)
    assert listing.class_names == ("Circle", "dot", "square")
    assert [path.relative_to(root).as_posix() for path in listing.test.paths] == [
        "test/Circle/0.png",
        "test/Circle/1.png",
        "test/dot/0.png",
        "test/dot/1.png",
        "test/square/0.png",
        "test/square/1.png",
    ]
    assert listing.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(listing.train.paths) == 12
    assert listing.train.labels.dtype == np.int64


def test_png_round_trip_is_exact(root):
    images = load(root)
    assert images.name == "shapes.v2"
    assert images.image_size == (12, 10) and images.num_skipped == 0
    for split, found in (("train", images.train_images), ("test", images.test_images)):
        names = [name for name in images.class_names for _ in range(len(found) // 3)]
        for index, (name, image) in enumerate(zip(names, found, strict=True)):
            assert np.array_equal(image.numpy(), pixels(split, name, index % (len(found) // 3)))
    assert images.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_hidden_files_other_files_and_case_of_the_suffix_do_not_matter(root):
    (root / "train" / "dot" / "0.png").rename(root / "train" / "dot" / "0.PNG")
    for other in (".DS_Store", "._0.png", "notes.txt", "0.webp"):
        (root / "train" / "dot" / other).write_text("not an image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "dot" / "folder.png").mkdir()
    (root / "train" / "list.txt").write_text("not a class")
    images = load(root)
    assert images.num_classes == 3 and len(images.train_images) == 12


def test_what_is_left_out_is_counted_and_said(root):
    dot = root / "train" / "dot"
    (dot / "more" / "deep").mkdir(parents=True)
    for path in (dot / "more" / "a.png", dot / "more" / "deep" / "b.JPG", root / "test" / "c.png"):
        path.write_bytes(b"")
    (dot / "more" / "notes.txt").write_text("no image, so nothing is lost")
    for name in ("0.webp", "1.webp", "list.txt"):
        (dot / name).write_bytes(b"")
    (dot / "gone.png").symlink_to(root / "nowhere.png")
    (root / "test" / "dot" / "1.png").write_bytes(b"")
    images = load(root, skip_corrupt=True)
    assert images.num_skipped == 1
    assert images.describe() == (
        "12 training images, 5 test images, 3 classes, 12x10, 8 skipped"
        " (1 beside the class folders, 3 not .jpg .jpeg .png, 1 behind a broken link,"
        " 2 in folders within a class, 1 unreadable)"
    )
    on_disk = open_data(TrainConfig(dataset=str(root), skip_corrupt=True), "dali")
    assert on_disk.describe() == images.describe()


def test_nothing_left_out_is_not_mentioned(root):
    expected = "12 training images, 6 test images, 3 classes, 12x10"
    assert load(root).describe() == expected
    assert load_image_set(TrainConfig()).describe() == (
        "1,437 training images, 360 test images, 10 classes, 16x16"
    )


def test_a_class_of_nested_images_says_where_they_are(root):
    dot = root / "train" / "dot"
    (dot / "more").mkdir()
    for path in list(dot.glob("*.png")):
        path.rename(dot / "more" / path.name)
    message = refusal(root)
    assert f"{dot} holds no .jpg, .jpeg, .png file (found: 4 in folders within a class)" in message


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_split_serves_where_there_is_no_test_split(root, name):
    expected = load(root)
    (root / "test").rename(root / name)
    assert torch.equal(load(root).test_images, expected.test_images)
    assert len(open_data(TrainConfig(dataset=str(root)), "dali").listing.test.paths) == 6
    (root / "test").mkdir()
    assert f"{root / 'test'} holds no folders" in refusal(root)


def test_two_validation_splits_are_ambiguous(root):
    (root / "test").rename(root / "val")
    (root / "valid").mkdir()
    assert "holds val/ and valid/ but no test/: rename the one to test on" in refusal(root)


@pytest.mark.parametrize("loader", ["resident", "dali"])
def test_a_first_image_far_larger_than_the_rest_is_refused_before_any_is_loaded(
    root, loader, monkeypatch
):
    Image.fromarray(pixels(size=(600, 400))).save(root / "train" / "Circle" / "0.png")
    monkeypatch.setattr("lion_fast.data.folder.decode_files", None)
    monkeypatch.setattr("lion_fast.data.encoded.decode_files", None)
    with pytest.raises(UserError) as caught:
        open_data(TrainConfig(dataset=str(root)), loader)
    message = str(caught.value)
    assert f"{root / 'train' / 'Circle' / '0.png'} is 600x400 pixels" in message
    assert "most other images about 12x10" in message and "--image-size 12" in message
    monkeypatch.undo()
    images = open_data(TrainConfig(dataset=str(root), image_size=12), loader)
    assert images.image_size == (12, 12)


@pytest.mark.parametrize("read", [read_image_folder, open_encoded])
def test_images_beyond_the_memory_are_refused_in_one_line(root, read):
    with pytest.raises(UserError) as caught:
        read(root, image_size=1_000_000)
    message = str(caught.value)
    assert "images of 1000000x1000000 pixels take" in message and "\n" not in message
    assert "take a smaller --image-size" in message
    assert ("--loader dali" in message) == (read is read_image_folder)


def test_test_split_may_lack_a_class(root):
    for path in (root / "test" / "Circle").iterdir():
        path.unlink()
    (root / "test" / "Circle").rmdir()
    assert load(root).test_labels.tolist() == [1, 1, 2, 2]


def test_images_of_other_sizes_are_resized_to_the_first_training_image(root):
    first, last = root / "train" / "Circle" / "0.png", root / "test" / "square" / "1.png"
    flat = np.full((30, 24, 3), (10, 100, 200), np.uint8)
    Image.fromarray(flat).save(last)
    images = load(root)
    assert images.image_size == (12, 10)
    assert np.array_equal(images.test_images[-1].numpy(), flat[:12, :10])
    assert np.array_equal(images.train_images[0].numpy(), decode_image(first))
    first.write_bytes(last.read_bytes())
    assert load(root).image_size == (30, 24)


def test_image_size_stretches_every_image_to_a_square(root):
    images = load(root, image_size=16)
    assert images.image_size == (16, 16)
    assert images.train_images.shape == (12, 16, 16, 3)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "flipped", "jpeg"])
def test_corrupt_image_is_named_and_can_be_skipped(root, split, damage):
    path = root / split / "dot" / "1.png"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[60] ^= 255
    jpeg = encoded(Image.fromarray(NOISE), "JPEG")
    path.write_bytes(
        {
            "empty": b"",
            "text": b"no image at all",
            "truncated": whole[: len(whole) // 2],
            "flipped": bytes(flipped),
            "jpeg": jpeg[: len(jpeg) - 60],
        }[damage]
    )
    message = refusal(root)
    assert f"{path} cannot be decoded" in message and "--skip-corrupt" in message
    images = load(root, skip_corrupt=True)
    assert images.num_skipped == 1
    assert len(images.train_images) + len(images.test_images) == 17
    kept, labels, next_index = {
        "train": (images.train_images, images.train_labels, 2),
        "test": (images.test_images, images.test_labels, 0),
    }[split]
    shifted = kept[labels == 1][1 if split == "train" else 0]
    assert np.array_equal(shifted.numpy(), pixels(split, "dot", next_index))


def test_skipping_goes_on_to_the_first_readable_image_for_the_size(root):
    (root / "train" / "Circle" / "0.png").write_bytes(b"")
    Image.fromarray(pixels("other", size=(20, 18))).save(root / "train" / "Circle" / "1.png")
    images = load(root, skip_corrupt=True)
    assert images.image_size == (20, 18) and images.num_skipped == 1


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("train/*/*.png", "train holds no readable image: replace"),
        ("test/*/*.png", "test holds no readable image: replace"),
        ("train/dot/*.png", "class 1 (dot) has no training image: add some"),
    ],
)
def test_skipping_everything_is_refused(root, pattern, expected):
    for path in root.glob(pattern):
        path.write_bytes(b"")
    assert expected in refusal(root, skip_corrupt=True)


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_split_is_named(root, split):
    (root / split).rename(root / "other")
    message = refusal(root)
    assert f"{root / split} is missing" in message
    assert "needs train/ and test/ with one folder per class" in message


def test_empty_folder_is_refused(tmp_path):
    assert "needs train/ and test/" in refusal(tmp_path)
    (tmp_path / "train").mkdir()
    message = refusal(tmp_path)
    assert f"{tmp_path / 'train'} holds no folders: put the images of each class" in message


@pytest.mark.parametrize("split", ["train", "test"])
def test_empty_class_is_named(root, split):
    (root / "train" / "star").mkdir()
    Image.fromarray(NOISE).save(root / "train" / "star" / "0.png")
    (root / "test" / "star").mkdir()
    Image.fromarray(NOISE).save(root / "test" / "star" / "0.png")
    (root / split / "star" / "0.png").rename(root / split / "star" / "0.gif")
    message = refusal(root)
    assert f"{root / split / 'star'} holds no .jpg, .jpeg, .png file" in message
    assert "add images of this class or remove its folder" in message


def test_class_of_test_that_train_lacks_is_named(root):
    (root / "test" / "star").mkdir()
    message = refusal(root)
    assert f"{root / 'test' / 'star'} is a class without training images" in message
    assert f"add {root / 'train' / 'star'} or remove" in message


def test_single_class_and_tiny_images_are_refused(root, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "one" / split).mkdir(parents=True)
        (root / split / "dot").rename(tmp_path / "one" / split / "dot")
    assert "the only class is 'dot': a classifier needs two" in refusal(tmp_path / "one")
    Image.fromarray(NOISE[:7]).save(root / "train" / "Circle" / "0.png")
    assert "images are 7x10 pixels, but the networks need 8x8" in refusal(root)


@pytest.mark.parametrize("loader", ["resident", "dali"])
def test_a_first_image_far_smaller_than_the_rest_is_refused_before_any_is_loaded(root, loader):
    for path in root.rglob("*.png"):
        if path != root / "train" / "Circle" / "0.png":
            Image.fromarray(pixels(size=(120, 100))).save(path)
    with pytest.raises(UserError) as caught:
        open_data(TrainConfig(dataset=str(root)), loader)
    message = str(caught.value)
    assert f"{root / 'train' / 'Circle' / '0.png'} is 12x10 pixels" in message
    assert "most other images about 120x100" in message and "--image-size 120" in message
    images = open_data(TrainConfig(dataset=str(root), image_size=100), loader)
    assert images.image_size == (100, 100)


@pytest.mark.parametrize("loader", ["resident", "dali"])
def test_unlabelled_test_images_give_way_to_a_validation_split_and_are_counted(root, loader):
    (root / "test").rename(root / "val")
    (root / "test").mkdir()
    for index in range(5):
        Image.fromarray(pixels(index)).save(root / "test" / f"{index}.png")
    images = open_data(TrainConfig(dataset=str(root)), loader)
    assert images.num_test == 6
    assert "5 skipped (5 in a test/ without class folders)" in images.describe()
    again = open_test_data(TrainConfig(dataset=str(root)), images.facts())
    assert again.num_test == 6


def respell(root, split, form):
    """The class folder dot of a split, called caf(e acute) in one Unicode spelling."""
    (root / split / "dot").rename(root / split / unicodedata.normalize(form, "caf\u00e9"))


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_class_is_one_in_either_unicode_spelling(root, forms):
    respell(root, "train", forms[0])
    respell(root, "test", forms[1])
    images = load(root)
    assert images.class_names == ("Circle", "caf\u00e9", "square")
    assert images.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    told = dataclasses.replace(
        images.facts(), class_names=("Circle", "cafe\u0301", "square"), train_fingerprint="0" * 40
    )
    assert open_test_data(TrainConfig(dataset=str(root)), told).num_test == 6


def test_two_spellings_of_one_class_in_a_split_are_refused(root):
    respell(root, "train", "NFC")
    (root / "train" / "square").rename(root / "train" / "cafe\u0301")
    assert "holds two folders called 'caf\u00e9', in two Unicode spellings" in refusal(root)


@pytest.mark.parametrize("loader", ["resident", "dali"])
def test_classes_kept_without_a_test_image_are_refused_before_anything_is_read(root, loader):
    for name in ("Circle", "dot"):
        shutil.rmtree(root / "test" / name)
    words = "num_classes is 2, and .* has no test image of the first 2 classes .Circle, dot.: raise"
    with pytest.raises(UserError, match=words):
        load(root, num_classes=2)
    facts = dataclasses.replace(load(root).facts(), class_names=("Circle", "dot"))
    with pytest.raises(UserError, match="no test image of the run's 2 classes"):
        open_test_data(TrainConfig(dataset=str(root), num_classes=2), facts)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_called_like_a_built_in_set_is_not_passed_over_without_a_word(
    root, monkeypatch, kind
):
    monkeypatch.chdir(root.parent)
    if kind == "folder":
        root.rename(root.with_name("digits"))
    else:
        root.with_name("digits").write_text("")
    images = load_image_set(TrainConfig(dataset="digits"))
    assert images.num_classes == 10
    said = f"; the built-in set, not the {kind} of that name here: --dataset ./digits means that"
    assert images.describe().endswith(said)
    if kind == "folder":
        assert load_image_set(TrainConfig(dataset="./digits")).class_names[0] == "Circle"
