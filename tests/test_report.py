import json
import re

import pytest
from report_pages import line_of, page, report
from study_runs import ENVIRONMENT, RESOLVED, fill, metrics, probes

from lion_fast.cli import main
from lion_fast.report.comparisons import ACCURACY, STEPS, compare_variants, conclusion
from lion_fast.report.paper import TABLE_1, TABLE_6, TABLE_7
from lion_fast.report.plots import (
    draw_curves,
    draw_difference,
    draw_gradients,
    draw_seeds,
    draw_study,
)
from lion_fast.report.results import read_study, study_as_stored
from lion_fast.study.studies import STUDIES, find_study

QUICKSTART = STUDIES["quickstart"]


TABLE6 = STUDIES["table6"]


def as_in_the_paper(config):
    return {
        "val_accuracy": TABLE_6[config.init][config.seed] / 100,
        "steps_to_target": 1000 + config.seed,
    }


def test_the_papers_table_6_gives_its_means_and_deviations_and_no_distance_to_it(tmp_path):
    fill(TABLE6, tmp_path, as_in_the_paper)
    rows = compare_variants(read_study(TABLE6, tmp_path), ACCURACY)
    for row in rows:
        mean, deviation, _ = TABLE_1["cifar10", "densenet_ds", row.config.init]
        assert round(row.sample.mean, 2) == mean
        assert round(row.sample.population_std, 2) == deviation
    assert report(tmp_path, "table6") == 0
    text = page(tmp_path)
    assert "| 80.59 ± 0.43 | 80.59 ± 0.35 | +0.00 |" in line_of(text, "lion_dg", "± 0.35")
    assert "| 78.91 (paper 78.91) |" in line_of(text, "densenet_ds lsuv", "(paper")


def test_a_report_is_a_page_twice_numbers_and_pictures(tmp_path, capsys):
    fill(QUICKSTART, tmp_path, lambda config: {"steps_to_target": 80 + config.seed % 5})
    assert report(tmp_path, "quickstart") == 0
    printed = capsys.readouterr().out.split()
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {path.rpartition("/")[2] for path in printed} == names
    pictures = {f"quickstart_{name}.png" for name in ("curves", "difference", "seeds")}
    assert names == {"studies.md", "studies.html", "studies.json"} | pictures
    assert set(re.findall(r"!\[.*\]\((.*)\)", page(tmp_path))) == pictures


def test_the_html_page_needs_no_other_file(tmp_path):
    fill(QUICKSTART, tmp_path, lambda config: {"steps_to_target": 80})
    report(tmp_path, "quickstart")
    html = (tmp_path / "report" / "studies.html").read_text(encoding="utf-8")
    assert html.count("<img") == 3
    assert html.count('src="data:image/png;base64,') == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert html.count("<table>") == page(tmp_path).count("\n\n| ")


def test_the_json_file_holds_every_value_by_seed(tmp_path):
    fill(QUICKSTART, tmp_path, lambda config: {"steps_to_target": 80 + config.seed})
    report(tmp_path, "quickstart")
    values = json.loads((tmp_path / "report" / "studies.json").read_text(encoding="utf-8"))
    (he, lion) = values["studies"]["quickstart"]["steps_to_target"]
    assert he["by_seed"] == {"42": 122, "123": 203, "456": 536}
    assert lion["variant"] == {"init": "lion_dg"}
    assert lion["comparison"]["verdict"] == "no difference shown at n = 3"


def test_a_report_needs_none_of_the_flags_that_the_study_ran_with(tmp_path):
    asked = TABLE6.override(seeds=(7, 8), engine="compile", stop_at_target=True)
    fill(asked, tmp_path, lambda config: {"steps_to_target": 1000})
    results = read_study(TABLE6, tmp_path)
    assert results.study.seeds == (7, 8)
    assert len(results.runs) == 8
    assert {run.config.engine for run in results.runs} == {"compile"}
    assert report(tmp_path, "table6") == 0
    assert "stopped at the target" in page(tmp_path)
    assert "is not compared with the paper's" in page(tmp_path)


@pytest.mark.parametrize("flags", [["--status"], ["--export", "csv"]])
def test_status_and_export_need_none_of_them_either(tmp_path, capsys, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    asked = QUICKSTART.override(seeds=(7, 8), max_steps=50)
    fill(asked, tmp_path, lambda config: {"steps_to_target": None})
    assert main(["study", "quickstart", "--out", str(tmp_path), *flags]) == 0
    printed = capsys.readouterr().out
    assert "4 runs: 4 done" in printed or "summaries.csv" in printed


def test_a_study_that_never_ran_is_as_it_was_named(tmp_path):
    assert study_as_stored(TABLE6, tmp_path) == TABLE6


def test_studies_in_one_store_keep_their_own_runs_and_seeds(tmp_path):
    fill(TABLE6, tmp_path, as_in_the_paper)
    table7 = STUDIES["table7"].override(seeds=(42,))
    fill(table7, tmp_path, lambda config: {"steps_to_target": 1200})
    results = read_study(STUDIES["table7"], tmp_path)
    reached = {row.label: len(row.values) for row in compare_variants(results, STEPS)}
    assert reached == {"he": 3, "fixup": 1, "rezero": 1}


@pytest.mark.parametrize("engine", ["eager", "compile"])
def test_a_precision_that_the_variants_set_is_no_mixture_but_an_engine_is(tmp_path, engine):
    study = STUDIES["speedrun_bf16"]

    def in_its_precision(config):
        if config.cpu_bf16:
            resolved = RESOLVED | {"precision": "bf16"}
        else:
            resolved = RESOLVED | {"engine": engine}
        return {"steps_to_target": 600, "resolved": resolved}

    fill(study, tmp_path, in_its_precision)
    report(tmp_path, "speedrun_bf16")
    assert "precision bf16" in page(tmp_path) and "precision fp32" in page(tmp_path)
    assert ("**Mixed:**" in page(tmp_path)) == (engine != RESOLVED["engine"])


def test_steps_are_shown_beside_those_of_table_7(tmp_path):
    study = STUDIES["table7"]
    fill(
        study,
        tmp_path,
        lambda c: {"steps_to_target": TABLE_7.get(c.init, {}).get(c.seed, 1000 + c.seed % 7)},
    )
    report(tmp_path, "table7")
    assert "| 1,225 ± 118 | 1,225 ± 96 | +0 |" in line_of(page(tmp_path), "fixup", "± 96")
    assert "| 1,089 (-8.5 %, paper 1,089) |" in line_of(page(tmp_path), "fixup", "(-")


def test_runs_from_different_machines_are_flagged(tmp_path):
    def on_two_machines(config):
        cpu = "Another" if config.seed == 42 else ENVIRONMENT["cpu"]
        return {"steps_to_target": 80, "environment": ENVIRONMENT | {"cpu": cpu}}

    fill(QUICKSTART, tmp_path, on_two_machines)
    report(tmp_path, "quickstart")
    assert "**Mixed:**" in page(tmp_path)
    assert "cpu Another" in page(tmp_path)


def test_runs_from_one_machine_are_not_flagged(tmp_path):
    fill(QUICKSTART, tmp_path, lambda config: {"steps_to_target": 80, "jobs": 2})
    report(tmp_path, "quickstart")
    assert "**Mixed:**" not in page(tmp_path)
    assert "Up to 2 runs shared the machine" in page(tmp_path)


def he_alone(config):
    if config.init == "he":
        return {"steps_to_target": 80}
    return "loss is nan at step 3: lower --lr" if config.seed == 42 else None


def test_failed_and_missing_runs_are_listed_and_the_rest_is_reported(tmp_path):
    fill(QUICKSTART, tmp_path, he_alone)
    assert report(tmp_path, "quickstart") == 0
    text = page(tmp_path)
    assert "3 of 6 runs are finished, 1 failed" in text
    assert "- failed: lion_dg seed 42: `loss is nan at step 3: lower --lr`" in text
    assert "- not run: lion_dg seed 123" in text


def test_a_target_that_some_runs_miss_gives_no_mean_and_no_test(tmp_path):
    def sometimes(config):
        reached = config.init == "he" or config.seed != 42
        return {"steps_to_target": 80 + config.seed if reached else None}

    fill(QUICKSTART, tmp_path, sometimes)
    report(tmp_path, "quickstart")
    text = page(tmp_path)
    assert line_of(text, "| lion_dg", "2 of 3").startswith("| lion_dg | 2 of 3 | – |")
    assert "not compared: 1 of 6 runs have no value" in text
    assert "not reached" in line_of(text, "lion_dg", "203")


def test_networks_with_fewer_heads_leave_their_columns_empty(tmp_path):
    def heads(config):
        return {"val_accuracy_per_head": [0.1] * (4 if config.arch == "resnet_ds" else 3)}

    fill(STUDIES["exits"].override(seeds=(42, 123)), tmp_path, heads)
    report(tmp_path, "exits")
    text = page(tmp_path)
    assert "| head 2 (aux) | main head |" in re.sub(" +", " ", text)
    assert line_of(text, "cifar10 densenet_ds he", "10.00 ± 0.00").count("10.00 ± 0.00") == 3


def test_columns_that_no_run_fills_are_left_out(tmp_path):
    fill(QUICKSTART, tmp_path, lambda config: {"steps_to_target": 80})
    fill(TABLE6, tmp_path, as_in_the_paper)
    report(tmp_path, "quickstart")
    assert "ours - paper" not in page(tmp_path)
    report(tmp_path, "table6")
    assert page(tmp_path).count("ours - paper") == 2


def test_one_seed_gives_no_p_value_and_says_so(tmp_path):
    study = QUICKSTART.override(seeds=(42,))
    fill(study, tmp_path, lambda config: {"steps_to_target": 80})
    report(tmp_path, "quickstart")
    assert "no p value from fewer than 2 seeds (n = 1)" in page(tmp_path)
    assert conclusion(read_study(study, tmp_path)) == [
        "he: 95 % after 80 steps (n = 1)",
        "lion_dg: 95 % after 80 steps (n = 1); speedup +0.0 %:"
        " not tested: no p value from fewer than 2 seeds (n = 1)",
    ]


def test_nothing_is_concluded_where_nothing_ran(tmp_path):
    fill(QUICKSTART, tmp_path, lambda config: None)
    assert conclusion(read_study(QUICKSTART, tmp_path)) == [
        "he: no finished run (0 failed, 3 missing)",
        "lion_dg: no finished run (0 failed, 3 missing)",
    ]


def test_the_conclusion_names_variants_without_a_finished_run(tmp_path):
    fill(QUICKSTART, tmp_path, he_alone)
    lines = conclusion(read_study(QUICKSTART, tmp_path))
    assert lines[1] == "lion_dg: no finished run (1 failed, 2 missing)"


TOML = """
title = "Mine"
preset = "quickstart"
[axes]
init = ["he", "lion_dg"]
lr = [0.001, 0.01]
"""


def test_a_toml_study_that_never_ran_is_told_its_own_command(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    assert report(tmp_path, str(path)) == 2
    assert f"run `lion-fast study {path}` first" in capsys.readouterr().err
    fill(find_study(str(path)), tmp_path, lambda config: None)
    assert report(tmp_path, str(path)) == 2
    assert f"run `lion-fast study {path}` first" in capsys.readouterr().err


def test_a_users_own_grid_shows_its_axes_and_nothing_of_the_papers(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    fill(find_study(str(path)), tmp_path, lambda config: {"steps_to_target": 80})
    assert report(tmp_path, str(path)) == 0
    text = page(tmp_path)
    assert "lr 0.001, 0.01, at most 400 steps" in text
    assert "0.0005" not in text  # the preset's rate, with which nothing ran
    assert "tatement" not in text and "not tested: no p" not in text
    assert "bench_overhead" not in text


def test_the_price_of_an_initialisation_is_told_in_steps(tmp_path):
    def priced(config):
        return {"init_seconds": 39.0 if config.init == "gradinit" else 0.01}

    fill(STUDIES["gradinit"], tmp_path, priced)
    report(tmp_path, "gradinit")
    # At 100 ms a step.
    times = page(tmp_path).partition("#### Time")[2]
    assert line_of(times, "| gradinit ").endswith("| 390.0 |")
    assert line_of(times, "| he ").endswith("| 0.1 |")


def test_runs_too_short_to_reach_a_target_have_no_table_of_steps(tmp_path):
    study = STUDIES["figure1"].override(seeds=(42, 123))

    def short(config):
        return {"steps_to_target": None} if config.max_steps == 100 else None

    fill(study, tmp_path, short)
    assert report(tmp_path, "figure1") == 0
    assert "not reached" not in page(tmp_path) and "Steps to" not in page(tmp_path)
    fill(study, tmp_path, lambda c: None if c.max_steps == 100 else {"steps_to_target": 1200})
    report(tmp_path, "figure1")
    assert line_of(page(tmp_path), "he gradient_ratio_every=20 ", "2 of 2")
    assert "0 of 2" not in page(tmp_path)


def test_gradient_ratios_are_shown_with_the_growth_of_the_heads(tmp_path):
    study = STUDIES["figure1"].override(seeds=(42,))

    def probed(config):
        zeroed = config.init == "lion_dg"
        steps = range(20)
        table = probes([0.0 if zeroed else 0.5, *[0.25] * 19], [0.125 * step for step in steps])
        return {"tables": {"metrics": metrics([None] * 20), "probes": table}}

    fill(study, tmp_path, probed)
    assert report(tmp_path, "figure1") == 0
    line = line_of(page(tmp_path), "lion_dg gradient_ratio_every=1 ", "1.000 |")
    assert "| 42 | 0.00 | 0.250 | 0.250 (20) | 0.125, 1.000 | 0.125, 1.000 |" in line
    assert (tmp_path / "report" / "figure1_gradients.png").exists()


def test_the_growth_of_heads_under_descent_stands_beside_its_line(tmp_path):
    study = STUDIES["proposition2"].override(seeds=(42,))

    def probed(config):
        norms = [0.01 * t if t < 5 else 0.04 for t in range(20)]
        return {"tables": {"metrics": metrics([None] * 20), "probes": probes(norms, norms)}}

    fill(study, tmp_path, probed)
    assert report(tmp_path, "proposition2") == 0
    # C = norm after one update / lr; after 5 updates the norm stands still, 20 % below the line.
    text = " ".join(page(tmp_path).split())
    sampled = "batch_size=128 train_fraction=1.0 max_steps=100"
    assert f"sgd {sampled} | 0 | 1 | 2.00 | 19 | 5 | 0.211 |" in text
    assert f"adamw {sampled} | 0 | 1 | – | 19 | 5 | 0.211 |" in text
    assert (tmp_path / "report" / "proposition2_growth.png").exists()


def test_settings_stand_side_by_side_with_the_spread_of_each_method(tmp_path):
    def steps(config):
        sensitive = 1000 * (config.aux_weight - 0.3) if config.init == "he" else 0
        return {"steps_to_target": round(1000 + sensitive)}

    fill(STUDIES["alpha"], tmp_path, steps)
    report(tmp_path, "alpha")
    text = page(tmp_path)
    assert "| aux_weight=0.1 | 800 | 1,000 (-25.0 %) |" in line_of(text, "800 ", "(-25.0")
    assert "| 40.0 % | 0.0 % |" in line_of(text, "(largest - smallest) / mean")


def test_a_picture_without_content_is_not_drawn(tmp_path):
    fill(QUICKSTART, tmp_path, lambda config: {"tables": {"metrics": metrics([None] * 3)}})
    results = read_study(QUICKSTART, tmp_path)
    assert draw_seeds(results, tmp_path / "a.png") is False
    assert draw_difference(results, tmp_path / "a.png") is False
    assert draw_gradients(results, tmp_path / "a.png") is False
    assert draw_curves(results, tmp_path / "a.png") is False
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("name", [n for n in STUDIES if n != "quickstart"])
def test_every_named_study_can_be_drawn(tmp_path, name):
    study = STUDIES[name].override(seeds=(42, 123))
    fill(study, tmp_path, lambda config: {"steps_to_target": 3, "tables": {"metrics": metrics()}})
    drawn = draw_study(read_study(study, tmp_path), tmp_path)
    assert sum(path is not None for path in drawn.values()) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quikstart"], "unknown study 'quikstart': did you mean quickstart?"),
        (["quickstart"], "run `lion-fast study quickstart` first"),
        (["table6"], "no run of table6 is finished"),
        (["a.json"], "unknown study 'a.json'"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_in_one_line(tmp_path, capsys, arguments, words):
    fill(TABLE6, tmp_path, lambda config: None)
    assert report(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_an_out_that_is_a_file_is_refused(tmp_path, capsys):
    fill(QUICKSTART, tmp_path, lambda config: {"steps_to_target": 80})
    (tmp_path / "report").write_text("mine")
    assert report(tmp_path, "quickstart") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "report").read_text() == "mine"
