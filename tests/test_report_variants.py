"""Two variants that differ have nothing in common in a report, whatever their labels look like."""

import json
import re
import unicodedata

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings
from report_pages import page
from study_runs import fill, summary

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.report import plots
from lion_fast.report.comparisons import ACCURACY, STEPS, compare_variants, conclusion
from lion_fast.report.page import _study_values, report_studies
from lion_fast.report.results import Run, StudyResults, read_study
from lion_fast.report.tables import study_tables
from lion_fast.study.grid import Study, grid
from lion_fast.study.labels import distinct_labels

CAFE = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
PARTS = ("fold0", "fold1", "data.npz", "data", "a b", "digits", "he", "lr=0.5", CAFE)
PARTS = (*PARTS, unicodedata.normalize("NFD", CAFE), "base")
PATHS = st.builds(
    lambda root, parts: root + "/".join(parts),
    st.sampled_from(["", "./", "/", "../"]),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=3),
)
VARIANTS = st.fixed_dictionaries(
    {},
    optional={
        "dataset": PATHS,
        "init": st.sampled_from(["he", "lion_dg", "lsuv"]),
        "lr": st.sampled_from([0.5, 0.25]),
        "device": st.sampled_from(["auto", "cpu"]),
        "stop_at_target": st.booleans(),
    },
)
BASELINES = st.sampled_from([{"init": "he"}, {"dataset": "data"}, {"init": "he", "lr": 0.5}])
SEEDS = (1, 2, 3)


def steps_of(place, seed):
    """A number that no other variant has, nor a mean of some of its own."""
    return 1000 * (place + 1) + seed


def results_of(variants, baseline):
    """Runs whose every number tells which variant it belongs to."""
    try:
        study = Study(
            name="any", title="t", base=TrainConfig(max_steps=10**6, window=1),
            variants=tuple(variants), seeds=SEEDS, baseline=baseline,
        )  # fmt: skip
    except UserError:
        assume(False)
    runs = []
    for cell in study.cells():
        place = study.variants.index(cell.variant)
        number = steps_of(place, cell.config.seed)
        values = summary(cell.config, steps_to_target=number, val_accuracy=number / 1e5)
        curves = {"train_accuracy_windowed": np.full(3, float(place))}
        runs.append(Run(cell.variant, cell.config, values, curves, {}, {}))
    return StudyResults(study, tuple(runs), (), ())


@settings(deadline=None, max_examples=60)
@given(st.lists(VARIANTS, min_size=2, max_size=6), BASELINES)
def test_no_value_stands_under_another_variant(variants, baseline):
    results = results_of(variants, baseline)
    study = results.study
    assert len({study.label(variant) for variant in study.variants}) == len(study.variants)
    grouped = [variant for group in results.groups.values() for variant in group]
    assert len(grouped) == len(study.variants) and all(v in grouped for v in study.variants)
    for quantity, scale in ((STEPS, 1), (ACCURACY, 1e-3)):
        told = _study_values(results)[quantity.name]
        rows = compare_variants(results, quantity)
        for place, (row, entry) in enumerate(zip(rows, told, strict=True)):
            own = {seed: pytest.approx(scale * steps_of(place, seed)) for seed in SEEDS}
            assert row.variant == entry["variant"] == study.variants[place]
            assert row.values == entry["by_seed"] == own
            baseline = study.baseline_of(row.variant)
            of_baseline = {}
            if baseline is not None:
                number = study.variants.index(baseline)
                of_baseline = {s: pytest.approx(scale * steps_of(number, s)) for s in SEEDS}
                gap = scale * (steps_of(place, 0) - steps_of(number, 0))
                assert row.comparison.difference == pytest.approx(gap)
            assert row.baseline == of_baseline


@settings(deadline=None, max_examples=30)
@given(st.lists(VARIANTS, min_size=2, max_size=5), BASELINES)
def test_every_line_and_curve_is_that_of_its_own_variant(variants, baseline):
    results = results_of(variants, baseline)
    labels = [results.study.label(variant) for variant in results.study.variants]
    for place, (label, line) in enumerate(zip(labels, conclusion(results), strict=True)):
        assert line.startswith(f"{label}: ") and f"after {steps_of(place, 2):,}" in line
    text = "\n".join(study_tables(results))
    for place, label in enumerate(labels):
        own = [line for line in text.splitlines() if line.startswith(f"| {label.ljust(3)} ")]
        of_seeds = [f"{steps_of(place, seed):,}" for seed in SEEDS]
        assert any(all(number in line for number in of_seeds) for line in own)
        assert any(f" {steps_of(place, 2) / 1e3:.2f} ± " in line for line in own)
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_draw_lines", lambda *args: drawn.append(args[2]))
        plots.draw_curves(results, None)
    for panel in drawn[0].values():
        names = [results.short_label(line.variant) for line in panel]
        assert len(set(names)) == len(names)
        for line in panel:
            place = results.study.variants.index(line.variant)
            assert all((curve == 100 * place).all() for curve in line.curves)


def test_a_label_is_as_short_as_tells_it_from_the_others():
    def labels(*paths):
        return distinct_labels([{"dataset": path, "init": "he"} for path in paths])

    assert labels("fold0/data.npz", "fold1/other.npz") == ["data he", "other he"]
    assert labels("data.npz", "data") == ["data.npz he", "data he"]
    far = ["x/fold0/data.npz", "x/fold1/data.npz", "x/fold1/other.npz"]
    assert labels(*far) == ["fold0/data.npz he", "fold1/data.npz he", "other he"]
    assert labels("/a/b/c.npz", "/d/b/c.npz") == ["a/b/c.npz he", "d/b/c.npz he"]
    assert labels("digits", "./digits") == ["dataset=digits init=he", "dataset=./digits init=he"]
    spelled = distinct_labels([{"dataset": "cpu"}, {"device": "cpu"}, {}])
    assert spelled == ["dataset=cpu", "device=cpu", "base"]


@pytest.mark.parametrize("num", [6, 12, 36])
def test_no_two_lines_of_a_panel_have_one_style(num):
    found = [plots._style(index) for index in range(num)]
    assert len({(style.color, style.dashes) for style in found}) == num


FOLDS = Study(
    name="folds", title="Two folds", base=TrainConfig(max_steps=400),
    variants=grid(dataset=("fold0/data.npz", "fold1/data.npz"), init=("he", "lion_dg")),
)  # fmt: skip


def of_folds(config):
    steps = 111 if config.dataset.startswith("fold0") else 222
    return {"steps_to_target": steps + config.seed % 3}


def test_two_folds_of_one_file_name_keep_their_numbers_on_the_page(tmp_path):
    fill(FOLDS, tmp_path, of_folds)
    report_studies([read_study(FOLDS, tmp_path)], tmp_path / "report")
    values = json.loads((tmp_path / "report" / "studies.json").read_text(encoding="utf-8"))
    for row in values["studies"]["folds"]["steps_to_target"]:
        start = 111 if row["variant"]["dataset"].startswith("fold0") else 222
        assert list(row["by_seed"].values()) == [start + seed % 3 for seed in FOLDS.seeds]
    side_by_side = re.sub(" +", " ", page(tmp_path))
    assert "| fold0/data.npz | 111 | 111 (+0.0 %) |" in side_by_side
    assert "| fold1/data.npz | 222 | 222 (+0.0 %) |" in side_by_side


def test_two_studies_of_one_name_have_no_page(tmp_path):
    fill(FOLDS, tmp_path, of_folds)
    results = read_study(FOLDS, tmp_path)
    with pytest.raises(UserError, match="two studies are called folds: give one of them another"):
        report_studies([results, results], tmp_path / "report")


def test_numbers_of_numpy_are_the_values_that_they_are(tmp_path):
    axes = {"lr": np.linspace(0.25, 0.5, 2), "batch_size": np.array([32, 64])}
    study = Study(name="numpy", title="t", base=TrainConfig(), variants=grid(**axes), seeds=(1,))
    assert {type(value) for variant in study.variants for value in variant.values()} == {float, int}
    fill(study, tmp_path, lambda config: {"steps_to_target": 80})
    report_studies([read_study(study, tmp_path)], tmp_path / "report")


def test_a_page_opens_with_what_the_terminal_concludes(tmp_path):
    study = FOLDS
    fill(study, tmp_path, of_folds)
    report_studies([read_study(study, tmp_path)], tmp_path / "report")
    lines = [f"- {line}" for line in conclusion(read_study(study, tmp_path))]
    for name, markup in (("studies.md", "![]("[:2]), ("studies.html", "<img")):
        text = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert 0 < text.index("Conclusions") < text.index(markup)
    assert page(tmp_path).splitlines()[:9] == [
        "## Studies", "", "### Conclusions", "", "folds: Two folds", "", *lines[:3],
    ]  # fmt: skip
    html = (tmp_path / "report" / "studies.html").read_text(encoding="utf-8")
    assert html.count("<li>fold") == 4 and html.index("<li>fold1/data.npz lion_dg:") > 0
