"""Which data a set is: every byte of it counts, and what has not changed is not read again."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from lion_fast.config import TrainConfig
from lion_fast.data import fingerprint, sources
from lion_fast.data.digits import read_digits
from lion_fast.data.images import ImageSet
from lion_fast.data.open import load_image_set, open_data
from lion_fast.data.sources import data_fingerprint

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def settled(monkeypatch, tmp_path):
    """Files count as old as soon as they are written; what is kept elsewhere stays in tmp_path."""
    monkeypatch.setattr("lion_fast.data.remembered._SETTLED_NS", -(10**12))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def write_folder(root, num_train=4, num_test=2, pad=0):
    for split, num in (("train", num_train), ("test", num_test)):
        for name in ("cat", "dog", "emu"):
            (root / split / name).mkdir(parents=True)
            for index in range(num):
                path = root / split / name / f"{index}.png"
                Image.fromarray(RNG.integers(0, 256, (12, 10, 3), np.uint8)).save(path)
                with path.open("ab") as file:
                    file.write(bytes(pad))
    return root


def write_npz(path, num=30):
    rng = np.random.default_rng(1)
    splits = {"train": num, "test": 12}
    np.savez(
        path,
        **{f"x_{s}": rng.integers(0, 256, (n, 9, 11, 3), np.uint8) for s, n in splits.items()},
        **{f"y_{s}": np.arange(n) % 3 for s, n in splits.items()},
    )
    return path


@pytest.fixture
def photos(tmp_path):
    return write_folder(tmp_path / "photos")


@pytest.fixture
def reads(monkeypatch):
    """How often each file's content was digested, and each set in memory."""
    counts = Counter()
    file_digest, pixels = fingerprint._file_digest, sources.pixels_fingerprint
    monkeypatch.setattr(
        fingerprint, "_file_digest", lambda path: counts.update([path.name]) or file_digest(path)
    )
    monkeypatch.setattr(
        sources, "pixels_fingerprint", lambda *split: counts.update(["pixels"]) or pixels(*split)
    )
    return counts


def config(path, **fields):
    return TrainConfig(dataset=str(path), **fields)


def replaced(path, place=-1):
    """Other bytes of the same number under the same name, and the old time of change."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_one_byte_of_any_file_makes_other_data(tmp_path):
    root = write_folder(tmp_path / "photos", num_train=100, num_test=1, pad=100_000)
    found = {data_fingerprint(config(root))}
    for number in (0, 1, 37, 98, 99):
        replaced(root / "train" / "dog" / f"{number}.png", place=50_000)
        found.add(data_fingerprint(config(root)))
    assert len(found) == 6


def test_files_that_have_not_changed_are_not_read_again(photos, reads):
    before = data_fingerprint(config(photos))
    assert reads.total() == 18 and data_fingerprint(config(photos)) == before
    assert reads.total() == 18
    replaced(photos / "test" / "dog" / "1.png")
    assert data_fingerprint(config(photos)) != before
    assert reads.total() == 19
    assert [path.name for path in photos.parent.glob(".*")] == [".photos.lion-fast.json"]
    # The run itself asks the same way.
    assert open_data(config(photos), "dali").facts().fingerprint == data_fingerprint(config(photos))
    assert reads.total() == 19


def test_files_changed_a_moment_ago_are_not_trusted(photos, reads, monkeypatch):
    monkeypatch.setattr("lion_fast.data.remembered._SETTLED_NS", 10**12)
    for _ in range(2):
        data_fingerprint(config(photos))
    assert reads.total() == 36 and not list(photos.parent.glob(".*"))


def test_where_nothing_can_be_written_beside_the_data_the_users_cache_serves(photos, reads):
    (photos.parent / ".photos.lion-fast.json").mkdir()
    before = data_fingerprint(config(photos))
    assert data_fingerprint(config(photos)) == before and reads.total() == 18
    (kept,) = (photos.parent / "home" / ".cache" / "lion-fast" / "digests").iterdir()
    kept.unlink()
    kept.mkdir()
    assert data_fingerprint(config(photos)) == before and reads.total() == 36


@pytest.mark.parametrize("text", ["", "[]", "{", '{"test/cat/0.png": 3}', "\ufeff{}"])
def test_damage_to_what_is_remembered_does_no_harm(photos, text):
    before = data_fingerprint(config(photos))
    (photos.parent / ".photos.lion-fast.json").write_text(text, encoding="utf-8")
    assert data_fingerprint(config(photos)) == before


def test_files_that_have_gone_are_forgotten_in_time(photos, monkeypatch):
    monkeypatch.setattr("lion_fast.data.remembered._MOST_STALE", 0)
    path = photos / "train" / "cat" / "0.png"
    for number in range(60):
        path = path.rename(path.with_name(f"renamed-{number}.png"))
        data_fingerprint(config(photos))
    kept = json.loads((photos.parent / ".photos.lion-fast.json").read_text(encoding="utf-8"))
    assert 18 <= len(kept) <= 37


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_one_value_of_an_npz_makes_other_data(tmp_path, key):
    path = write_npz(tmp_path / "set.npz")
    before = data_fingerprint(config(path))
    arrays = dict(np.load(path))
    arrays[key].flat[7] = (arrays[key].flat[7] + 1) % 3
    np.savez(path, **arrays)
    assert data_fingerprint(config(path)) != before


def test_an_npz_is_known_by_its_time_and_saved_anew_by_its_content(tmp_path, reads):
    path = write_npz(tmp_path / "set.npz")
    before = data_fingerprint(config(path))
    load_image_set(config(path))
    assert data_fingerprint(config(path)) == before and reads.total() == 2
    np.savez_compressed(path, **dict(np.load(path)))
    assert data_fingerprint(config(path)) == before and reads.total() == 4


def test_a_downloaded_folder_is_known_by_the_times_of_its_files(tmp_path, reads, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_text(name)
    monkeypatch.setattr(sources, "read_cifar", lambda *_: read_digits())
    named = TrainConfig(dataset="cifar10", data_dir=tmp_path)
    told = {data_fingerprint(named) for _ in range(3)}
    assert len(told) == 1 and reads.total() == 2
    replaced(folder / "test_batch")
    data_fingerprint(named)
    assert reads.total() == 4


def test_every_image_of_a_large_set_counts():
    images = torch.zeros(4000, 96, 96, 3, dtype=torch.uint8)
    images[::2] = 255
    labels = torch.arange(4000) % 2
    large = ImageSet.from_tensors(images, labels, images[:2], labels[:2])
    before = large.facts()
    images[2501, 50, 50, 1] = 7
    assert before.differences(large.facts()) != []


@pytest.mark.parametrize(
    "fields", [{}, {"num_classes": 2}, {"train_fraction": 0.5}, {"image_size": 16}]
)
def test_what_is_told_beforehand_is_what_a_run_notes(tmp_path, fields):
    named = [config(write_folder(tmp_path / "photos"), **fields)]
    if "image_size" not in fields:
        named += [config(write_npz(tmp_path / "set.npz"), **fields), TrainConfig(**fields)]
        named += [TrainConfig(dataset="cifar10", data_dir=tmp_path / "cifar", **fields)]
        (tmp_path / "cifar").mkdir()
        write_npz(tmp_path / "cifar" / "cifar10.npz", num=300)
        arrays = dict(np.load(tmp_path / "cifar" / "cifar10.npz"))
        arrays["y_train"] = np.arange(300) % 10
        np.savez(tmp_path / "cifar" / "cifar10.npz", **arrays)
    for each in named:
        told = data_fingerprint(each)
        assert told == load_image_set(each).facts().fingerprint and len(told) == 81


def test_data_that_are_not_here_have_no_fingerprint_and_are_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("lion_fast.data.cifar._download", None)
    (tmp_path / "broken.npz").write_text("none")
    (tmp_path / "empty").mkdir()
    for dataset in ("cifar10", tmp_path / "none.npz", tmp_path / "broken.npz", tmp_path / "empty"):
        assert data_fingerprint(config(dataset, data_dir=tmp_path)) is None


def test_fingerprints_of_earlier_versions_are_not_compared():
    facts = load_image_set(TrainConfig()).facts()
    earlier = dataclasses.replace(facts, train_fingerprint="0" * 32, test_fingerprint="1" * 32)
    assert earlier.differences(facts) == [] and facts.differences(earlier) == []
    fewer = dataclasses.replace(earlier, num_train=3)
    assert fewer.differences(facts) == ["1,437 training images, and there were 3"]


def test_which_data_there_are_is_told_without_torch():
    code = (
        "import sys\n"
        "from lion_fast.config import TrainConfig\n"
        "from lion_fast.data.sources import data_fingerprint\n"
        "print(data_fingerprint(TrainConfig()), 'torch' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith(" False\n")


def test_ten_thousand_files_are_known_again_in_half_a_second(tmp_path):
    root = tmp_path / "photos"
    for name in range(10):
        for split, num in (("train", 900), ("test", 100)):
            folder = root / split / f"class-{name}"
            folder.mkdir(parents=True)
            for index in range(num):
                (folder / f"{index:05}.png").write_bytes(b"%d %d" % (name, index))
    first = data_fingerprint(config(root))
    seconds = []
    for _ in range(3):
        started = time.process_time()
        assert data_fingerprint(config(root)) == first
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.5
