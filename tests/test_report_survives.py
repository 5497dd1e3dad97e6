"""A report says what it has whatever befell a picture of it, or one of its runs."""

import json
from dataclasses import replace

import pytest
from report_pages import line_of, page, report
from study_runs import fill

from lion_fast.report import plots
from lion_fast.report.page import report_studies
from lion_fast.report.results import read_study
from lion_fast.study.export import export_csv
from lion_fast.study.importing import import_csv
from lion_fast.study.runner import run_study
from lion_fast.study.status import status_lines
from lion_fast.study.studies import STUDIES

QUICKSTART = STUDIES["quickstart"]


def reached(config):
    return {"steps_to_target": 80 + config.seed % 5}


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a font\ncache"), ZeroDivisionError(), KeyError("lion"), MemoryError()],
    ids=repr,
)
def test_a_picture_that_cannot_be_drawn_is_one_line_and_the_rest_stands(
    tmp_path, monkeypatch, capsys, error
):
    def fail(*_):
        raise error

    fill(QUICKSTART, tmp_path, reached)
    monkeypatch.setattr(plots, "draw_seeds", fail)
    assert report(tmp_path, "quickstart") == 0
    told = capsys.readouterr().err
    assert told.startswith("lion-fast: no quickstart_seeds.png, all else is written: ")
    assert told.count("\n") == 1
    names = {path.name for path in (tmp_path / "report").iterdir()}
    pictures = {"quickstart_curves.png", "quickstart_difference.png"}
    assert names == {"studies.md", "studies.html", "studies.json"} | pictures
    assert "quickstart_seeds.png" not in page(tmp_path)


def test_a_baseline_that_learned_nothing_has_a_report(tmp_path):
    def useless(config):
        accuracy = 0.0 if config.init == "he" else 0.1
        return {"steps_to_target": None, "val_accuracy": accuracy + config.seed % 2 * accuracy}

    fill(QUICKSTART, tmp_path, useless)
    assert report(tmp_path, "quickstart") == 0
    told = json.loads((tmp_path / "report" / "studies.json").read_text(encoding="utf-8"))
    rows = told["studies"]["quickstart"]["val_accuracy"]
    assert all(row["speedup_percent"] is None for row in rows if row["variant"]["init"] != "he")


def test_a_study_of_any_script_has_its_pictures_on_the_page(tmp_path):
    study = replace(QUICKSTART, name="lab-猫")
    fill(study, tmp_path, reached)
    written = report_studies([read_study(study, tmp_path)], tmp_path / "report")
    assert {path.name for path in written if path.suffix == ".png"} == {
        f"lab-猫_{name}.png" for name in ("curves", "difference", "seeds")
    }
    html = (tmp_path / "report" / "studies.html").read_text(encoding="utf-8")
    assert html.count('src="data:image/png;base64,') == 3


def stood_still(config):
    """What a worker keeps of a run: he with seed 42 stood still and is far the slowest."""
    if config.init == "he" and config.seed == 42:
        return reached(config) | {"stopped_seconds": 600.0, "seconds_to_target": None}
    return reached(config) | {"seconds_to_target": 10.0}


def test_a_run_that_stood_still_is_in_no_mean_of_seconds_and_is_said(tmp_path):
    fill(QUICKSTART, tmp_path, stood_still)
    report(tmp_path, "quickstart")
    text = page(tmp_path)
    assert (
        "1 runs, he seed 42 the first, stood still while they trained (Ctrl-Z, a suspended"
        " machine): their seconds to the target are left out." in text
    )
    times = text[text.index("#### Time") :]
    assert "| 10.0 ± 0.0 |" in line_of(times, "| he ")
    assert "| 10.0 ± 0.0 | +0.0 |" in line_of(times, "| lion_dg ")
    values = json.loads((tmp_path / "report" / "studies.json").read_text(encoding="utf-8"))
    by_seed = [row["by_seed"] for row in values["studies"]["quickstart"]["seconds_to_target"]]
    assert [len(each) for each in by_seed] == [2, 3]
    steps = [row["by_seed"] for row in values["studies"]["quickstart"]["steps_to_target"]]
    assert [len(each) for each in steps] == [3, 3]  # its steps are as good as any
    (line,) = [line for line in status_lines(QUICKSTART, tmp_path) if "he  seed 42" in line]
    assert "(stood still meanwhile: no seconds)" in line


def test_a_run_that_stood_still_is_known_after_export_and_import(tmp_path):
    fill(QUICKSTART, tmp_path, lambda config: stood_still(config) | {"steps": 4})
    export_csv(QUICKSTART, tmp_path, tmp_path / "csv")
    import_csv(QUICKSTART, tmp_path / "here", [tmp_path / "csv"])
    runs = read_study(QUICKSTART, tmp_path / "here").runs
    assert [run.stood_still for run in runs].count(True) == 1
    assert not any("stopped_seconds" in run.summary["environment"] for run in runs)


def train_and_stand_still(config, resume, jobs):
    """A run whose process was stopped for a minute."""
    from fake_study import FakeSummary, fake_train

    class Stopped(FakeSummary):
        def to_dict(self):
            return super().to_dict() | {"stopped_seconds": 60.0}

    return Stopped(fake_train(config, resume, jobs).run, 0)


def test_a_worker_takes_no_seconds_of_a_run_that_stood_still(tmp_path):
    from fake_study import STUDY

    study = STUDY.override(seeds=(1,))
    said = []
    run_study(study, tmp_path, trainer=train_and_stand_still, say=said.append)
    assert sum("stood still meanwhile: no seconds" in line for line in said) == 3
    for run in read_study(study, tmp_path).runs:
        assert run.summary["seconds_to_target"] is None and run.stood_still
        assert run.summary["steps_to_target"] == 5
