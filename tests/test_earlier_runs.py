"""A run folder that an earlier commit has written opens, resumes and evaluates as it did there.

`support/run_of_5a75cde.zip` holds what commit 5a75cde left of the settings in its config.json, one
thread of a CPU: `stopped` after 6 of 9 steps, and the tables of the `whole` run.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from run_results import table

from lion_fast.training import evaluate, load_run, train
from lion_fast.training.folder.run_folder import RunFolder

ARCHIVE = Path(__file__).parent / "support" / "run_of_5a75cde.zip"


@pytest.fixture
def earlier(tmp_path):
    shutil.unpack_archive(ARCHIVE, tmp_path)
    return tmp_path


def values(row):
    """The numbers of a row that rounding moves by little: one more image right is no little."""
    return {name: float(value) for name, value in row.items() if "accuracy" not in name}


def assert_near(ours, theirs):
    """Another CPU, or another build of torch, rounds otherwise; the batches are the same.

    Columns that there were not yet are left out.
    """
    assert len(ours) == len(theirs) > 0
    for row, other in zip(ours, theirs, strict=True):
        shared = {name: row[name] for name in other}
        assert values(shared) == pytest.approx(values(other), rel=2e-3, abs=2e-3)


def test_a_run_goes_on_as_it_would_have_there(earlier):
    run, whole = earlier / "stopped", earlier / "whole"
    before = table(run)
    _, config = RunFolder.open(run)
    assert train(replace(config, max_steps=9), resume=run).run == run
    assert table(run)[:6] == before == table(whole)[:6]
    assert_near(table(run), table(whole))
    assert_near(table(run, "probes.csv"), table(whole, "probes.csv"))
    # The stopped run was validated at its end too, which the whole one passes by.
    validated = [row for row in table(run, "validation.csv") if row["step"] != "6"]
    assert_near(validated, table(whole, "validation.csv"))


def test_a_run_is_evaluated_and_loaded_as_it_was(earlier):
    run = earlier / "stopped"
    told = json.loads((run / "summary.json").read_text())
    found = evaluate(run, device="cpu")
    assert found.loss == pytest.approx(told["val_loss"], rel=1e-4)
    assert found.accuracy_per_head == pytest.approx(told["val_accuracy_per_head"], abs=0.005)
    assert load_run(run, device="cpu").classes == tuple("0123456789")
