from dataclasses import replace

import pytest
from study_runs import fill, metrics, probes

from lion_fast.config import TrainConfig
from lion_fast.report.judging import judge_all
from lion_fast.report.paper import (
    published_accuracy,
    published_accuracy_by_seed,
    published_speedup,
    published_steps,
)
from lion_fast.report.results import read_study
from lion_fast.study.studies import STUDIES

PAPER = TrainConfig(dataset="cifar10", init="lion_dg")
SPREAD = {42: 0, 123: 9, 456: -9}


def judged(tmp_path, study, result, *, seeds=(42, 123, 456), **base):
    """Every judgement by the start of its statement."""
    study = STUDIES[study].override(seeds=seeds, **base)
    fill(study, tmp_path, result)
    found = judge_all([read_study(study, tmp_path)])
    return {f"{statement.source}: {statement.text}": verdict for statement, verdict in found}


def verdict(judgements, *words):
    """The only judgement of a statement that holds all the words."""
    (found,) = [j for text, j in judgements.items() if all(word in text for word in words)]
    return found


def steps(**of_init):
    """Runs that take these steps, a few more or fewer by seed; 1,000 where none are given."""

    def result(config):
        value = of_init.get(config.init, 1000)
        return {"steps_to_target": None if value is None else value + SPREAD.get(config.seed, 0)}

    return result


@pytest.mark.parametrize(
    ("steps_of_lion", "expected"),
    [
        (900, "reproduced"),
        (998, "equivalent within bounds"),
        (1100, "not reproduced"),
        (None, "not tested"),
    ],
)
def test_a_speedup_is_reproduced_where_its_steps_are_fewer(tmp_path, steps_of_lion, expected):
    judgements = judged(tmp_path, "table6", steps(lion_dg=steps_of_lion))
    found = verdict(judgements, "Table 1: LION-DG", "DenseNet-DS, CIFAR-10")
    assert found.verdict == expected
    if expected != "not tested":
        assert f"{100 - steps_of_lion / 10:+.1f} %" in found.evidence
        assert "paper +8.3 %" in found.evidence


@pytest.mark.parametrize("words", [["Table 1: LION-DG", "CIFAR-10"], ["comparable"]])
def test_a_difference_is_not_tested_with_one_seed(tmp_path, words):
    judgements = judged(tmp_path, "table6", steps(lion_dg=500), seeds=(42,))
    found = verdict(judgements, *words, "DenseNet-DS")
    assert found.verdict == "not tested"
    assert "fewer than 2 seeds" in found.evidence


def test_only_statements_on_runs_of_the_study_are_judged(tmp_path):
    assert judged(tmp_path, "quickstart", steps(lion_dg=10)) == {}
    judgements = judged(tmp_path, "table6", steps(lion_dg=900))
    assert len(judgements) == 9
    assert not any("ResNet" in text or "CIFAR-100" in text for text in judgements)


@pytest.mark.parametrize(
    ("steps_of_lion", "seeds", "expected"),
    [
        # Seed 42 is faster and seed 123 slower: nothing is shown, nothing excluded.
        ((800, 1150, 900), (42, 123, 456), "undecided"),
        # Within 5 % on the whole.
        ((990, 1062, 945), (42, 123, 456), "equivalent within bounds"),
        # Neither shown nor within 5 %, but 8.3 % fewer lies outside the interval.
        ((1030, 1085, 1060), (42, 123, 456), "not reproduced"),
    ],
)
def test_what_is_not_shown_is_told_apart(tmp_path, steps_of_lion, seeds, expected):
    of_seed = dict(zip(seeds, steps_of_lion, strict=True))
    he = {42: 1000, 123: 1060, 456: 940}

    def result(config):
        lion = config.init == "lion_dg"
        return {"steps_to_target": of_seed[config.seed] if lion else he[config.seed]}

    judgements = judged(tmp_path, "headline", result)
    found = verdict(judgements, "Table 1: LION-DG", "sooner")
    assert (found.verdict, found.n) == (expected, 3)


@pytest.mark.parametrize(
    ("seeds", "accuracy", "expected"),
    [
        ((42, 123, 456), 0.815, "reproduced"),
        ((42, 123, 456), 0.78, "not reproduced"),
        ((42,), 0.811, "undecided"),
    ],
)
def test_an_accuracy_is_the_papers_within_a_point_of_more_than_one_seed(
    tmp_path, seeds, accuracy, expected
):
    judgements = judged(tmp_path, "headline", lambda c: {"val_accuracy": accuracy}, seeds=seeds)
    found = verdict(judgements, "Table 1, 2, 6: He-init's validation accuracy")
    assert (found.verdict, found.n) == (expected, len(seeds))
    assert f"{100 * accuracy - 81.11:+.2f} points" in found.evidence


@pytest.mark.parametrize(("fixup", "expected"), [(1225, "reproduced"), (1300, "not reproduced")])
def test_the_steps_of_table_7_are_the_papers_within_5_percent(tmp_path, fixup, expected):
    judgements = judged(tmp_path, "table7", steps(fixup=fixup))
    assert verdict(judgements, "Fixup's steps").verdict == expected


def test_what_has_not_run_yet_is_not_tested_and_the_reason_names_it(tmp_path):
    def only_he(config):
        return {"steps_to_target": 1000} if config.init == "he" else None

    found = verdict(judged(tmp_path, "gradinit", only_he), "GradInit")
    assert found[:2] == ("not tested", "no finished runs of cifar10 densenet_ds gradinit")


def test_the_most_telling_of_several_studies_decides(tmp_path):
    part = STUDIES["table6"]
    fill(part, tmp_path, steps(lion_dg=900))
    whole, part = (read_study(STUDIES[name], tmp_path) for name in ("table1", "table6"))
    for studies in ([whole], [part], [part, whole]):
        judgements = {s.text: j for s, j in judge_all(studies)}
        assert verdict(judgements, "LION-DG", "sooner", "DenseNet-DS").verdict == "reproduced"


@pytest.mark.parametrize(("accuracy", "expected"), [(0.8, "reproduced"), (0.78, "not reproduced")])
def test_comparable_accuracy_is_within_a_point(tmp_path, accuracy, expected):
    def result(config):
        value = accuracy if config.init == "lion_dg" else 0.805
        return {"val_accuracy": value + SPREAD[config.seed] / 1e3}

    judgements = judged(tmp_path, "table6", result)
    assert verdict(judgements, "comparable", "DenseNet-DS").verdict == expected


@pytest.mark.parametrize(
    ("best", "expected"), [("lion_lsuv", "reproduced"), ("lsuv", "not reproduced")]
)
def test_the_most_accurate_is_the_one_with_the_highest_mean(tmp_path, best, expected):
    judgements = judged(
        tmp_path, "table6", lambda c: {"val_accuracy": 0.82 if c.init == best else 0.81}
    )
    assert verdict(judgements, "hybrid is the most accurate").verdict == expected


def test_accuracy_is_not_judged_before_3000_steps(tmp_path):
    judgements = judged(tmp_path, "table6", steps(), stop_at_target=True)
    for words in (["comparable", "DenseNet-DS"], ["hybrid is the most accurate"]):
        found = verdict(judgements, *words)
        assert found[:2] == ("not tested", "the runs did not train the paper's 3,000 steps")


@pytest.mark.parametrize(
    ("reached", "max_steps", "expected"),
    [(None, 3000, "reproduced"), (2900, 3000, "not reproduced"), (None, 300, "not tested")],
)
def test_a_target_is_out_of_reach_only_after_all_steps(tmp_path, reached, max_steps, expected):
    judgements = judged(
        tmp_path, "table1", lambda c: {"steps_to_target": reached}, max_steps=max_steps
    )
    assert verdict(judgements, "reaches 70 % on CIFAR-100").verdict == expected


@pytest.mark.parametrize(
    ("fixup", "rezero", "expected"),
    [
        (1005, 995, "reproduced"),
        (1200, 1200, "reproduced"),
        (800, 995, "not reproduced"),
        (None, 995, "not tested"),
    ],
)
def test_fixup_and_rezero_bring_nothing_unless_one_is_faster(tmp_path, fixup, rezero, expected):
    judgements = judged(tmp_path, "table7", steps(fixup=fixup, rezero=rezero))
    assert verdict(judgements, "Fixup and ReZero").verdict == expected


@pytest.mark.parametrize(
    ("gradinit", "expected"),
    [(1300, "reproduced"), (1001, "equivalent within bounds"), (700, "not reproduced")],
)
def test_gradinit_is_slower_where_its_steps_are_more(tmp_path, gradinit, expected):
    judgements = judged(tmp_path, "gradinit", steps(gradinit=gradinit))
    assert verdict(judgements, "GradInit").verdict == expected


@pytest.mark.parametrize("study", ["boundary", "reduced-boundary"])
@pytest.mark.parametrize(
    ("residual", "expected"), [(1300, "reproduced"), (1001, "equivalent within bounds")]
)
def test_theorem_1_holds_where_the_residual_placement_is_slower(
    tmp_path, study, residual, expected
):
    def result(config):
        harmed = config.placement == "residual" and config.init == "lion_dg"
        return {"steps_to_target": (residual if harmed else 1000) + SPREAD[config.seed]}

    judgements = judged(tmp_path, study, result)
    assert verdict(judgements, "Theorem 1").verdict == expected


@pytest.mark.parametrize(("nearest", "expected"), [(1010, "reproduced"), (1050, "not reproduced")])
def test_corollary_1_holds_where_some_ramp_takes_as_many_steps(tmp_path, nearest, expected):
    ramps = {0: 1400, 100: 1300, 300: nearest, 1000: 1200}

    def result(config):
        value = 1000 if config.init == "lion_dg" else ramps[config.aux_warmup_steps]
        return {"steps_to_target": value + SPREAD[config.seed]}

    found = verdict(judged(tmp_path, "warmup", result), "Corollary 1")
    assert found.verdict == expected
    assert "nearest ramp (300 steps)" in found.evidence


def test_corollary_1_waits_for_every_ramp_and_seed(tmp_path):
    def result(config):
        is_missing = config.aux_warmup_steps == 1000 and config.seed == 456
        return None if is_missing else {"steps_to_target": 1000 + SPREAD[config.seed]}

    found = verdict(judged(tmp_path, "warmup", result), "Corollary 1")
    assert found.verdict == "not tested"
    assert "14 of 15 runs have finished" in found.evidence


@pytest.mark.parametrize(
    ("of_lion", "expected", "n"),
    [
        ({42: 20, 123: 40, 456: 60}, "reproduced", 3),
        ({42: 300, 123: 120, 456: 200}, "not reproduced", 3),
        ({42: 20, 123: 40, 456: 200}, "undecided", 3),
        ({42: 20}, "not tested", 0),
    ],
)
def test_no_tuning_is_needed_where_steps_spread_less_with_every_seed(
    tmp_path, of_lion, expected, n
):
    def result(config):
        spread = 100 if config.init == "he" else of_lion.get(config.seed)
        if spread is None:
            return None
        return {"steps_to_target": round(1000 + spread * 2.5 * (config.aux_weight - 0.3))}

    found = verdict(judged(tmp_path, "alpha", result), "Section 4.5")
    assert (found.verdict, found.n) == (expected, n)
    if expected == "reproduced":
        assert found.figure == "spread 4.0 % against 10.0 %"


def figure1(tmp_path, *, first=0.0, norm=lambda step: 0.01 * step, ratio=lambda step: step / 200):
    """The judgements on LION-DG runs with these gradients; He-init's ratio is 0.6 all along."""

    def result(config):
        steps = range(100)
        if config.init == "he":
            table = probes([0.6 for _ in steps], [1.0 for _ in steps])
        else:
            table = probes([first, *map(ratio, steps[1:])], list(map(norm, steps)))
        return {"tables": {"metrics": metrics([None] * 100), "probes": table}}

    return judged(tmp_path, "figure1", result)


def test_the_propositions_hold_for_gradients_that_awaken(tmp_path):
    judgements = figure1(tmp_path)
    for words in ("Proposition 1", "Proposition 2", "Section 5.3: LION-DG's gradient ratio"):
        assert verdict(judgements, words).verdict == "reproduced"


def test_proposition_1_allows_no_gradient_at_all(tmp_path):
    found = verdict(figure1(tmp_path, first=1e-12), "Proposition 1")
    assert found.verdict == "not reproduced"
    assert "2e-12" in found.evidence


def test_proposition_2_does_not_hold_for_norms_that_level_off(tmp_path):
    found = verdict(figure1(tmp_path, norm=lambda step: min(step, 10) / 10), "Proposition 2")
    assert found.verdict == "not reproduced"


def descent(tmp_path, norm, *, num_steps=200):
    """The judgements on runs of gradient descent whose heads have this norm after t updates."""

    def result(config):
        norms = [norm(t) for t in range(num_steps)]
        return {"tables": {"metrics": metrics([None] * 4), "probes": probes(norms, norms)}}

    return judged(tmp_path, "proposition2", result)


@pytest.mark.parametrize(
    ("norm", "expected", "words"),
    [
        (lambda t: 0.02 * t, "reproduced", "by 0.0 % at most in 100 steps; 0 of 3 heads leave"),
        # Only after the first 100 steps.
        (lambda t: 0.02 * t - 1e-5 * t * t, "reproduced", "3 of 3 heads leave it, after 201 to"),
        (lambda t: 0.02 * t**0.9, "not reproduced", "3 of 3 heads leave it, after 3 to 3 updates"),
    ],
)
def test_proposition_2_as_stated_asks_for_the_predicted_slope(tmp_path, norm, expected, words):
    judgements = descent(tmp_path, norm, num_steps=300)
    found = verdict(judgements, "as stated", "128")
    assert (found.verdict, found.n) == (expected, 3)
    assert words in found.evidence


def test_a_line_is_undecided_until_every_seed_has_run(tmp_path):
    table = probes([0.02 * t for t in range(200)], [0.02 * t for t in range(200)])

    def result(config):
        tables = {"metrics": metrics([None] * 4), "probes": table}
        return {"tables": tables} if config.seed == 42 else None

    found = verdict(judged(tmp_path, "proposition2", result), "as stated", "120")
    assert (found.verdict, found.n) == ("undecided", 1)


def test_a_line_of_too_few_steps_is_not_tested(tmp_path):
    judgements = descent(tmp_path, lambda t: t, num_steps=60)
    assert verdict(judgements, "as stated", "120").verdict == "not tested"


def test_heads_that_do_not_start_at_zero_have_no_line(tmp_path):
    judgements = descent(tmp_path, lambda t: 1 + t)
    assert verdict(judgements, "as stated", "120").verdict == "not tested"


@pytest.mark.parametrize(
    "changes", [{"first": 0.7}, {"ratio": lambda step: 0.5 - step / 500}], ids=["high", "falling"]
)
def test_a_ratio_that_starts_high_or_falls_does_not_awaken(tmp_path, changes):
    assert verdict(figure1(tmp_path, **changes), "gradient ratio").verdict == "not reproduced"


def test_the_paper_publishes_figures_of_its_own_setting_alone():
    assert published_accuracy(PAPER).value == 80.59
    assert published_speedup(PAPER) == 8.3
    assert published_accuracy_by_seed(PAPER)[42] == 80.19
    for changes in ({"aux_weight": 0.5}, {"lr": 1e-3}, {"num_classes": 5}, {"crop_padding": 4}):
        config = replace(PAPER, **changes)
        assert published_accuracy(config) is None
        assert published_speedup(config) is None
        assert published_steps(replace(config, init="fixup")) is None


def test_how_a_run_is_executed_leaves_the_papers_figures_in_force():
    config = replace(PAPER, engine="compile", seed=7, loader="workers", gradient_ratio_every=1)
    assert published_accuracy(config) == published_accuracy(PAPER)


def test_a_run_stopped_early_has_a_published_speedup_but_no_accuracy():
    config = replace(PAPER, stop_at_target=True)
    assert published_accuracy(config) is None
    assert published_accuracy_by_seed(config) is None
    assert published_speedup(config) == 8.3
    assert published_speedup(replace(config, max_steps=100)) is None
