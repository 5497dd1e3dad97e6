import pytest
import torch

from lion_fast.errors import UserError
from lion_fast.training.folder.checkpoint import NAME, PREVIOUS, load_checkpoint, save_checkpoint


def state(step):
    """What every checkpoint holds, and which one this is."""
    weights = torch.full((1000,), float(step))
    return {
        "step": step,
        "training": {"weights": weights},
        "config": {},
        "history": torch.zeros(step, 4),
        "validations": [],
        "probes": [],
    }


def test_the_newest_checkpoint_is_loaded_and_the_one_before_kept(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step))
    assert load_checkpoint(tmp_path)["step"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([NAME, PREVIOUS])


@pytest.mark.parametrize("damage", ["truncate", "flip a byte", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path, damage):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    whole = (tmp_path / NAME).read_bytes()
    middle = whole.index(torch.full((1000,), 2.0).numpy().tobytes()) + 100
    broken = {
        "truncate": whole[: len(whole) // 2],
        "flip a byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
    }[damage]
    (tmp_path / NAME).write_bytes(broken)
    assert load_checkpoint(tmp_path)["step"] == 1


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    save_checkpoint(tmp_path, state(1))
    (tmp_path / NAME).rename(tmp_path / PREVIOUS)
    assert load_checkpoint(tmp_path)["step"] == 1


def test_no_whole_checkpoint_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / NAME).write_bytes(b"half")
    with pytest.raises(UserError, match="is damaged and no earlier checkpoint is whole"):
        load_checkpoint(tmp_path)


def test_a_full_disk_leaves_the_old_checkpoint_intact(tmp_path):
    save_checkpoint(tmp_path, state(1))
    (tmp_path / "checkpoint.pt.tmp").symlink_to("/dev/full")  # every write there fails with ENOSPC
    with pytest.raises(UserError, match="No space left on device.*intact"):
        save_checkpoint(tmp_path, state(2))
    assert load_checkpoint(tmp_path)["step"] == 1
    assert not (tmp_path / "checkpoint.pt.tmp").is_symlink()
    save_checkpoint(tmp_path, state(2))
    assert load_checkpoint(tmp_path)["step"] == 2


class Trap:
    """What a pickle executes when it is loaded without care."""

    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Trap(), "was not written by lion-fast"),
        (state(1) | {"config": Trap()}, "was not written by lion-fast"),
        (torch.zeros(3), "it holds a Tensor"),
        ({}, "it lacks 'training'"),
        ({key: value for key, value in state(1).items() if key != "probes"}, "it lacks 'probes'"),
        (state(1) | {"history": [1, 2]}, "it lacks 'history'"),
    ],
)
def test_a_foreign_or_tampered_checkpoint_is_one_line_without_bad_advice(
    tmp_path, content, words, capsys
):
    torch.save(content, tmp_path / NAME)
    with pytest.raises(UserError, match=words) as caught:
        load_checkpoint(tmp_path)
    assert "weights_only" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "executed" not in capsys.readouterr().out
