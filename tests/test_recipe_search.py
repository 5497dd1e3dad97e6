"""The search of preset fast's recipe: what is run, and what is left to run."""

import csv

import recipe_search


def test_every_point_is_another_run_and_none_uses_a_seed_of_the_comparison():
    configs = [recipe_search.config_of(point) for point in recipe_search.POINTS]
    assert len({str(config) for config in configs}) == len(configs) == 20
    assert {config.seed for config in configs}.isdisjoint({42, 123, 456})
    for config in configs:
        assert config.max_steps * config.batch_size == recipe_search.MAX_IMAGES
        assert config.window * config.batch_size == 12_800


def test_a_point_that_stands_in_the_table_is_not_run_again(tmp_path):
    table = tmp_path / "table.csv"
    assert recipe_search.missing(table, "fp32") == list(recipe_search.POINTS)
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["point", "precision"])
        writer.writeheader()
        name = recipe_search.name_of(recipe_search.POINTS[1])
        writer.writerow({"point": name, "precision": "bf16"})
    assert recipe_search.missing(table, "fp32") == list(recipe_search.POINTS)
    rest = recipe_search.missing(table, "bf16")
    assert rest == [recipe_search.POINTS[0], *recipe_search.POINTS[2:]]


def test_a_row_holds_the_crossing_and_its_setting(tmp_path):
    config = recipe_search.TrainConfig(
        growth_rate=2, block_layers=1, batch_size=16, max_steps=4, window=2, device="cpu",
        target_accuracy=0.01, stop_at_target=True, out=tmp_path,
    )  # fmt: skip
    row = recipe_search.measure({}, config)
    assert list(row) == recipe_search.COLUMNS
    assert row["images_to_target"] == 16 * row["steps_to_target"]
    assert row["point"] == "{}" and row["precision"] == "fp32"
