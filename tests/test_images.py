"""load_image_set: names, the embedded digits, .npz files, statistics."""

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lion_fast.config import TrainConfig
from lion_fast.data.images import ImageSet, channel_statistics
from lion_fast.data.open import load_image_set
from lion_fast.errors import UserError

NUM_TRAIN, NUM_TEST, NUM_CLASSES = 60, 30, 3


def load(dataset: str | Path, **fields: object) -> ImageSet:
    return load_image_set(TrainConfig(dataset=str(dataset), **fields))


def refusal(dataset: str | Path, **fields: object) -> str:
    """Return the message with which the set is refused, which must be one line."""
    with pytest.raises(UserError) as caught:
        load(dataset, **fields)
    message = str(caught.value)
    assert "\n" not in message
    return message


def arrays(size: tuple[int, ...] = (9, 11, 3)) -> dict[str, np.ndarray]:
    """Return the content of a good .npz: every class in both splits."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (NUM_TRAIN, *size), np.uint8),
        "y_train": np.arange(NUM_TRAIN) % NUM_CLASSES,
        "x_test": rng.integers(0, 256, (NUM_TEST, *size), np.uint8),
        "y_test": np.arange(NUM_TEST) % NUM_CLASSES,
    }


@pytest.fixture
def save(tmp_path):
    """Save good arrays with some of them replaced, and return the path."""

    def save(**replaced: np.ndarray) -> Path:
        path = tmp_path / "shapes.npz"
        np.savez(path, **(arrays() | replaced))
        return path

    return save


def test_digits_are_16x16_rgb_in_a_fixed_split():
    images = load("digits")
    assert images.name == "digits"
    assert images.train_images.shape == (1437, 16, 16, 3)
    assert images.test_images.shape == (360, 16, 16, 3)
    assert images.train_images.dtype == images.test_images.dtype == torch.uint8
    assert images.train_labels.dtype == images.test_labels.dtype == torch.int64
    assert images.class_names == tuple("0123456789")
    assert images.train_labels.bincount().min() > 100 and images.test_labels.bincount().min() > 30


def test_digits_are_those_of_the_repository_to_the_bit():
    """The digest is of scikit-learn's load_digits(): uint8 images, then uint8 labels."""
    images = load("digits")
    pixels = torch.cat([images.train_images, images.test_images])
    assert pixels.max() == 255
    levels = (pixels[:, ::2, ::2, 0].double() * (16 / 255)).round()
    labels = torch.cat([images.train_labels, images.test_labels])
    digest = hashlib.sha256(levels.byte().numpy().tobytes() + labels.byte().numpy().tobytes())
    assert digest.hexdigest() == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    for other in (pixels[:, 1::2, ::2], pixels[:, ::2, 1::2], pixels[:, 1::2, 1::2]):
        assert torch.equal(other, pixels[:, ::2, ::2])


def test_npz_round_trip_is_exact(save):
    images = load(save())
    expected = arrays()
    assert images.name == "shapes"
    assert np.array_equal(images.train_images.numpy(), expected["x_train"])
    assert np.array_equal(images.test_images.numpy(), expected["x_test"])
    assert np.array_equal(images.train_labels.numpy(), expected["y_train"])
    assert np.array_equal(images.test_labels.numpy(), expected["y_test"])
    assert images.class_names == ("0", "1", "2")
    assert images.image_size == (9, 11)
    assert images.num_skipped == 0


@pytest.mark.parametrize("grey_shape", [(9, 11), (9, 11, 1)])
def test_grey_npz_is_repeated_to_three_channels(save, grey_shape):
    grey = arrays(grey_shape)
    images = load(save(x_train=grey["x_train"], x_test=grey["x_test"]))
    expected = grey["x_train"].reshape(NUM_TRAIN, 9, 11)
    assert images.train_images.is_contiguous()
    for channel in range(3):
        assert np.array_equal(images.train_images[..., channel].numpy(), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint64", ">i4"])
def test_labels_of_any_integer_type_and_keras_shape_are_taken(save, dtype):
    labels = arrays()["y_train"]
    images = load(save(y_train=labels.astype(dtype)[:, None]))
    assert images.train_labels.dtype == torch.int64
    assert np.array_equal(images.train_labels.numpy(), labels)


def test_npz_may_name_its_classes(save):
    assert load(save(class_names=np.array(["cat", "dog", "emu"]))).class_names == (
        "cat", "dog", "emu",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (np.array([b"cat", b"dog", b"emu"]), "class_names is |S3 of shape (3,): store one string"),
        (np.array([["cat", "dog", "emu"]]), "of shape (1, 3): store one string a class"),
        (np.array(["cat", "dog", "cat"]), "class_names holds a name twice"),
        (np.array(["cat", "dog"]), "y_train holds the label 2, out of range for 2 classes"),
    ],
)
def test_class_names_that_cannot_be_meant_are_refused(save, names, words):
    assert words in refusal(save(class_names=names))


def test_the_suffix_of_an_npz_may_be_in_capitals(save):
    path = save()
    capitals = path.rename(path.with_suffix(".NPZ"))
    assert load(capitals).name == "shapes" and load(capitals).num_classes == 3


def test_fortran_ordered_and_compressed_npz_is_the_same_set(save, tmp_path):
    good = load(save())
    path = tmp_path / "packed.npz"
    np.savez_compressed(path, **{key: np.asfortranarray(value) for key, value in arrays().items()})
    packed = load(path)
    assert torch.equal(packed.train_images, good.train_images)
    assert packed.train_images.is_contiguous()


X, Y = arrays()["x_train"], arrays()["y_train"]


@pytest.mark.parametrize(
    ("replaced", "expected"),
    [
        ({"x_train": X / np.float32(255)}, "x_train is float32: store pixels as uint8"),
        ({"x_test": arrays()["x_test"].astype(np.int64)}, "x_test is int64: store pixels as uint8"),
        (
            {"x_train": X.reshape(NUM_TRAIN, -1)},
            "x_train has shape (60, 297): it must be (N, H, W)",
        ),
        ({"x_train": np.moveaxis(X, 3, 1)}, "x_train has shape (60, 3, 9, 11): it must be"),
        ({"x_train": X[..., :2]}, "x_train has shape (60, 9, 11, 2): it must be"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "x_train has shape (0, 9, 11, 3), no pixels"),
        ({"x_test": X[:0], "y_test": Y[:0]}, "x_test has shape (0, 9, 11, 3), no pixels"),
        ({"x_test": X[:NUM_TEST, 1:]}, "x_test: images are 8x11 here, but 9x11 for training"),
        ({"y_train": Y[:-1]}, "y_train has shape (59,) for 60 images"),
        ({"y_train": np.eye(3, dtype=int)[Y]}, "y_train has shape (60, 3) for 60 images"),
        ({"y_train": np.eye(3, dtype=int)[Y]}, "y.argmax(1)"),
        ({"x_train": np.moveaxis(X, 3, 1)}, "x.transpose(0, 2, 3, 1)"),
        ({"y_train": np.eye(3)[Y]}, "y_train is float64: labels must be integers"),
        ({"y_train": np.eye(3)[Y]}, "one-hot labels: y.argmax(1)"),
        ({"y_train": Y.astype(np.float64)}, "y_train is float64: labels must be integers"),
        ({"y_train": Y.astype(str)}, "y_train is <U21: labels must be integers"),
        ({"y_train": Y - 1}, "y_train holds the label -1: number the classes from 0"),
        (
            {"y_test": arrays()["y_test"] + 1},
            "y_test holds the label 3, out of range for 3 classes",
        ),
        (
            {"y_train": np.where(Y == 2, 10**9, Y)},
            "y_train holds the label 1000000000, out of range",
        ),
        ({"y_train": Y + 1}, "class 0 (0) has no training image"),
        ({"y_train": Y * 2}, "class 1 (1) has no training image: add some, or number the classes"),
        ({"y_train": Y * 0, "y_test": Y[:NUM_TEST] * 0}, "the only class is '0'"),
        ({"x_train": X * np.array([1, 0, 1], np.uint8)}, "channel 1 has the same value"),
    ],
)
def test_npz_that_cannot_be_meant_is_refused_with_the_value_and_the_remedy(
    save, replaced, expected
):
    path = save(**replaced)
    message = refusal(path)
    assert expected in message
    assert str(path) in message


def test_npz_with_tiny_images_is_refused(save):
    tiny = {key: value[:, :7] for key, value in arrays().items() if key.startswith("x")}
    assert "images are 7x11 pixels, but the networks need 8x8: enlarge them" in refusal(
        save(**tiny)
    )


def test_npz_lacking_keys_names_them_and_what_is_there(tmp_path):
    path = tmp_path / "half.npz"
    np.savez(path, x_train=X, labels=Y)
    message = refusal(path)
    assert "lacks y_train, x_test, y_test" in message
    assert "holds x_train, labels" in message


def test_npz_with_pickled_code_is_refused_and_the_code_does_not_run(save, tmp_path):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (marker,)

    path = save(y_test=np.array([Bomb()] * NUM_TEST, dtype=object))
    assert "cannot be read (Object arrays cannot be loaded" in refusal(path)
    assert not marker.exists()
    np.load(path, allow_pickle=True)["y_test"]
    assert marker.exists(), "the bomb is a dud, so this test shows nothing"


@pytest.mark.parametrize("content", [b"", b"not an archive" * 100])
def test_file_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    message = refusal(path)
    assert f"{path} is not an .npz archive" in message
    assert "numpy.savez" in message


def test_truncated_and_altered_npz_is_refused(save):
    path = save()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{path} is not an .npz archive, or truncated" in refusal(path)
    altered = bytearray(whole)
    altered[1000] ^= 1
    path.write_bytes(altered)
    assert f"{path} cannot be read (Bad CRC-32 for file 'x_train.npy')" in refusal(path)


def test_npz_members_that_are_no_arrays_are_refused(tmp_path):
    path = tmp_path / "text.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in arrays().items():
            stream = io.BytesIO()
            np.save(stream, value)
            archive.writestr(f"{key}.npy", stream.getvalue() if key != "x_test" else b"some text")
    assert f"{path}: x_test is not a numpy array: save it anew" in refusal(path)


@pytest.mark.parametrize(
    ("typed", "meant"), [("cifar-10", "cifar10"), ("cifar1000", "cifar100"), ("digit", "digits")]
)
def test_mistyped_name_gets_a_suggestion_and_the_list(typed, meant):
    message = refusal(typed)
    assert repr(typed) in message
    assert f"did you mean {meant}?" in message
    assert (
        "digits, cifar10, cifar100, a path to an .npz, or a folder with train/ and test/" in message
    )


def test_missing_path_is_named(tmp_path):
    message = refusal(tmp_path / "gone.npz")
    assert "gone.npz" in message and "no such file or folder exists" in message
    assert "did you mean" not in message


def test_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, X)
    assert f"dataset {path} is neither a folder nor an .npz file: take" in refusal(path)


def test_image_size_is_refused_where_nothing_is_resized(save):
    path = save()
    for dataset in (path, "digits", "cifar10"):
        message = refusal(dataset, image_size=32)
        assert "image_size is 32" in message and "leave it out" in message


def test_statistics_are_those_of_all_training_pixels(save):
    images = load(save())
    pixels = arrays()["x_train"].astype(np.float64) / 255
    np.testing.assert_allclose(images.mean, pixels.mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(images.std, pixels.std((0, 1, 2)), rtol=1e-13)


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (101, 32, 32, 3), (3, 200, 190, 3)])
def test_statistics_do_not_depend_on_how_images_fall_into_chunks(shape):
    images = torch.randint(
        256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    mean, std = channel_statistics(images)
    pixels = images.numpy().astype(np.float64).reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-13)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-12)
    assert channel_statistics(images.flip(0)) == (mean, std)


def test_loading_makes_no_second_copy_of_the_pixels(tmp_path):
    path = tmp_path / "large.npz"
    images = np.zeros((4096, 64, 86, 3), np.uint8)
    images[::2] = 255
    labels = np.arange(4096) % 2
    np.savez(path, x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    # Not resource.getrusage: its peak is inherited from the process that starts this one.
    code = (
        "import re, sys, pathlib, lion_fast\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "def peak_kib(): return int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1])\n"
        "config, load = lion_fast.TrainConfig(dataset=sys.argv[1]), lion_fast.load_image_set\n"
        "before = peak_kib()\n"
        "load(config)\n"
        "print((peak_kib() - before) * 1024)\n"
    )
    grown = int(subprocess.check_output([sys.executable, "-c", code, path], text=True))
    assert 0.9 * images.nbytes < grown < 1.5 * images.nbytes


def test_importing_the_sources_imports_no_dataset_library():
    code = (
        "import sys, lion_fast.data.open\n"
        "print([m for m in ('sklearn', 'scipy', 'torchvision', 'nvidia.dali') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_npz_beyond_the_memory_is_refused_by_its_headers_with_advice_that_helps(tmp_path):
    path = tmp_path / "vast.npz"
    splits = {"train": 10**6, "test": 10}
    with zipfile.ZipFile(path, "w") as archive:
        for split, num in splits.items():
            for key, shape in ((f"x_{split}", (num, 2000, 2000, 3)), (f"y_{split}", (num,))):
                with archive.open(f"{key}.npy", "w") as member:
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, header)
    message = refusal(path)
    assert f"{path}: its images take 11,17" in message and "GiB, and this machine has" in message
    assert "image folder, which --loader dali leaves on disk" in message
    assert "batch" not in message and "\n" not in message


def test_npz_that_finds_no_memory_after_all_is_refused_with_the_same_advice(save, monkeypatch):
    path = save()
    monkeypatch.setattr("lion_fast.data.npz.check_bytes", lambda *_: None)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr("numpy.lib.npyio.NpzFile.__getitem__", full)
    message = refusal(path)
    assert "do not fit in the memory that is free: keep fewer of them" in message


def test_npz_class_names_are_one_in_either_unicode_spelling(save):
    names = np.array(["caf\u00e9", "cafe\u0301", "square"])
    assert "holds a name twice" in refusal(save(class_names=names))


def test_a_list_beyond_the_memory_is_refused_at_its_first_image(monkeypatch):
    monkeypatch.setattr("lion_fast.data.memory.memory_limit_bytes", lambda: 5000)
    images = [(np.zeros((30, 30, 3), np.uint8), 0)] * 2
    with pytest.raises(UserError, match="train: 2 images of 30x30 pixels take .*: keep fewer"):
        ImageSet.from_datasets(images, images)
