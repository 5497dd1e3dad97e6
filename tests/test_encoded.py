import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lion_fast.config import TrainConfig
from lion_fast.data.encoded import EncodedSet
from lion_fast.data.images import ImageSet
from lion_fast.data.open import open_data
from lion_fast.errors import UserError
from lion_fast.training import evaluate, train


@pytest.fixture
def folder(tmp_path, stripes):
    """The stripes as PNG files in class folders."""
    with np.load(stripes) as arrays:
        for split in ("train", "test"):
            rows = zip(arrays[f"x_{split}"][:120], arrays[f"y_{split}"][:120], strict=True)
            for index, (image, label) in enumerate(rows):
                path = tmp_path / "set" / split / f"class{label}" / f"{index:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
    return tmp_path / "set"


@pytest.fixture
def config(folder, tmp_path):
    return TrainConfig(
        dataset=str(folder),
        growth_rate=4,
        block_layers=1,
        batch_size=32,
        max_steps=8,
        window=5,
        device="cpu",
        out=tmp_path / "runs",
    )


def test_a_folder_stays_on_disk_for_dali_alone(config):
    assert isinstance(open_data(config, "resident"), ImageSet)
    assert isinstance(open_data(config, "dali"), EncodedSet)
    assert isinstance(open_data(TrainConfig(), "dali"), ImageSet)


def test_the_set_on_disk_equals_the_set_in_memory(config):
    memory, disk = open_data(config, "resident"), open_data(config, "dali")
    assert (disk.num_train, disk.num_classes) == (memory.num_train, memory.num_classes)
    assert disk.image_size == memory.image_size
    assert disk.mean == memory.mean  # the set is smaller than the sample
    rows = torch.tensor([5, 0, 77])
    for ours, theirs in zip(disk.train_rows(rows), memory.train_rows(rows), strict=True):
        assert torch.equal(ours, theirs)
    chunks = zip(disk.test_chunks(50), memory.test_chunks(50), strict=True)
    for ours, theirs in chunks:
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_training_from_disk_follows_training_from_memory(config):
    pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI: pip install 'lion-fast[dali]'")
    losses = []
    for loader in ("resident", "dali"):
        summary = train(TrainConfig.from_dict(config.to_dict() | {"loader": loader}))
        losses.append(summary.val_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert evaluate(summary.run, device="cpu").loss == summary.val_loss


def test_unreadable_files_are_named_or_counted(config, folder):
    pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI: pip install 'lion-fast[dali]'")
    broken = sorted((folder / "train").rglob("*.png"))[3]
    broken.write_bytes(broken.read_bytes()[:60])
    dali = TrainConfig.from_dict(config.to_dict() | {"loader": "dali"})
    with pytest.raises(UserError, match=broken.name):
        train(dali)
    summary = train(TrainConfig.from_dict(dali.to_dict() | {"skip_corrupt": True}))
    assert summary.num_skipped_images == 1
    stored = json.loads((summary.run / "summary.json").read_text())
    assert stored["num_skipped_images"] == 1


@pytest.mark.parametrize("how", ["truncated", "damaged"])
def test_a_broken_test_image_is_met_before_the_training_or_counted(config, folder, how):
    pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI: pip install 'lion-fast[dali]'")
    broken = sorted((folder / "test").rglob("*.png"))[3]
    content = bytearray(broken.read_bytes())
    content[-20] ^= 255
    broken.write_bytes(content[:-30] if how == "truncated" else content)
    dali = dataclasses.replace(config, loader="dali")
    with pytest.raises(UserError, match=f"{broken.name} cannot be decoded.*--skip-corrupt"):
        train(dali)
    assert not config.out.exists()
    summary = train(dataclasses.replace(dali, skip_corrupt=True))
    assert summary.num_skipped_images == 1 and summary.val_loss > 0


def test_damaged_files_do_not_make_decoders_write_to_the_terminal(config, folder, capfd):
    pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI: pip install 'lion-fast[dali]'")
    files = sorted((folder / "train").rglob("*.png"))
    files[1].write_bytes(b"\x89PNG and nothing of the kind")
    files[2].write_bytes(files[2].read_bytes()[:-30])
    content = bytearray(files[3].read_bytes())
    content[-20] ^= 255
    files[3].write_bytes(content)
    summary = train(dataclasses.replace(config, loader="dali", skip_corrupt=True))
    assert summary.num_skipped_images == 3
    assert capfd.readouterr().err == ""


def test_a_folder_with_one_class_is_refused(config, folder):
    for split in ("train", "test"):
        for name in ("class1", "class2", "class3"):
            (folder / split / name).rename(folder.parent / f"{split}-{name}")
    with pytest.raises(UserError, match="the only class is 'class0'"):
        open_data(config, "dali")
