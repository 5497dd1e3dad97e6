"""The bars of preset fast against the one before it, and which schedule an accuracy is of."""

from dataclasses import replace

import pytest
from study_runs import fill

from lion_fast.config import TrainConfig
from lion_fast.presets import PRESETS
from lion_fast.report.judging import judge_all
from lion_fast.report.paper import published_accuracy, published_speedup, rates_in_words
from lion_fast.report.results import read_study
from lion_fast.report.tables import study_tables
from lion_fast.study.studies import STUDIES

TEN = STUDIES["speedrun2"].seeds


def judged(tmp_path, name, result, seeds=TEN):
    """Judgements on preset fast, and results, of a study with these runs."""
    study = STUDIES[name].override(seeds=seeds)
    fill(study, tmp_path, result)
    results = read_study(study, tmp_path)
    return [j for s, j in judge_all([results]) if s.source == "Preset fast"]


def runs(*, cost=0.5, seconds=0.5, points=0.0):
    """Runs in which the new recipe takes these shares of the old one's, and points more."""

    def result(config):
        new, by_seed = bool(config.resolutions), config.seed % 7
        return {
            "steps_to_target": 490 if new else 480 + by_seed,  # at full size the cost too
            "cost_to_target": (cost * 480 if new else 480) + by_seed * (1 + new),
            "seconds_to_target": (seconds * 100 if new else 100) + by_seed * (1 + new) / 10,
            "val_accuracy": 0.7 + (points / 100 + by_seed / 1e4 if new else 0.0),
        }

    return result


def test_every_bar_is_met_by_half_the_work_at_the_same_accuracy(tmp_path):
    cost, seconds, accuracy = judged(tmp_path, "speedrun2", runs())
    assert [j.verdict for j in (cost, seconds, accuracy)] == ["reproduced"] * 3
    assert {j.n for j in (cost, seconds, accuracy)} == {10}
    assert cost.figure.startswith("0.50") and accuracy.figure.startswith("+0.0")


@pytest.mark.parametrize(
    "missed, place", [({"cost": 0.53}, 0), ({"seconds": 0.56}, 1), ({"points": -0.6}, 2)]
)
def test_each_bar_is_missed_by_itself(tmp_path, missed, place):
    verdicts = [j.verdict for j in judged(tmp_path, "speedrun2", runs(**missed))]
    assert verdicts.pop(place) == "not reproduced"
    assert verdicts == ["reproduced"] * 2


def test_fewer_seeds_than_ten_decide_nothing(tmp_path):
    found = judged(tmp_path, "speedrun2", runs(), seeds=TEN[:9])
    assert [j.verdict for j in found] == ["undecided"] * 3
    assert all("9 of 10 seeds" in j.evidence for j in found)


def test_a_run_without_the_target_leaves_work_untested(tmp_path):
    def result(config):
        values = runs()(config)
        if config.seed == 42 and config.resolutions:
            values |= dict.fromkeys(("steps_to_target", "cost_to_target", "seconds_to_target"))
        return values

    cost, seconds, accuracy = judged(tmp_path, "speedrun2", result)
    assert (cost.verdict, seconds.verdict) == ("not tested", "not tested")
    assert "seed 42 has no value" in cost.evidence
    assert accuracy.verdict == "reproduced"


@pytest.mark.parametrize(
    "points, expected", [(0.5, "reproduced"), (-0.3, "reproduced"), (-1.2, "not reproduced")]
)
def test_after_3000_steps_a_point_may_be_lost_where_none_is_shown(tmp_path, points, expected):
    def result(config):
        new = bool(config.resolutions)
        spread = {42: 0.0, 123: 0.006, 456: -0.006}[config.seed]
        return {"val_accuracy": 0.8 + spread + (points / 100 if new else 0.0)}

    (found,) = judged(tmp_path, "speedrun2_whole", result, seeds=(42, 123, 456))
    assert found.verdict == expected and found.figure == f"{points:+.2f} points"


def test_final_accuracies_are_the_papers_under_both_schedules_and_steps_under_the_constant_one():
    paper, cooled = PRESETS["paper"], PRESETS["paper-cooled"]
    assert published_accuracy(paper) == published_accuracy(cooled) is not None
    assert published_speedup(paper) is not None and published_speedup(cooled) is None
    assert published_accuracy(replace(cooled, lr_cooldown_steps=2000)) is None
    assert published_accuracy(replace(paper, whiten=24)) is None


@pytest.mark.parametrize(
    "fields, words",
    [
        ({}, "constant rates"),
        ({"schedule": "linear"}, "constant rates"),
        ({"schedule": "linear", "lr_warmup_steps": 50}, "rates that warm up over 50 steps"),
        (
            {"schedule": "cosine", "lr_cooldown_steps": 3000},
            "rates cooled as a cosine to 0 of their height over 3,000 steps",
        ),
    ],
)
def test_rates_are_told_in_words(fields, words):
    assert rates_in_words(TrainConfig(**fields)) == words


@pytest.mark.parametrize(
    "name, words", [("after_3000", "constant rates"), ("cooled", "cooled linearly to 0")]
)
def test_a_report_says_which_schedule_its_accuracies_are_of(tmp_path, name, words):
    study = STUDIES[name].override(seeds=(42, 123))
    fill(study, tmp_path, lambda config: {"val_accuracy": 0.8})
    results = read_study(study, tmp_path)
    assert any(words in line for line in study_tables(results) if "After the last step" in line)
    accuracies = [j for s, j in judge_all([results]) if "validation accuracy after" in s.text]
    assert accuracies and all(words in j.evidence for j in accuracies)


def test_cooled_accuracies_are_judged_before_those_at_a_constant_rate(tmp_path):
    found = []
    for name in ("after_3000", "cooled"):
        study = STUDIES[name].override(seeds=(42, 123))
        fill(study, tmp_path, lambda config: {"val_accuracy": 0.8})
        found.append(read_study(study, tmp_path))
    judged = {s.text: j for s, j in judge_all(found)}
    text = "He-init's validation accuracy after 3,000 steps: DenseNet-DS, CIFAR-10 "
    (he,) = [judgement for statement, judgement in judged.items() if statement.startswith(text)]
    assert "cooled linearly" in he.evidence
