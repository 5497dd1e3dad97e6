"""Study `dense`: its runs, and the judges of its statements, on made-up runs."""

from dataclasses import replace

import pytest
from PIL import Image
from study_runs import fill

from lion_fast.report.beyond import BEYOND
from lion_fast.report.dense_judges import RANK_STEPS, WHOLE_STEPS
from lion_fast.report.judging import judge_all
from lion_fast.report.page import report_studies
from lion_fast.report.results import read_study
from lion_fast.report.statements import STATEMENTS
from lion_fast.study.check import obstacle_lines
from lion_fast.study.export import export_csv
from lion_fast.study.importing import import_csv
from lion_fast.study.store import Table
from lion_fast.study.studies import STUDIES

DENSE = STUDIES["dense"]
SOME = DENSE.override(seeds=(1001, 1002, 1003, 1004))


def spread(config):
    """What deviates with the seed, alike for every method, and a tenth of it that does not."""
    own = config.seed * {"he": 1, "lion_dg": 3}[config.init] % 5
    own += config.seed * {"zero": 1, "prior": 2}[config.head_bias] % 3
    return 0.01 * (config.seed % 5) + 0.001 * own


def probes(rank, steps=RANK_STEPS):
    columns = ["step", "gradient_ratio", "aux_head0_weight_norm", "aux_head0_effective_rank"]
    return Table(columns, [[step, 0.5, 1.0, rank] for step in steps])


def runs(*, lion=0.15, prior=0.4, foreground=0.5, lion_rank=1.02, he_rank=7.0):
    """Return made-up results: He-init's mIoU is 0.4, and 0.5 without the background."""

    def result(config):
        value = 0.5 if config.dataset == "scenes_foreground" else 0.4
        rank = he_rank
        if config.init == "lion_dg":
            value, rank = (prior if config.head_bias == "prior" else lion), lion_rank
            if config.dataset == "scenes_foreground":
                value = foreground
        value *= 1 + spread(config)
        classes = [0.9, None, value]
        return {
            "val_accuracy": value,
            "val_iou_per_class": classes,
            "tables": {"probes": probes(rank)},
        }

    return result


def judged(tmp_path, result, study=SOME):
    fill(study, tmp_path, result)
    return {s.text: j for s, j in judge_all([read_study(study, tmp_path)])}


def verdicts(tmp_path, result, study=SOME):
    return {
        next(word for word in WORDS if word in text): j.verdict
        for text, j in judged(tmp_path, result, study).items()
        if "Dice" not in text
    }


WORDS = ("behind He-init", "class prior", "Imbalance", "stay of rank 1")


def test_the_study_is_five_methods_on_three_settings_of_ten_seeds_that_the_pilot_did_not_use():
    assert len(DENSE.variants) == 15 and len(DENSE.cells()) == 150
    assert DENSE.seeds == tuple(range(1001, 1011)) and DENSE.base.max_steps == WHOLE_STEPS
    assert obstacle_lines(replace(DENSE, seeds=(1001,))) == []
    baselines = [DENSE.baseline_of(variant) for variant in DENSE.variants]
    assert sum(baseline is None for baseline in baselines) == 3
    for variant, baseline in zip(DENSE.variants, baselines, strict=True):
        if baseline is not None:
            same = ("dataset", "dice")
            assert {name: variant[name] for name in same} == {name: baseline[name] for name in same}
            assert (baseline["init"], baseline["head_bias"]) == ("he", "zero")


def test_its_probes_stand_where_the_judges_look():
    every = DENSE.base.gradient_ratio_every
    assert all(step % every == 1 and step <= WHOLE_STEPS for step in RANK_STEPS)
    ranks = STUDIES["head_ranks"].base
    assert ranks.gradient_ratio_every == every and ranks.max_steps == max(RANK_STEPS)


def test_the_pilots_results_would_bear_out_every_statement(tmp_path):
    found = verdicts(tmp_path, runs(prior=0.398))
    assert found == dict.fromkeys(WORDS, "reproduced")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"lion": 0.45}, {"behind He-init": "not reproduced"}),
        ({"lion": 0.4}, {"behind He-init": "equivalent within bounds"}),
        ({"prior": 0.35}, {"class prior": "not reproduced"}),
        ({"foreground": 0.4}, {"Imbalance": "not reproduced"}),
        ({"lion_rank": 1.2}, {"stay of rank 1": "not reproduced"}),
        ({"he_rank": 1.5}, {"stay of rank 1": "not reproduced"}),
    ],
)
def test_other_results_would_not(tmp_path, result, expected):
    found = verdicts(tmp_path, runs(**{"prior": 0.398} | result))
    assert found == dict.fromkeys(WORDS, "reproduced") | expected


def test_fewer_seeds_decide_nothing(tmp_path):
    whole = runs()
    found = verdicts(tmp_path, lambda c: whole(c) if c.seed != 1004 else None)
    assert found == dict.fromkeys(WORDS, "undecided")


def test_shorter_runs_or_runs_without_probes_are_not_tested(tmp_path):
    result = runs()
    short = judged(tmp_path / "short", lambda c: result(c) | {"steps": 1499})
    told = {text: j for text, j in short.items() if "rank" not in text}
    assert {j.verdict for j in told.values()} == {"not tested"}
    bare = judged(tmp_path / "bare", lambda c: result(c) | {"tables": {}})
    (of_ranks,) = [j for text, j in bare.items() if "rank 1" in text]
    assert of_ranks.verdict == "not tested" and "51, 151, 601" in of_ranks.evidence


def test_the_ranks_of_densenet_are_judged_by_their_own_study(tmp_path):
    study = STUDIES["head_ranks"].override(seeds=SOME.seeds)
    for rank, verdict in ((4.7, "reproduced"), (1.3, "not reproduced")):
        tables = {"tables": {"probes": probes(rank)}}
        (found,) = judged(tmp_path / verdict, lambda _, t=tables: t, study).values()
        assert found.verdict == verdict


def test_what_is_asked_beyond_the_paper_is_none_of_its_statements(tmp_path):
    assert len(BEYOND) == 12 and not set(map(id, BEYOND)) & set(map(id, STATEMENTS))
    whole = judge_all([], whole=True)
    assert [statement for statement, _ in whole] == list(STATEMENTS)


def test_an_export_keeps_the_iou_of_every_class_and_the_ranks(tmp_path):
    study, result = SOME.override(seeds=(1001,), max_steps=4), runs()
    fill(
        study, tmp_path / "here", lambda c: result(c) | {"tables": {"probes": probes(2.5, (1, 4))}}
    )
    export_csv(study, tmp_path / "here", tmp_path / "export")
    import_csv(study, tmp_path / "there", [tmp_path / "export"])
    here, there = (read_study(study, tmp_path / place).runs for place in ("here", "there"))
    assert len(there) == len(here) == len(study.variants)
    for run, other in zip(here, there, strict=True):
        assert other.summary["val_iou_per_class"] == run.summary["val_iou_per_class"]
        assert other.probes["aux_head0_effective_rank"].tolist() == [2.5, 2.5]
        assert not any("iou" in name for name in other.summary["environment"])


def test_the_report_speaks_of_miou_and_of_every_class(tmp_path):
    result, drawn = runs(), tmp_path / "a run"
    drawn.mkdir()
    Image.new("RGB", (8, 8)).save(drawn / "masks.png")
    fill(SOME, tmp_path, lambda c: result(c) | {"run": str(drawn)})
    page, *written = report_studies([read_study(SOME, tmp_path)], tmp_path / "out")
    assert {f"dense_masks{number}.png" for number in range(15)} < {path.name for path in written}
    text = page.read_text(encoding="utf-8")
    assert "Statements of the paper, and beyond it" in text
    assert "#### Validation mIoU" in text and "mIoU % |" in text
    assert "#### IoU of each class" in text
    assert "alidation accuracy" not in text
    assert "What heads make of test images: " in text
