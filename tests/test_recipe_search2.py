"""The second search of preset fast's recipe: what is run, what goes on, and what stays behind."""

import csv
from dataclasses import replace

import pytest
from study_runs import fill

from lion_fast.report.results import read_study
from lion_fast.resolutions import Resolutions
from lion_fast.study.studies import STUDIES
from searches import recipe_search2 as search


def test_every_point_is_another_run_and_no_study_uses_a_seed_of_the_search():
    configs = [search.config_of(point) for point in search.POINTS]
    assert len(set(map(str, configs))) == len(configs)
    assert [search.point_of(config) for config in configs] == list(
        map(search.name_of, search.POINTS)
    )
    reported = {seed for name in ("speedrun", "speedrun2") for seed in STUDIES[name].seeds}
    assert reported.isdisjoint(search.SEEDS_OF_ROUND[-1])


@pytest.mark.parametrize("point", search.POINTS, ids=search.name_of)
def test_a_run_ends_where_it_has_cost_the_most_it_may(point):
    config = search.config_of(point)
    course, share = Resolutions.parse(config.resolutions), config.batch_size / 128
    assert course.cost(config.max_steps, 32) * share <= search.MAX_COST
    assert course.cost(config.max_steps + 1, 32) * share > search.MAX_COST
    assert config.window * share == 100


def results(tmp_path, points, seeds, cost):
    """A round in which `cost(config)` is known of every run; None is no target."""
    study = search.study_of(points, seeds, search.START)

    def result(config):
        found = cost(config)
        return {
            "steps_to_target": found and 500,
            "cost_to_target": found,
            "step_milliseconds_median": 123.45,
        }

    fill(study, tmp_path, result)
    return read_study(study, tmp_path)


def test_the_points_of_least_mean_cost_go_on_and_one_without_the_target_never(tmp_path):
    points = [{}, {"muon_lr": 0.06}, {"lr": 1e-2}, {"aux_weight": 0.0}]

    def cost(config):
        if config.aux_weight == 0.0:
            return 200.0 if config.seed == 7 else None
        if config.lr == 1e-2:
            return 240.0
        return 250.0 if config.muon_lr == 0.06 else 260.0

    found = results(tmp_path, points, (7, 8), cost)
    assert search.best_of(points, found.runs, 2) == [{"lr": 1e-2}, {"muon_lr": 0.06}]


def test_cost_is_counted_in_batches_of_128(tmp_path):
    point = search.POINTS[-1]
    found = results(tmp_path, [point], (7,), lambda config: 120.0)
    assert point["batch_size"] == 256
    assert [search.cost_of(run) for run in found.runs] == [240.0]


def test_the_table_has_a_row_for_every_finished_run(tmp_path):
    found = results(tmp_path, [{}, {"muon_lr": 0.06}], (7,), lambda c: 250.0 if c.lr else None)
    runs = [found.runs[0], replace(found.runs[1], summary=found.runs[1].summary | {
        "cost_to_target": None, "steps_to_target": None,
    })]  # fmt: skip
    path = tmp_path / "table.csv"
    for _ in range(2):
        search.write_table(path, runs)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["point"] for row in rows] == ["{}", '{"muon_lr": 0.06}']
    assert [row["cost_to_target"] for row in rows] == ["250.0", ""]
    assert list(rows[0]) == search.COLUMNS and rows[0]["seed"] == "7"
