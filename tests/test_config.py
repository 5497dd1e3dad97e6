import json
from pathlib import Path
from typing import get_args

import pytest

from lion_fast import config as config_module
from lion_fast.config import PRESETS, TrainConfig
from lion_fast.errors import UserError
from lion_fast.kernels import dispatch


def test_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.batch_size, config.aux_weight, config.weight_decay) == (128, 0.3, 0.05)
    assert (config.max_steps, config.target_accuracy, config.window) == (3000, 0.70, 100)


def test_the_two_spellings_of_impl_agree():
    assert get_args(config_module.Impl) == get_args(dispatch.Impl)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_survives_json(preset):
    config = PRESETS[preset]
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_paths_come_back_as_paths():
    config = TrainConfig(data_dir=Path("a/b"))
    assert TrainConfig.from_dict(config.to_dict()).data_dir == Path("a/b")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"init": "lion"}, "init is 'lion': take one of he, xavier, lion_dg"),
        ({"target_accuracy": 70.0}, "target_accuracy is 70.0: give a fraction"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"window": 0}, "window is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(values, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")) as caught:
        TrainConfig(**values)
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_named():
    with pytest.raises(UserError, match="'momentum'"):
        TrainConfig.from_dict({"momentum": 0.9})


def test_resuming_lists_every_setting_that_differs():
    config = TrainConfig()
    config.check_resumable_as(TrainConfig(max_steps=5000, log_every=1))
    with pytest.raises(UserError, match="lr 0.005 -> 0.1, seed 42 -> 7"):
        config.check_resumable_as(TrainConfig(lr=0.1, seed=7))
