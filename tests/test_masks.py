"""Sets with masks: folders, tensors, and batches whose images and masks move together."""

import numpy as np
import pytest
import torch
from PIL import Image

from lion_fast.config import TrainConfig
from lion_fast.data import make_loader
from lion_fast.data.arrays import IGNORED
from lion_fast.data.batches import BatchSpec, planned_batch
from lion_fast.data.masks import MaskSet
from lion_fast.data.open import load_image_set, open_data, open_test_data
from lion_fast.data.plan import BatchPlan
from lion_fast.data.sources import data_fingerprint
from lion_fast.errors import UserError

CPU = torch.device("cpu")
HEIGHT, WIDTH = 10, 12


def shapes(num, seed):
    """Images whose red channel is 20 times their mask, so that each tells the other."""
    masks = np.random.default_rng(seed).integers(0, 4, (num, HEIGHT, WIDTH)).astype(np.uint8)
    images = np.zeros((num, HEIGHT, WIDTH, 3), np.uint8)
    images[...] = 20 * masks[..., None]
    return images, masks


@pytest.fixture
def root(tmp_path):
    """A good folder: 6 + 3 images; training masks in a palette, test masks in grey."""
    folder = tmp_path / "shapes"
    for split, num, mode in (("train", 6, "P"), ("test", 3, "L")):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        images, masks = shapes(num, num)
        for index in range(num):
            Image.fromarray(images[index]).save(folder / split / "images" / f"{index}.png")
            mask = Image.fromarray(masks[index])
            if mode == "P":
                mask = Image.frombytes("P", mask.size, mask.tobytes())
                mask.putpalette([255, 0, 255, 1, 2, 3, 9, 9, 9, 7, 7, 7])
            mask.save(folder / split / "masks" / f"{index}.png")
    return folder


def load(root, **fields):
    return load_image_set(TrainConfig(dataset=str(root), **fields))


def refusal(root, **fields):
    """Return the message with which the folder is refused, which must be one line."""
    with pytest.raises(UserError) as caught:
        load(root, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save_mask(root, mask, name="train/masks/1.png"):
    Image.fromarray(mask).save(root / name)


def test_a_folder_of_images_and_masks_is_read_by_name(root):
    images = load(root)
    for split, num in (("train", 6), ("test", 3)):
        pixels, masks = shapes(num, num)
        assert np.array_equal(getattr(images, f"{split}_images"), pixels)
        assert np.array_equal(getattr(images, f"{split}_labels"), masks)
    assert isinstance(images, MaskSet) and images.name == "shapes"
    assert images.class_names == ("0", "1", "2", "3")
    assert images.class_counts().tolist() == np.bincount(shapes(6, 6)[1].ravel()).tolist()


def test_a_folder_is_known_again_and_a_changed_mask_is_noticed(root):
    config = TrainConfig(dataset=str(root))
    facts = load(root).facts()
    assert data_fingerprint(config) == facts.fingerprint
    assert np.array_equal(open_test_data(config, facts).test_labels, shapes(3, 3)[1])
    save_mask(root, np.zeros((HEIGHT, WIDTH), np.uint8), "test/masks/0.png")
    assert data_fingerprint(config) != facts.fingerprint
    with pytest.raises(UserError, match="other test images or labels"):
        open_test_data(config, facts)


def test_names_of_classes_are_read_and_may_be_more_than_the_masks_hold(root):
    (root / "classes.txt").write_text("ground\nroad\ncar\ntree\nsky\n", encoding="utf-8")
    assert load(root).class_names == ("ground", "road", "car", "tree", "sky")
    (root / "classes.txt").write_text("ground\nroad\nroad\n", encoding="utf-8")
    assert "names 2 classes in 3 lines" in refusal(root)


@pytest.mark.parametrize("name", ["train/masks/1.png", "test/masks/2.png"])
def test_a_class_beyond_the_classes_is_refused_with_its_file(root, name):
    (root / "classes.txt").write_text("ground\nroad\ncar\ntree\n", encoding="utf-8")
    save_mask(root, np.full((HEIGHT, WIDTH), 9, np.uint8), name)
    assert refusal(root).startswith(f"{root / name} holds the class 9, out of range for 4 classes")


def test_a_pixel_of_no_class_is_ignored(root):
    save_mask(root, np.full((HEIGHT, WIDTH), IGNORED, np.uint8))
    assert (load(root).train_labels[1] == IGNORED).all() and load(root).num_classes == 4


def test_a_mask_of_another_size_or_in_colour_or_broken_is_refused_with_its_file(root):
    path = root / "train/masks/1.png"
    save_mask(root, np.zeros((HEIGHT, WIDTH + 1), np.uint8))
    assert refusal(root).startswith(f"{path} is 10x13 pixels and 1.png 10x12")
    save_mask(root, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert refusal(root).startswith(f"{path} is of mode RGB")
    path.write_bytes(b"no picture")
    assert refusal(root).startswith(f"{path} cannot be decoded")
    assert refusal(root, skip_corrupt=True).startswith("skip_corrupt leaves out images of a class")


def test_images_without_a_mask_are_counted_and_masks_without_an_image_refused(root):
    (root / "train/masks/1.png").unlink()
    assert load(root).left_out == {"without a mask": 1} and load(root).num_train == 5
    (root / "train/images/2.png").unlink()
    assert refusal(root).startswith(f"{root / 'train/masks/2.png'} is a mask without an image")


def test_resizing_keeps_the_classes_of_masks(root):
    images = load(root, image_size=8)
    assert images.train_labels.shape == (6, 8, 8)
    assert set(images.train_labels.unique().tolist()) == {0, 1, 2, 3}


def test_tensors_make_a_set_and_are_checked():
    (train, train_masks), (test, test_masks) = shapes(5, 0), shapes(2, 1)
    parts = [torch.from_numpy(each) for each in (train, train_masks, test, test_masks)]
    images = MaskSet.from_tensors(*parts, name="mine")
    assert images.num_classes == 4 and torch.equal(images.test_labels, parts[3])
    for masks, message in (
        (parts[3].float(), "test_masks is float32"),
        (parts[3][:1], "has shape"),
        (parts[3] + 4, "holds the label 7, out of range for 4 classes"),
        (parts[3].int() + 300, "holds 303"),
    ):
        with pytest.raises(UserError, match=message):
            MaskSet.from_tensors(*parts[:3], masks)
    with pytest.raises(UserError, match="fewer than two classes"):
        nothing = (torch.zeros_like(parts[1]), parts[2], torch.zeros_like(parts[3]))
        MaskSet.from_tensors(parts[0], *nothing)


def loaded_batches(images, **plan):
    spec = BatchSpec.of(images, num_steps=3, device=CPU, dtype=torch.float32)
    loader = make_loader("resident", images, BatchPlan(images.num_train, 4, 0, **plan), spec)
    return [loader.next() for _ in range(3)]


@pytest.mark.parametrize("padding", [0, 2])
def test_a_batch_moves_a_mask_with_its_image(root, padding):
    images = load(root)
    mirrored = 0
    for pixels, masks in loaded_batches(images, crop_padding=padding):
        red = pixels[:, 0] * images.std[0] + images.mean[0]
        told = (red * 255 / 20).round()
        inside = masks != IGNORED
        assert masks.dtype == torch.uint8 and inside.float().mean() > 0.5
        assert torch.equal(told[inside], masks[inside].float())
        assert (told[~inside] == 0).all()  # padding is black, and belongs to no class
        mirrored += sum(
            bool((mask == each.flip(1)).all()) for mask in masks for each in images.train_labels
        )
    assert mirrored > 0 or padding


def test_a_planned_batch_has_the_masks_as_they_are(root):
    images = load(root)
    batch = planned_batch(images, torch.tensor([4, 0]), CPU, torch.float32)
    assert torch.equal(batch.labels, images.train_labels[[4, 0]])


@pytest.mark.parametrize("loader", ["dali", "workers"])
def test_loaders_without_masks_refuse_them(root, loader):
    images = open_data(TrainConfig(dataset=str(root)), loader)
    spec = BatchSpec.of(images, num_steps=3, device=CPU, dtype=torch.float32)
    with pytest.raises(UserError, match=f"loader {loader} delivers a label an image"):
        make_loader(loader, images, BatchPlan(images.num_train, 4, 0), spec)
