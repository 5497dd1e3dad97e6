"""The search of preset fast-v1's recipe: what is run, and what is left to run."""

import csv

from searches import recipe_search


def test_every_point_is_another_run_and_none_uses_a_seed_of_the_comparison():
    configs = [recipe_search.config_of(point) for point in recipe_search.POINTS]
    assert len({str(config) for config in configs}) == len(configs) == 20
    assert {config.seed for config in configs}.isdisjoint({42, 123, 456})
    for config in configs:
        assert config.max_steps * config.batch_size == recipe_search.MAX_IMAGES
        assert config.window * config.batch_size == 12_800


def table_of(tmp_path, images, precision="bf16"):
    """A table with these images to the target by point."""
    path = tmp_path / "table.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["point", "images_to_target", "precision"])
        writer.writeheader()
        for name, value in images.items():
            writer.writerow({"point": name, "images_to_target": value, "precision": precision})
    return path


def first_round(**better):
    """Images to the target of the first round: 80,000 but for the points given by their field."""
    images = {recipe_search.name_of(point): 80_000 for point in recipe_search.POINTS}
    return images | {
        recipe_search.name_of(p): better[name]
        for p in recipe_search.POINTS
        for name in better
        if list(p) == [name]
    }


def test_rows_are_read_in_their_own_precision(tmp_path):
    path = table_of(tmp_path, {"{}": 79616, '{"lr": 0.01}': ""})
    assert recipe_search.images_of(path, "bf16") == {"{}": 79616, '{"lr": 0.01}': None}
    assert recipe_search.images_of(path, "fp32") == {}
    assert recipe_search.images_of(tmp_path / "none.csv", "bf16") == {}


def test_the_second_round_waits_for_the_whole_first():
    images = first_round(aux_weight=70_000)
    del images[recipe_search.name_of({"lr": 1e-2})]
    assert recipe_search.second_round(images) == []


def test_the_second_round_combines_what_gained_and_repeats_the_best():
    # 79,000 gains too little, another initialiser is left aside.
    images = first_round(aux_weight=70_000, muon_momentum=75_000, weight_decay=79_000, init=60_000)
    union = {"aux_weight": 0.1, "muon_momentum": 0.9}
    assert recipe_search.second_round(images) == [union]
    for of_union, best in ((65_000, union), (71_000, {"aux_weight": 0.1})):
        done = images | {recipe_search.name_of(union): of_union}
        assert recipe_search.second_round(done)[1:] == [
            {"seed": 8}, {**best, "seed": 8}, {"seed": 9}, {**best, "seed": 9},
        ]  # fmt: skip


def test_the_second_round_is_at_most_seven_runs():
    names = ("aux_weight", "muon_momentum", "weight_decay", "muon_weight_decay", "batch_size")
    images = first_round(**{name: 70_000 + i for i, name in enumerate(names)})
    points = recipe_search.second_round(images)
    assert [len(point) for point in points] == [2, 3, 4]
    images |= {recipe_search.name_of(point): 60_000 for point in points}
    assert len(recipe_search.second_round(images)) == 7


def test_the_third_round_has_batches_of_128_and_each_of_its_two_points_with_three_seeds():
    configs = [recipe_search.config_of(point) for point in recipe_search.THIRD]
    assert {config.batch_size for config in configs} == {128}
    seeds = {weight: [] for weight in (0.1, 0.3)}
    for config in [recipe_search.config_of(recipe_search.COOLED), *configs]:
        seeds[config.aux_weight].append(config.seed)
    assert seeds == {0.1: [7, 8, 9], 0.3: [7, 8, 9]}


def test_a_schedule_is_as_long_in_images_at_another_batch_size():
    config = recipe_search.config_of(
        {"batch_size": 64, "schedule": "linear", "lr_cooldown_steps": 600, "seed": 8}
    )
    assert (config.lr_cooldown_steps, config.seed, config.max_steps) == (1200, 8, 1800)


def test_a_row_holds_the_crossing_and_its_setting(tmp_path):
    config = recipe_search.TrainConfig(
        growth_rate=2, block_layers=1, batch_size=16, max_steps=4, window=2, device="cpu",
        target_accuracy=0.01, stop_at_target=True, out=tmp_path,
    )  # fmt: skip
    row = recipe_search.measure({}, config)
    assert list(row) == recipe_search.COLUMNS
    assert row["images_to_target"] == 16 * row["steps_to_target"]
    assert row["point"] == "{}" and row["precision"] == "fp32"
