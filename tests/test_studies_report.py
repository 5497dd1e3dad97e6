"""The page of committed studies: read back from exports, with the flags that made them."""

import pytest
from study_runs import fill, metrics

from lion_fast.study.export import export_csv
from lion_fast.study.studies import STUDIES
from report.studies import RESULTS, as_run, exported, read_exports


def exports(tmp_path, name, **flags):
    """An export of a study, filled with made-up runs."""
    study = STUDIES[name].override(**flags)
    fill(study, tmp_path, lambda c: {"steps_to_target": 3, "tables": {"metrics": metrics()}})
    export_csv(study, tmp_path, tmp_path / "exports" / name)
    return exported(tmp_path / "exports")


def test_an_export_comes_back_with_its_flags_and_further_seeds(tmp_path):
    flags = {"stop_at_target": True, "engine": "eager", "seeds": (42, 7)}
    (found,) = read_exports(exports(tmp_path, "headline", **flags), tmp_path / "stores")
    assert (found.study.base.stop_at_target, found.study.base.engine) == (True, "eager")
    assert {run.config.seed for run in found.runs} == {42, 7}
    assert set(found.study.seeds) == {*STUDIES["headline"].seeds, 7}
    assert len(found.missing) == 18


def test_runs_of_other_flags_are_refused(tmp_path):
    (folder,) = exports(tmp_path, "table7", max_steps=9).values()
    with pytest.raises(SystemExit, match="no --engine and --stop-at-target make table7's"):
        as_run(STUDIES["table7"], folder)


@pytest.mark.parametrize("name", exported(RESULTS))
def test_every_committed_export_can_be_read_back(name):
    as_run(STUDIES[name], exported(RESULTS)[name])
