"""read_cifar on synthetic files in the official layout: pickles as Python 2 and numpy 1 wrote."""

import functools
import hashlib
import http.server
import io
import os
import pickle
import random
import struct
import tarfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from lion_fast.config import TrainConfig
from lion_fast.data.arrays import LabelledArrays
from lion_fast.data.cifar import CLASS_NAMES, read_cifar
from lion_fast.data.open import load_image_set
from lion_fast.errors import UserError

OFFICIAL = {"cifar10": CIFAR10, "cifar100": CIFAR100}
IMAGES_PER_FILE = {"cifar10": 10, "cifar100": 100}


def pickled_integer(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def pickled_string(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value


def pickled_list(values: list[int]) -> bytes:
    return b"](" + b"".join(map(pickled_integer, values)) + b"e"


def pickled_array(pixels: np.ndarray, dtype: bytes = b"u1", fortran: bool = False) -> bytes:
    shape = b"(" + b"".join(map(pickled_integer, pixels.shape)) + b"t"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\n" + pickled_string(dtype) + b"K\0K\x01\x87R"
    kind += b"(K\x03U\x01|NNN" + 2 * pickled_integer(-1) + b"K\0tb"
    data = pickled_string(pixels.tobytes(order="F" if fortran else "C"))
    return empty + b"(K\x01" + shape + kind + (b"\x88" if fortran else b"\x89") + data + b"tb"


def pickled_batch(data: bytes, **labels: list[int]) -> bytes:
    items = pickled_string(b"batch_label") + pickled_string(b"training batch 1 of 5")
    items += pickled_string(b"data") + data
    for key, values in labels.items():
        items += pickled_string(key.encode()) + pickled_list(values)
    return b"\x80\x02}(" + items + b"u."


def raw_batch(name: str, file: str) -> tuple[np.ndarray, list[int]]:
    """Return (N, 3, 32, 32) pixels and labels, different in every file."""
    num = IMAGES_PER_FILE[name]
    rng = np.random.default_rng(sum(file.encode()))
    return rng.integers(0, 256, (num, 3, 32, 32), np.uint8), rng.permutation(num).tolist()


def batch_file(name: str, file: str, fortran: bool = False) -> bytes:
    pixels, labels = raw_batch(name, file)
    data = pickled_array(pixels.reshape(len(pixels), -1), fortran=fortran)
    if name == "cifar10":
        return pickled_batch(data, labels=labels)
    return pickled_batch(data, coarse_labels=[label // 5 for label in labels], fine_labels=labels)


def expected(name: str) -> LabelledArrays:
    official = OFFICIAL[name]
    splits = []
    for files in (official.train_list, official.test_list):
        batches = [raw_batch(name, file) for file, _ in files]
        splits.append(np.concatenate([pixels for pixels, _ in batches]).transpose(0, 2, 3, 1))
        splits.append(np.concatenate([labels for _, labels in batches]))
    return LabelledArrays(*splits, CLASS_NAMES[name])


def assert_same(found: LabelledArrays, name: str) -> None:
    for have, want in zip(found[:4], expected(name)[:4], strict=True):
        assert have.dtype == want.dtype and have.flags.c_contiguous
        assert np.array_equal(have, want)
    assert found.class_names == CLASS_NAMES[name]


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Store:
    """Puts synthetic official files into a folder and makes torchvision's checksums theirs."""

    def __init__(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data_dir = data_dir
        self.monkeypatch = monkeypatch

    def contents(self, name: str, **replaced: bytes) -> dict[str, bytes]:
        official = OFFICIAL[name]
        names = [file for file, _ in official.train_list + official.test_list]
        return {file: batch_file(name, file) for file in names} | replaced

    def archive(self, name: str, **replaced: bytes) -> Path:
        official = OFFICIAL[name]
        path = self.data_dir / official.filename
        with tarfile.open(path, "w:gz", compresslevel=1) as members:
            for file, content in self.contents(name, **replaced).items():
                member = tarfile.TarInfo(f"{official.base_folder}/{file}")
                member.size = len(content)
                members.addfile(member, io.BytesIO(content))
        self.monkeypatch.setattr(official, "tgz_md5", md5(path.read_bytes()))
        return path

    def folder(self, name: str, **replaced: bytes) -> Path:
        official = OFFICIAL[name]
        path = self.data_dir / official.base_folder
        path.mkdir()
        contents = self.contents(name, **replaced)
        for file, content in contents.items():
            (path / file).write_bytes(content)
        for split in ("train_list", "test_list"):
            entries = [[file, md5(contents[file])] for file, _ in getattr(official, split)]
            self.monkeypatch.setattr(official, split, entries)
        return path


@pytest.fixture
def store(tmp_path, monkeypatch):
    # Nothing here may reach the real servers.
    for official in OFFICIAL.values():
        monkeypatch.setattr(official, "url", "http://127.0.0.1:9/" + official.filename)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return Store(tmp_path, monkeypatch)


def refusal(name: str, data_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_cifar(name, data_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_official_files_round_trip_is_exact(store, name, form):
    getattr(store, form)(name)
    assert_same(read_cifar(name, store.data_dir), name)


@pytest.mark.parametrize("name", OFFICIAL)
def test_torchvision_reads_the_same_images_and_labels(store, name):
    folder = store.folder(name)
    meta = pickle.dumps({OFFICIAL[name].meta["key"]: list(CLASS_NAMES[name])})
    (folder / OFFICIAL[name].meta["filename"]).write_bytes(meta)
    store.monkeypatch.setattr(OFFICIAL[name], "meta", OFFICIAL[name].meta | {"md5": md5(meta)})
    found = read_cifar(name, store.data_dir)
    with warnings.catch_warnings():
        # numpy warns of the old module name in the pickles.
        warnings.simplefilter("ignore")
        train, test = (OFFICIAL[name](store.data_dir, train=train) for train in (True, False))
    assert np.array_equal(found.train_images, train.data)
    assert np.array_equal(found.test_images, test.data)
    assert found.train_labels.tolist() == train.targets
    assert found.test_labels.tolist() == test.targets


def test_fortran_ordered_pixels_are_put_in_order(store):
    store.archive("cifar10", data_batch_3=batch_file("cifar10", "data_batch_3", fortran=True))
    assert_same(read_cifar("cifar10", store.data_dir), "cifar10")


def test_npz_is_taken_before_the_archive(store):
    archive = store.archive("cifar10")
    archive.write_bytes(b"altered")
    want = expected("cifar10")
    np.savez(
        store.data_dir / "cifar10.npz",
        x_train=want.train_images,
        y_train=want.train_labels[:, None],
        x_test=want.test_images,
        y_test=want.test_labels[:, None],
    )
    assert_same(read_cifar("cifar10", store.data_dir), "cifar10")


def test_npz_with_a_label_beyond_the_classes_is_refused(store):
    want = expected("cifar10")
    path = store.data_dir / "cifar10.npz"
    np.savez(
        path,
        x_train=want.train_images,
        y_train=want.train_labels + 1,
        x_test=want.test_images,
        y_test=want.test_labels,
    )
    message = refusal("cifar10", store.data_dir)
    assert f"{path}: y_train holds the label 10, out of range for 10 classes" in message


def test_loaded_set_has_names_labels_and_its_own_statistics(store):
    store.archive("cifar100")
    images = load_image_set(TrainConfig(dataset="cifar100", data_dir=store.data_dir))
    assert images.num_classes == 100 and images.image_size == (32, 32)
    assert images.class_names[:2] == ("apple", "aquarium_fish") and images.class_names[99] == "worm"
    assert list(images.class_names) == sorted(set(images.class_names))
    pixels = expected("cifar100").train_images / 255
    np.testing.assert_allclose(images.mean, pixels.mean((0, 1, 2)), rtol=1e-12)


def test_default_data_dir_is_under_the_home_folder(store):
    store.monkeypatch.setenv("HOME", str(store.data_dir))
    store.data_dir = store.data_dir / ".cache" / "lion-fast"
    store.data_dir.mkdir(parents=True)
    store.archive("cifar10")
    assert load_image_set(TrainConfig(dataset="cifar10")).num_classes == 10


def test_truncated_archive_is_refused_with_both_checksums(store):
    path = store.archive("cifar10")
    good = path.read_bytes()
    path.write_bytes(good[:-100])
    message = refusal("cifar10", store.data_dir)
    assert f"{path} has MD5 {md5(good[:-100])}, expected {md5(good)}" in message
    assert "truncated or altered, delete it to have it downloaded again" in message


def test_altered_file_of_the_folder_is_refused_with_both_checksums(store):
    path = store.folder("cifar10") / "data_batch_4"
    good = path.read_bytes()
    bad = good.replace(b"training batch 1", b"training batch 7")
    path.write_bytes(bad)
    message = refusal("cifar10", store.data_dir)
    assert f"{path} has MD5 {md5(bad)}, expected {md5(good)}" in message
    assert "extract cifar-10-python.tar.gz again" in message


def test_folder_lacking_a_file_is_refused(store):
    path = store.folder("cifar10") / "test_batch"
    path.unlink()
    message = refusal("cifar10", store.data_dir)
    assert f"{path} is missing" in message and "extract cifar-10-python.tar.gz again" in message


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_pickle_that_runs_code_is_refused_and_the_code_does_not_run(store, form):
    marker = store.data_dir / "ran"

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    bomb = pickle.dumps({"data": Bomb()}, protocol=2)
    getattr(store, form)("cifar10", data_batch_2=bomb)
    message = refusal("cifar10", store.data_dir)
    assert (
        "data_batch_2" in message and f"it asks to run {os.system.__module__!r} 'system'" in message
    )
    assert "delete it and download it again" in message
    assert not marker.exists()
    pickle.loads(bomb)
    assert marker.exists(), "the bomb is a dud, so this test shows nothing"


@pytest.mark.parametrize(
    "function", ["builtins eval", "numpy load", "numpy.core.multiarray scalar"]
)
def test_no_other_function_is_reachable(store, function):
    module, name = function.split()
    call = f"\x80\x02c{module}\n{name}\nU\x011\x85R.".encode("latin1")
    store.archive("cifar10", test_batch=call)
    assert f"it asks to run {module!r} {name!r}" in refusal("cifar10", store.data_dir)


PIXELS = np.zeros((3, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Ran out of input"),
        (b"\x80\x02].", "list indices"),
        (b"\x80\x02Fnine\n.", "could not convert string to float: 'nine '"),
        (b"\x80\x02}Q.", "it refers to an object outside the file"),
        (pickled_batch(pickled_array(PIXELS)), "fine_labels"),
        (pickled_batch(pickled_list([1, 2]), labels=[0, 1]), "no attribute 'pixels'"),
        (pickled_batch(pickled_array(PIXELS), labels=[0, 1]), "2 labels for pixels of shape"),
        (pickled_batch(pickled_array(PIXELS[:, 1:]), labels=[0, 1, 2]), "of shape (3, 3071)"),
        (pickled_batch(pickled_array(PIXELS), labels=[0, 10, 1]), "not integers from 0 to 9"),
        (pickled_batch(pickled_array(PIXELS), labels=[0, -1, 1]), "not integers from 0 to 9"),
        (pickled_batch(pickled_array(PIXELS, b"O8"), labels=[0, 1, 2]), "pixels are b'O8'"),
        (pickled_batch(pickled_array(PIXELS), labels=[0, 1, 2])[:-200], "truncated"),
    ],
)
def test_file_that_is_no_batch_is_refused(store, content, reason):
    path = store.archive("cifar10", data_batch_1=content)
    message = refusal("cifar10", store.data_dir)
    assert f"data_batch_1 in {path} is not a CIFAR batch" in message
    assert reason in message
    assert "delete it and download it again" in message


def test_no_altered_pickle_raises_anything_but_a_user_error(store):
    """Only the pickle's frame is altered: a changed pixel would be a valid file."""
    rng = random.Random(0)
    folder = store.folder("cifar10")
    store.monkeypatch.setattr("lion_fast.data.cifar._verify", lambda *_: None)
    whole = batch_file("cifar10", "data_batch_1")
    start = whole.index(raw_batch("cifar10", "data_batch_1")[0].tobytes())
    frame = [*range(start), *range(start + 10 * 3072, len(whole))]
    num_refused = 0
    for _ in range(200):
        altered = bytearray(whole)
        for place in rng.sample(frame, rng.choice([1, 2, 5])):
            altered[place] = rng.randrange(256)
        (folder / "data_batch_1").write_bytes(altered)
        try:
            read_cifar("cifar10", store.data_dir)
        except UserError:
            num_refused += 1
    assert num_refused > 100


@pytest.fixture
def server(store):
    """Serve a folder on this machine as the place of both archives, counting requests."""
    folder = store.data_dir / "server"
    folder.mkdir()
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        for official in OFFICIAL.values():
            url = f"http://127.0.0.1:{running.server_port}/{official.filename}"
            store.monkeypatch.setattr(official, "url", url)
        yield folder, requests
        running.shutdown()


def test_absent_archive_is_downloaded_once_and_kept_whole(store, server):
    folder, requests = server
    archive = store.archive("cifar10")
    archive.rename(folder / archive.name)
    data_dir = store.data_dir / "new" / "data"
    assert_same(read_cifar("cifar10", data_dir), "cifar10")
    assert [path.name for path in data_dir.iterdir()] == [archive.name]
    num_requests = len(requests)
    assert num_requests > 0
    assert_same(read_cifar("cifar10", data_dir), "cifar10")
    assert len(requests) == num_requests


def test_truncated_download_is_refused_and_leaves_nothing(store, server):
    folder, _ = server
    archive = store.archive("cifar10")
    good = archive.read_bytes()
    archive.unlink()
    (folder / archive.name).write_bytes(good[:1000])
    data_dir = store.data_dir / "data"
    message = refusal("cifar10", data_dir)
    assert (
        f"{CIFAR10.url}, as downloaded, has MD5 {md5(good[:1000])}, expected {md5(good)}" in message
    )
    assert f"put cifar-10-python.tar.gz or cifar10.npz into {data_dir}" in message
    assert list(data_dir.iterdir()) == []


def test_interrupted_download_leaves_nothing_to_be_taken_for_whole(store):
    def download_half(url: str, root: str, filename: str) -> None:
        Path(root, filename).write_bytes(b"half")
        raise KeyboardInterrupt

    store.monkeypatch.setattr("torchvision.datasets.utils.download_url", download_half)
    with pytest.raises(KeyboardInterrupt):
        read_cifar("cifar10", store.data_dir)
    assert list(store.data_dir.iterdir()) == []


@pytest.mark.parametrize("name", OFFICIAL)
def test_without_a_network_the_message_says_which_file_goes_where(store, name):
    data_dir = store.data_dir / "data"
    message = refusal(name, data_dir)
    assert f"{OFFICIAL[name].url} cannot be downloaded" in message
    assert f"put {OFFICIAL[name].filename} or {name}.npz into {data_dir}" in message
    assert list(data_dir.iterdir()) == []


def test_data_dir_that_cannot_be_made_is_named(store):
    (store.data_dir / "file").write_bytes(b"")
    message = refusal("cifar10", store.data_dir / "file")
    assert str(store.data_dir / "file") in message and "put cifar-10-python.tar.gz" in message
