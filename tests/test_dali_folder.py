"""DaliFolderLoader against Pillow, on CPU pipelines."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI: pip install 'lion-fast[dali]'")

from lion_fast.data.batches import BatchSpec
from lion_fast.data.dali_folder import DaliFolderLoader
from lion_fast.data.decode import decode_image
from lion_fast.data.folder import SplitListing, list_image_folder
from lion_fast.data.plan import BatchPlan
from lion_fast.errors import UserError
from lion_fast.kernels.augment import augment_batch_ref

CPU = torch.device("cpu")
STATISTICS = {"mean": (0.49, 0.48, 0.44), "std": (0.25, 0.24, 0.26)}
# One level of 255, normalised, at the smallest standard deviation.
LEVEL = 1 / 255 / 0.24 * 1.01
SIZE = (16, 12)


def picture(index, size=SIZE):
    """Smooth enough for JPEG, and different in every corner, channel and index."""
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    channels = [0.5 + 0.5 * np.sin(index + c + 3 * x + (2 + c) * y) for c in range(3)]
    return (255 * np.stack(channels, -1)).round().astype(np.uint8)


def write_set(root, num_per_class=10, suffix=".png", **save):
    """Write root/{train,test}/{cat,dog}/NN.suffix and return the listing of train."""
    for split, number in (("train", num_per_class), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                image = Image.fromarray(picture(100 * label + index))
                image.save(folder / f"{index:02}{suffix}", **save)
    return list_image_folder(root).train


@pytest.fixture
def make_loader():
    """Makes loaders of a listing and closes them."""
    loaders = []

    def make(listing, plan, device=CPU, **settings):
        spec = BatchSpec(num_steps=1000, device=device, dtype=torch.float32, **STATISTICS)
        loaders.append(DaliFolderLoader(listing, plan, spec, **{"image_size": SIZE, **settings}))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def expected_batch(listing, plan, step, size=SIZE):
    """The plan's step from images that Pillow decoded."""
    images = torch.from_numpy(np.stack([decode_image(path, size) for path in listing.paths]))
    indices, flips, crops = (torch.from_numpy(array[0]) for array in plan.steps(step, step + 1))
    return augment_batch_ref(
        images,
        torch.from_numpy(listing.labels),
        indices,
        flips,
        **STATISTICS,
        crops=crops if plan.crop_padding else None,
        padding=plan.crop_padding,
    )


def assert_delivers(loader, listing, num_steps, tolerance=1e-6, size=SIZE):
    for step in range(num_steps):
        batch = loader.next()
        images, labels = expected_batch(listing, loader.plan, step, size)
        torch.testing.assert_close(batch.images, images, rtol=0, atol=tolerance)
        assert torch.equal(batch.labels, labels)


@pytest.mark.parametrize("crop_padding", [0, 2])
@pytest.mark.parametrize("steps_per_run", [1, 4])
def test_png_folders_equal_pillow_exactly_over_two_epochs(
    tmp_path, make_loader, steps_per_run, crop_padding
):
    listing = write_set(tmp_path)
    plan = BatchPlan(20, 6, seed=1, crop_padding=crop_padding)
    assert_delivers(make_loader(listing, plan, steps_per_run=steps_per_run), listing, 6)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_folders_equal_pillow_within_two_levels(tmp_path, make_loader, subsampling):
    listing = write_set(tmp_path, suffix=".jpg", quality=90, subsampling=subsampling)
    loader = make_loader(listing, BatchPlan(20, 5, seed=2), steps_per_run=3)
    assert_delivers(loader, listing, 4, tolerance=2 * LEVEL)


def test_images_of_other_sizes_are_stretched_as_pillow_does(tmp_path, make_loader):
    listing = write_set(tmp_path, num_per_class=6)
    for index, size in enumerate([(40, 50), (7, 5), (16, 30), (33, 12)]):
        Image.fromarray(picture(index, size)).save(listing.paths[index])
    loader = make_loader(listing, BatchPlan(12, 12, seed=3))
    batch = loader.next()
    images, _ = expected_batch(listing, loader.plan, 0)
    difference = (batch.images - images).abs()
    assert difference.max() <= 4 * LEVEL
    assert difference.mean() <= 0.2 * LEVEL


def grey16(path):
    levels = np.random.default_rng(0).integers(0, 65536, SIZE, dtype=np.uint16)
    Image.fromarray(levels).save(path)


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(1, SIZE[::-1])).save(path, exif=exif)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: Image.fromarray(picture(1)).convert("RGBA").save(path),
        lambda path: Image.fromarray(np.dstack([picture(1), picture(2)[..., 0]])).save(path),
        lambda path: Image.fromarray(picture(1)).convert("L").save(path),
        lambda path: Image.fromarray(picture(1)).convert("LA").save(path),
        lambda path: Image.fromarray(picture(1)).convert("P").save(path),
        lambda path: Image.fromarray(picture(1)).convert("1").save(path),
        grey16,
        rotated,
    ],
    ids=["opaque", "alpha", "grey", "grey-alpha", "palette", "bilevel", "grey16", "exif"],
)
def test_every_kind_of_png_is_read_as_rgb(tmp_path, make_loader, write):
    listing = write_set(tmp_path, num_per_class=2)
    write(listing.paths[1])
    assert_delivers(make_loader(listing, BatchPlan(4, 4, seed=4)), listing, 1)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_are_read_as_rgb(tmp_path, make_loader, mode):
    listing = write_set(tmp_path, num_per_class=2, suffix=".jpg")
    Image.fromarray(picture(1)).convert(mode).save(listing.paths[1], quality=95)
    loader = make_loader(listing, BatchPlan(4, 4, seed=4))
    assert_delivers(loader, listing, 1, tolerance=2 * LEVEL)


def test_paths_may_hold_spaces_and_any_script(tmp_path, make_loader):
    listing = write_set(tmp_path / "naïve 画像", num_per_class=2)
    assert_delivers(make_loader(listing, BatchPlan(4, 4, seed=5)), listing, 1)


def test_a_run_resumed_anywhere_equals_an_uninterrupted_one(tmp_path, make_loader):
    listing = write_set(tmp_path)
    plan = BatchPlan(20, 6, seed=6)
    whole, resumed = (make_loader(listing, plan, steps_per_run=4) for _ in range(2))
    batches = [tuple(tensor.clone() for tensor in whole.next()) for _ in range(10)]
    for step in (5, 3, 6):
        resumed.seek(step)
        for images, labels in batches[step : step + 4]:
            batch = resumed.next()
            assert torch.equal(batch.images, images) and torch.equal(batch.labels, labels)


@pytest.mark.parametrize("num_shards", [2, 3])
def test_shards_make_up_the_planned_batches(tmp_path, make_loader, num_shards):
    listing = write_set(tmp_path)
    plan = BatchPlan(20, 6, seed=7)
    whole = make_loader(listing, plan)
    shards = [
        make_loader(listing, replace(plan, rank=rank, world_size=num_shards), steps_per_run=2)
        for rank in range(num_shards)
    ]
    for _ in range(7):
        batch = whole.next()
        parts = [shard.next() for shard in shards]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)


def break_file(path, how="garbage"):
    data = path.read_bytes()
    middle = len(data) * 3 // 4
    if how == "garbage":
        path.write_bytes(b"\x89PNG and nothing of the kind")
    elif how == "truncated":
        path.write_bytes(data[:middle])
    elif how == "damaged":
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize("steps_per_run", [1, 4])
@pytest.mark.parametrize(
    ("suffix", "how"),
    [(".png", how) for how in ("garbage", "truncated", "damaged", "empty", "gone")]
    + [(".jpg", how) for how in ("garbage", "truncated", "empty", "gone")],
)
def test_an_unreadable_file_is_named_in_one_line_by_its_turn(
    tmp_path, make_loader, suffix, how, steps_per_run
):
    listing = write_set(tmp_path, suffix=suffix)
    plan = BatchPlan(20, 5, seed=8)
    bad = int(plan.steps(3, 4).indices[0, 1])
    break_file(listing.paths[bad], how)
    loader = make_loader(listing, plan, steps_per_run=steps_per_run)
    with pytest.raises(UserError, match=str(listing.paths[bad])) as caught:
        for _ in range(4):
            loader.next()
    assert "\n" not in str(caught.value) and "--skip-corrupt" in str(caught.value)
    with pytest.raises(UserError, match=str(listing.paths[bad])):
        loader.next()


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user whom file modes bind: root is not")
def test_a_file_without_permission_is_named(tmp_path, make_loader):
    listing = write_set(tmp_path, num_per_class=2)
    listing.paths[1].chmod(0)
    with pytest.raises(UserError, match=str(listing.paths[1])):
        make_loader(listing, BatchPlan(4, 4, seed=9)).next()


@pytest.mark.parametrize("steps_per_run", [1, 3])
def test_skipped_files_give_way_to_the_next_readable_one_wherever_a_run_starts(
    tmp_path, make_loader, steps_per_run
):
    listing = write_set(tmp_path)
    bad = {3: 4, 8: 11, 9: 11, 10: 11, 19: 0}  # a stretch across two classes, and the very last
    for index in bad:
        break_file(listing.paths[index], "damaged" if index % 2 else "garbage")
    stand_ins = [bad.get(index, index) for index in range(20)]
    readable = SplitListing(
        tuple(listing.paths[index] for index in stand_ins), listing.labels[stand_ins]
    )
    plan = BatchPlan(20, 6, seed=10)
    settings = {"steps_per_run": steps_per_run, "skip_corrupt": True}
    loader = make_loader(listing, plan, **settings)
    assert_delivers(loader, readable, 9)
    assert loader.num_skipped == len(bad)
    resumed = make_loader(listing, plan, **settings)
    resumed.seek(4)
    images, labels = expected_batch(readable, plan, 4)
    batch = resumed.next()
    torch.testing.assert_close(batch.images, images, rtol=0, atol=1e-6)
    assert torch.equal(batch.labels, labels)


@pytest.mark.parametrize("how", ["garbage", "damaged"])
def test_a_run_discarded_by_seek_may_hold_an_unreadable_file(tmp_path, make_loader, how):
    listing = write_set(tmp_path)
    plan = BatchPlan(20, 5, seed=11)
    needed = {*plan.steps(0, 1).indices[0], *plan.steps(6, 10).indices.ravel()[:10]}
    bad = next(index for index in plan.steps(1, 2).indices[0] if index not in needed)
    break_file(listing.paths[bad], how)
    loader = make_loader(listing, plan, steps_per_run=1, prefetch=2, skip_corrupt=True)
    loader.next()
    loader.seek(6)
    for step in (6, 7):
        expected = listing.labels[plan.steps(step, step + 1).indices[0]]
        assert loader.next().labels.tolist() == expected.tolist()


@pytest.mark.parametrize("how", ["garbage", "damaged"])
def test_a_folder_without_one_readable_image_is_refused(tmp_path, make_loader, how):
    listing = write_set(tmp_path, num_per_class=2)
    for path in listing.paths:
        break_file(path, how)
    loader = make_loader(listing, BatchPlan(4, 2, seed=12), skip_corrupt=True)
    with pytest.raises(UserError, match="none of the 4"):
        for _ in range(4):
            loader.next()


def test_a_failure_that_no_file_explains_keeps_its_own_error(tmp_path, make_loader, monkeypatch):
    listing = write_set(tmp_path, num_per_class=2)
    loader = make_loader(listing, BatchPlan(4, 4, seed=13), skip_corrupt=True)

    def broken(stream):
        loader._source()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loader._pipeline, "run", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        loader.next()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: decodes on one")
@pytest.mark.parametrize(("suffix", "levels"), [(".png", 0), (".jpg", 4)])
def test_gpu_pipelines_equal_pillow(tmp_path, make_loader, suffix, levels):
    listing = write_set(tmp_path, suffix=suffix)
    plan = BatchPlan(20, 6, seed=14, crop_padding=2)
    loader = make_loader(listing, plan, device=torch.device("cuda", 0), steps_per_run=2)
    for step in range(6):
        batch = loader.next()
        images, labels = expected_batch(listing, plan, step)
        tolerance = levels * LEVEL + 1e-6
        torch.testing.assert_close(batch.images.cpu(), images, rtol=0, atol=tolerance)
        assert torch.equal(batch.labels.cpu(), labels)
