import dataclasses
import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from lion_fast import config as config_module
from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.kernels import dispatch
from lion_fast.presets import PRESETS


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


def test_strings_serve_as_paths_and_whole_numbers_as_floats():
    config = TrainConfig(out="a", data_dir="b", dataset=Path("c"), lr=1, seed=np.int64(3))
    assert config == TrainConfig(out=Path("a"), data_dir=Path("b"), dataset="c", lr=1.0, seed=3)
    assert [type(value) for value in (config.lr, config.seed)] == [float, int]


def test_workers_are_a_number_or_left_to_the_loader():
    assert TrainConfig().most_workers == TrainConfig(num_workers="auto").most_workers == 2
    assert TrainConfig(num_workers=5).most_workers == 5


def test_every_field_states_its_role():
    roles = {field.name: field.metadata["role"] for field in dataclasses.fields(TrainConfig)}
    assert set(roles.values()) == set(get_args(config_module.Role))
    assert config_module.fields_of("housekeeping") == {
        name for name, role in roles.items() if role == "housekeeping"
    }


def test_the_roles_are_those_that_stores_and_run_folders_were_written_with():
    kept = {"data_dir", "out", "checkpoint_every", "log_every", "tensorboard", "rendezvous_timeout"}
    assert config_module.fields_of("housekeeping") == kept


@pytest.mark.parametrize("values", [[], "lr", None])
def test_a_config_that_is_no_table_is_refused(values):
    with pytest.raises(UserError, match="a config is a table of fields"):
        TrainConfig.from_dict(values)


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
        ({"seed": 2**63}, "seed is 9223372036854775808: it must be at most"),
        ({"image_size": 1_000_000}, "image_size is 1000000: it must be at most 4096"),
        ({"max_steps": 10**30}, "it must be at most 9223372036854775807"),
        ({"aux_warmup_steps": 10**30}, "it must be at most 9223372036854775807"),
        ({"aux_weight": 1e308}, "aux_weight is 1e+308: it must be at most 1e+38"),
        ({"muon_lr": 1e308}, "muon_lr is 1e+308: it must be at most 1e+38"),
        ({"growth_rate": 10**9}, "growth_rate is 1000000000: it must be at most 4096"),
        ({"block_layers": 10**9}, "block_layers is 1000000000: it must be at most 1000"),
        ({"base_width": 10**9}, "base_width is 1000000000: it must be at most 4096"),
        ({"crop_padding": 10**9}, "crop_padding is 1000000000: it must be at most 4096"),
        ({"max_steps": 10.5}, "max_steps is 10.5: it must be a whole number"),
        ({"max_steps": None}, "max_steps is None: it must be a whole number"),
        ({"seed": True}, "seed is True: it must be a whole number"),
        ({"lr": "0.1"}, "lr is '0.1': it must be a number"),
        ({"lr": None}, "lr is None: it must be a number"),
        ({"growth_rate": [8]}, "growth_rate is [8]: it must be a whole number"),
        ({"graph_compile": 1}, "graph_compile is 1: it must be true or false"),
        ({"dataset": 7}, "dataset is 7: it must be a string"),
        ({"out": None}, "out is None: it must be a path"),
        ({"init": ["he"]}, "init is ['he']: take one of"),
        ({"num_workers": "two"}, "num_workers is 'two': it must be a whole number or auto"),
        ({"num_workers": -1}, "num_workers is -1: it must be a finite number of at least 0"),
        ({"num_workers": 1025}, "num_workers is 1025: it must be at most 1024"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(values, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        TrainConfig(**values)
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_named():
    with pytest.raises(UserError, match="'momentum'"):
        TrainConfig.from_dict({"momentum": 0.9})


def test_a_field_of_an_earlier_version_is_dropped_where_it_asks_for_nothing_else():
    old = TrainConfig(seed=7).to_dict() | {"fewer_launches": False}
    assert TrainConfig.from_dict(old) == TrainConfig(seed=7)


def test_a_field_of_an_earlier_version_is_named_where_it_asks_for_what_is_gone():
    with pytest.raises(UserError, match="fewer_launches is True.*set it to false"):
        TrainConfig.from_dict({"fewer_launches": True})


def test_resuming_lists_every_setting_that_differs():
    config = TrainConfig()
    config.check_resumable_as(TrainConfig(max_steps=5000, log_every=1, device="cpu", dataset="a"))
    with pytest.raises(UserError, match="lr 0.005 -> 0.1, seed 42 -> 7"):
        config.check_resumable_as(TrainConfig(lr=0.1, seed=7))
