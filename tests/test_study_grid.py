import csv
import dataclasses
from pathlib import Path

import pytest

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.presets import PRESETS
from lion_fast.study.grid import Cell, Study, course, grid, load_study
from lion_fast.study.studies import STUDIES, find_study


def small(**changes):
    values = {"name": "small", "title": "t", "base": TrainConfig(), "variants": grid(init=("he",))}
    return Study(**values | changes)


def test_a_grid_is_the_product_of_its_axes():
    assert grid(init=("he", "lsuv"), lr=(1.0, 2.0)) == (
        {"init": "he", "lr": 1.0},
        {"init": "he", "lr": 2.0},
        {"init": "lsuv", "lr": 1.0},
        {"init": "lsuv", "lr": 2.0},
    )


def test_every_variant_of_one_seed_comes_before_the_next_seed():
    study = small(variants=grid(init=("he", "lion_dg")), seeds=(7, 8))
    runs = [(cell.config.seed, cell.config.init) for cell in study.cells()]
    assert runs == [(7, "he"), (7, "lion_dg"), (8, "he"), (8, "lion_dg")]


def test_table_1_has_48_runs():
    assert len(STUDIES["table1"].cells()) == 48


@pytest.mark.parametrize("name", [s.name for s in STUDIES.values() if s.store_name])
def test_studies_with_one_store_share_runs_in_it(name, tmp_path):
    study, owner = STUDIES[name], STUDIES[STUDIES[name].store_name]
    assert {cell.key for cell in study.cells()} & {cell.key for cell in owner.cells()}
    assert study.base == owner.base
    assert study.folder(tmp_path) == owner.folder(tmp_path)


@pytest.mark.parametrize("name", ["table2", "table6", "exits"])
def test_a_part_of_table_1_needs_no_run_of_its_own(name):
    whole = {cell.key for cell in STUDIES["table1"].cells()}
    assert {cell.key for cell in STUDIES[name].cells()} <= whole


def test_the_speed_run_sets_preset_fast_v1_against_preset_paper():
    study, inits, bf16 = (STUDIES[n] for n in ("speedrun", "speedrun_init", "speedrun_bf16"))
    configs = {(c.variant["optimizer"], c.variant["init"]): c.config for c in study.cells()[:4]}
    assert course(configs["muon", "he"]) == course(PRESETS["fast-v1"])
    paper = dataclasses.replace(PRESETS["paper"], stop_at_target=True)
    assert course(configs["adamw", "lion_dg"]) == course(paper)
    fast = study.variants[-1]
    assert fast["init"] == "lion_dg" and study.baseline_of(fast)["init"] == "lion_dg"
    assert study.baseline_of(fast)["optimizer"] == "adamw"
    assert inits.baseline_of(fast) == {**fast, "init": "he"}
    assert {cell.key for cell in inits.cells()} == {cell.key for cell in study.cells()}
    assert bf16.baseline_of(bf16.variants[0]) == bf16.variants[1]
    assert study.seeds == (42, 123, 456)
    labels = [cell.label for cell in [*study.cells()[:4], *bf16.cells()[:2]]]
    of_study = ["paper he", "paper lion_dg", "fast-v1 he", "fast-v1 lion_dg"]
    assert labels == [*of_study, "fast-v1 he", "fast-v1 cpu_bf16=False he"]


def test_the_second_speed_run_sets_preset_fast_against_the_one_before_seed_by_seed():
    study, whole = STUDIES["speedrun2"], STUDIES["speedrun2_whole"]
    old, new = study.cells()[:2]
    assert course(old.config) == course(PRESETS["fast-v1"])
    assert course(new.config) == course(PRESETS["fast"])
    assert (old.label, new.label) == ("fast-v1 he", "fast he")
    assert study.baseline_of(study.variants[1]) == study.variants[0]
    assert len(study.seeds) == 10
    changes = {"lr_cooldown_steps": 3000, "lr_floor": 0.0, "stop_at_target": False}
    for cell, cooled in zip((old, new), whole.cells()[:2], strict=True):
        assert cooled.config == dataclasses.replace(cell.config, **changes)


def test_a_whitened_stem_is_compared_with_he_init_on_the_like():
    study = STUDIES["whitening"]
    assert study.baseline_of({"whiten": 24, "init": "lion_dg"}) == {"whiten": 24, "init": "he"}
    plain = {cell.key for cell in study.cells() if not cell.config.whiten}
    assert plain == {cell.key for cell in STUDIES["headline"].cells()}


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_variant_of_a_named_study_is_compared_or_a_baseline(study):
    compared = [study.baseline_of(variant) for variant in study.variants]
    for variant, baseline in zip(study.variants, compared, strict=True):
        assert baseline in study.variants or variant in compared


def test_a_key_depends_on_what_decides_the_numbers_and_on_nothing_else(tmp_path):
    def key(**changes):
        return Cell({}, TrainConfig(**changes)).key

    assert key() == key(out=tmp_path, data_dir=tmp_path, log_every=1, checkpoint_every=1)
    others = [key(lr=0.5), key(max_steps=9), key(seed=1), key(device="cpu"), key(init="he")]
    assert len({key(), *others}) == 6


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "44136fa355b3"),
        ({"lr": 0.01, "seed": 7}, "9b36cac68288"),
        (
            {
                "dataset": "cifar10",
                "arch": "resnet_ds",
                "init": "he",
                "engine": "compile",
                "eval_every": 100,
            },
            "ab4f4bb7369e",
        ),
        ({"device": "cpu", "gradient_ratio_every": 5, "log_every": 3}, "edd03237f5bd"),
    ],
)
def test_the_keys_of_stores_already_written_stay(changes, key):
    assert Cell({}, TrainConfig(**changes)).key == key


def test_a_key_survives_a_new_config_field():
    """Runs recorded before the field existed are those with its default."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Newer(TrainConfig):
        new_field: float = 1.0

    assert Cell({}, Newer(lr=0.5)).key == Cell({}, TrainConfig(lr=0.5)).key


def test_overrides_change_the_base_and_leave_what_the_variants_say():
    study = small(variants=grid(init=("he",), max_steps=(100,)), seeds=(1, 2))
    changed = study.override(seeds=(5,), max_steps=7, device="cpu", data_dir=None)
    (cell,) = changed.cells()
    assert (cell.config.seed, cell.config.max_steps, cell.config.device) == (5, 100, "cpu")
    assert study.override(seeds=None) == study


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": ({"inti": "he"},)}, "unknown field 'inti': did you mean init?"),
        ({"variants": ({"init": "she"},)}, "init is 'she'"),
        ({"variants": ({"seed": 3},)}, "seed cannot vary"),
        ({"variants": ({"out": "x"},)}, "out cannot vary"),
        ({"variants": ()}, "has no runs"),
        ({"seeds": ()}, "has no runs"),
        ({"seeds": (1, 1)}, "the same run twice"),
        ({"variants": ({"lr": TrainConfig().lr}, {})}, "the same run twice"),
        ({"name": "../up"}, "study name is '../up'"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(changes, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?").replace(".", r"\.")):
        small(**changes)


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_toml_file_spans_a_grid_and_adds_cells(tmp_path):
    text = """
    title = "Mine"
    preset = "paper"
    seeds = [1, 2]
    baseline = {init = "he", lr = 1}
    base = {weight_decay = 0, data_dir = "data"}
    axes = {init = ["he", "lion_dg"], lr = [1, 0.5]}
    [[cells]]
    init = "lsuv"
    """
    study = load_study(write(tmp_path, text))
    assert (study.name, study.title, study.seeds) == ("mine", "Mine", (1, 2))
    assert study.base == dataclasses.replace(
        PRESETS["paper"], weight_decay=0.0, data_dir=study.base.data_dir
    )
    assert study.base.data_dir.name == "data"
    assert study.variants == (*grid(init=("he", "lion_dg"), lr=(1.0, 0.5)), {"init": "lsuv"})
    # An integer would be another key than the same number as a fraction.
    assert isinstance(study.variants[0]["lr"], float)
    assert study.baseline_of({"init": "lion_dg", "lr": 0.5}) == {"init": "he", "lr": 1.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds = [", "mine.toml is not valid TOML"),
        ("seed = [1]", "unknown key 'seed': did you mean seeds?"),
        ("[axes]\nlrr = [1]", "unknown field 'lrr': did you mean lr?"),
        ("[base]\nlr = 'fast'", "lr is 'fast': it must be float"),
        ("[base]\nstop_at_target = 1", "stop_at_target is 1: it must be bool"),
        ("[base]\nmax_steps = 1.5", "max_steps is 1.5: it must be int"),
        ("[base]\nmax_steps = true", "max_steps is True: it must be int"),
        ("[axes]\nlr = 0.1", "axis lr is 0.1: give a list"),
        ("axes = 3", "axes is 3: write it as a table"),
        ("cells = 3", "cells is 3: write each as a table"),
        ("seeds = ['a']", "seeds is ['a']: give a list of integers"),
        ("preset = 'papers'", "preset is 'papers': did you mean paper?"),
        ("seeds = [1]", "has no runs"),
        ("preset = ['paper']", "preset is ['paper']: "),
        ("preset = {name = 'paper'}", "preset is {'name': 'paper'}: "),
        ("[base]\nseed = 5", "base has a seed, which would not run: give seeds"),
        ("[base]\nnum_workers = 'many'", "num_workers is 'many': it must be int or auto"),
        ("axes = {init = ['he']}\n[baseline]\ninit = 'hi'", "init is 'hi': take one of he"),
    ],
)
def test_a_toml_file_with_a_mistake_is_refused_with_one_line(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        load_study(write(tmp_path, text))
    assert words in str(caught.value)


def test_a_toml_file_may_leave_workers_to_the_loader(tmp_path):
    study = load_study(write(tmp_path, "axes = {num_workers = ['auto', 0]}"))
    assert [cell.config.num_workers for cell in study.cells()[:2]] == ["auto", 0]


def test_an_unknown_study_gets_a_suggestion(tmp_path):
    with pytest.raises(UserError, match="unknown study 'tabel1': did you mean table1?"):
        find_study("tabel1")
    with pytest.raises(UserError, match="cannot read the study"):
        find_study(str(tmp_path / "absent.toml"))


def test_a_toml_file_cannot_take_the_name_of_a_named_study(tmp_path):
    path = write(tmp_path, "name = 'table1'\naxes = {init = ['he']}")
    with pytest.raises(UserError, match="table1 is a built-in study"):
        find_study(str(path))


def test_the_reduced_studies_have_the_targets_that_were_chosen_before_their_runs():
    path = Path(__file__).parent.parent / "bench" / "results" / "target_calibration.csv"
    with open(path, newline="", encoding="utf-8") as file:
        chosen = {
            (row["dataset"], int(row["num_classes"])): float(row["target_accuracy"])
            for row in csv.DictReader(file)
        }
    configs = [
        cell.config
        for name in ("reduced-boundary", "reduced-sensitivity")
        for cell in STUDIES[name].cells()
    ]
    targets = {(c.dataset, c.num_classes or 10): c.target_accuracy for c in configs}
    assert targets == chosen
    assert {(c.base_width, c.arch, c.max_steps) for c in configs} == {(16, "resnet_ds", 600)}
