"""A study never takes runs of other data for its own, nor averages what two sets gave."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch
from data_study import ON_DATA, train_and_change_the_data, train_on_data, write_data
from fake_study import fake_train
from report_pages import page
from study_runs import fill

from lion_fast.cli import main
from lion_fast.data.sources import data_fingerprint
from lion_fast.errors import UserError
from lion_fast.report.page import report_studies
from lion_fast.report.results import read_study
from lion_fast.study.data import DataHere, drop_unfinished
from lion_fast.study.export import export_csv
from lion_fast.study.grid import grid
from lion_fast.study.importing import import_csv
from lion_fast.study.runner import run_study
from lion_fast.study.status import cells_to_run, status_lines
from lion_fast.study.store import Store
from lion_fast.training import train

TOML = """
name = "lab"
seeds = [1, 2]
base = {dataset = "lab.npz", max_steps = 8, log_every = 1}
axes = {init = ["he", "lion_dg"]}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with data of which a quarter is of class 1; the study's store goes to `out`."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_data("lab.npz", ones=3)
    return folder


def run(tmp_path, trainer=train_on_data, **options):
    said = []
    outcome = run_study(ON_DATA, tmp_path / "out", trainer=trainer, say=said.append, **options)
    return outcome, "\n".join(said)


def accuracies(tmp_path):
    return {run.summary["val_accuracy"] for run in read_study(ON_DATA, tmp_path / "out").runs}


def test_repaired_labels_are_noticed_and_the_study_says_how_to_go_on(project, tmp_path):
    assert run(tmp_path)[0].num_done == 4 and run(tmp_path)[0].num_done == 0
    write_data("lab.npz", ones=12)
    with pytest.raises(UserError) as caught:
        run(tmp_path)
    message = str(caught.value)
    assert "4 finished runs in" in message and "he seed 1 the first" in message
    assert "of other data than lab.npz is now: --rerun changed" in message
    assert "another --out" in message and "\n" not in message
    assert accuracies(tmp_path) == {0.25}
    outcome, said = run(tmp_path, rerun_changed=True)
    assert outcome.num_done == 4 and "4 finished runs are of other data than now" in said
    assert accuracies(tmp_path) == {1.0}
    kept = sorted((tmp_path / "out" / "lab" / "runs").glob("*.1/run/metrics.csv"))
    assert len(kept) == 4
    assert run(tmp_path, rerun_changed=True)[0].num_done == 0


def test_data_saved_anew_or_moved_are_the_same_data(project, tmp_path, monkeypatch):
    run(tmp_path)
    write_data("lab.npz", ones=3)
    (project / "other").mkdir()
    shutil.move("lab.npz", "other")
    monkeypatch.chdir(project / "other")
    assert run(tmp_path)[0].num_done == 0


def test_two_projects_that_share_an_out_do_not_take_each_others_runs(
    project, tmp_path, monkeypatch
):
    run(tmp_path)
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "second")
    write_data("lab.npz", ones=12)
    with pytest.raises(UserError, match="of other data than lab.npz is now"):
        run(tmp_path)
    assert accuracies(tmp_path) == {0.25}


def test_status_and_a_dry_run_tell_runs_of_other_data_apart(project, tmp_path):
    run(tmp_path)
    assert status_lines(ON_DATA, tmp_path / "out")[-1] == "lab: 4 runs: 4 done"
    write_data("lab.npz", ones=12)
    lines = status_lines(ON_DATA, tmp_path / "out")
    assert lines[0].startswith("changed  he  seed 1")
    assert lines[-1] == (
        "lab: 4 runs: 4 changed; changed: of other data than now, --rerun changed runs them anew"
    )
    assert len(cells_to_run(ON_DATA, tmp_path / "out")) == 4
    (project / "lab.npz").unlink()
    assert status_lines(ON_DATA, tmp_path / "out")[-1] == "lab: 4 runs: 4 done"


def test_data_that_change_while_a_study_runs_end_in_failures_and_no_mixture(project, tmp_path):
    outcome, said = run(tmp_path, train_and_change_the_data)
    assert (outcome.num_done, outcome.num_failed) == (1, 3)
    assert "lab.npz was another data set in this run than in the others: start" in said
    assert accuracies(tmp_path) == {0.25}
    with pytest.raises(UserError, match="1 finished runs"):
        run(tmp_path)
    assert run(tmp_path, rerun_changed=True)[0].num_done == 4
    assert accuracies(tmp_path) == {0.75}


def test_runs_of_earlier_versions_stay_and_are_said_to_be_of_unknown_data(project, tmp_path):
    fill(
        ON_DATA,
        tmp_path / "out",
        lambda config: {"val_accuracy": 0.5} if config.seed == 1 else None,
    )
    outcome, said = run(tmp_path)
    assert outcome.num_done == 2
    assert "data not known of 2 finished runs" in said
    assert status_lines(ON_DATA, tmp_path / "out")[-1].endswith("4 done; data not known of 2")


def test_a_page_says_which_data_are_known(project, tmp_path):
    def some(config):
        return {"data_fingerprint": data_fingerprint(config)} if config.seed == 1 else {}

    fill(ON_DATA, tmp_path / "out", some)
    report_studies([read_study(ON_DATA, tmp_path / "out")], tmp_path / "report")
    lines = [line for line in page(tmp_path).splitlines() if line.startswith("- Data: ")]
    short = data_fingerprint(ON_DATA.base)[:12]
    assert lines == [f"- Data: lab.npz, fingerprint {short}", "- Data: not known of 2 runs"]


def test_a_report_says_where_the_data_are_others_by_now(project, tmp_path):
    fill(ON_DATA, tmp_path / "out", lambda config: {"data_fingerprint": data_fingerprint(config)})
    write_data("lab.npz", ones=12)
    report_studies([read_study(ON_DATA, tmp_path / "out")], tmp_path / "report")
    assert "**other than what is here now**" in page(tmp_path)
    values = json.loads((tmp_path / "report" / "studies.json").read_text(encoding="utf-8"))
    assert len(values["studies"]["lab"]["data"]) == 1


def with_fingerprints(config):
    return {"val_accuracy": 0.5, "data_fingerprint": f"{'a' * 40}-{config.seed:040}"}


def test_a_store_of_two_data_sets_is_averaged_by_nobody(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab.toml").write_text(TOML, encoding="utf-8")
    fill(ON_DATA, tmp_path, with_fingerprints)
    for command in (
        ["report", "lab.toml", "--studies", "."],
        ["study", "lab.toml", "--power", "--out", "."],
        ["study", "lab.toml", "--out", "."],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "runs of different data under the name lab.npz (aaaa" in error
        assert "--rerun changed" in error and len(error.strip().splitlines()) == 1
    write_data("lab.npz", ones=3)
    study = ON_DATA
    outcome = run_study(study, tmp_path, trainer=train_on_data, say=str, rerun_changed=True)
    assert outcome.num_done == 4


def exported(tmp_path, name):
    export_csv(ON_DATA, tmp_path / "out", tmp_path / name)
    return tmp_path / name


def test_an_export_holds_the_fingerprint_and_an_import_keeps_it(project, tmp_path):
    run(tmp_path)
    folder = exported(tmp_path, "csv")
    with open(folder / "summaries.csv", newline="", encoding="utf-8") as file:
        told = {row["data_fingerprint"] for row in csv.DictReader(file)}
    assert len(told) == 1 and len(told.pop()) == 81
    (imported,) = import_csv(ON_DATA, tmp_path / "here", [folder])
    assert imported.line() == f"{folder}: 4 taken"
    runs = [read_study(ON_DATA, tmp_path / name).runs for name in ("out", "here")]
    assert [[r.summary["data_fingerprint"] for r in each] for each in runs][0] == [
        run.summary["data_fingerprint"] for run in runs[1]
    ]
    assert not any("data_fingerprint" in run.summary["environment"] for run in runs[1])


@pytest.mark.parametrize("are_here", [True, False])
def test_an_import_of_other_data_is_refused_whole(project, tmp_path, are_here):
    run(tmp_path)
    folder = exported(tmp_path, "csv")
    write_data("lab.npz", ones=12)
    out = tmp_path / "here"
    if not are_here:
        shared = {"trainer": train_on_data, "say": str}
        run_study(ON_DATA.override(seeds=(2,)), out, **shared)
        (project / "lab.npz").unlink()
    with pytest.raises(UserError) as caught:
        import_csv(ON_DATA, out, [folder])
    message = str(caught.value)
    assert "he seed 1, is of other data than" in message and "another --out" in message
    assert ("lab.npz is here" in message) == are_here
    with Store.open(ON_DATA.folder(out)) as store:
        done = [cell for cell, stored in store.of(ON_DATA) if stored.summary is not None]
    assert len(done) == (0 if are_here else 2)


def test_exports_of_two_data_sets_do_not_become_one_study(project, tmp_path):
    folders = []
    for ones, seed in ((3, 1), (12, 2)):
        write_data("lab.npz", ones)
        study = ON_DATA.override(seeds=(seed,))
        run_study(study, tmp_path / str(seed), trainer=train_on_data, say=str)
        export_csv(study, tmp_path / str(seed), tmp_path / f"csv-{seed}")
        folders.append(tmp_path / f"csv-{seed}")
    (project / "lab.npz").unlink()
    with pytest.raises(UserError, match="csv-2: run .*, he seed 2, is of other data than runs in"):
        import_csv(ON_DATA, tmp_path / "here", folders)


def test_an_export_of_an_earlier_version_is_taken_and_said_to_be_unknown(project, tmp_path):
    fill(ON_DATA, tmp_path / "out", lambda config: {"steps": 4})
    (imported,) = import_csv(ON_DATA, tmp_path / "here", [exported(tmp_path, "csv")])
    assert imported.line().endswith(": 4 taken; data not known of 4")


def test_an_export_may_begin_with_a_byte_order_mark(project, tmp_path):
    run(tmp_path)
    folder = exported(tmp_path, "csv")
    for path in folder.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (imported,) = import_csv(ON_DATA, tmp_path / "here", [folder])
    assert imported.num_taken == 4
    export_csv(ON_DATA, tmp_path / "out", folder)


def test_a_run_done_meanwhile_on_other_data_is_not_forgotten(project, tmp_path):
    run(tmp_path)
    with Store.create(ON_DATA, tmp_path / "out") as store:
        (_, stored), *_ = store.of(ON_DATA)
        assert not store.forget(stored, "another")
        assert store.of(ON_DATA)[0][1].summary is not None
        assert store.forget(stored, stored.summary["data_fingerprint"])
        (_, again), *_ = store.of(ON_DATA)
        assert again.summary is None and store.table("metrics", again.id).rows == []


@pytest.mark.parametrize("ones", [3, 12])
def test_what_an_attempt_left_is_set_aside_where_it_saw_other_data(project, tmp_path, ones):
    from lion_fast.data.open import load_image_set
    from lion_fast.training.folder.checkpoint import save_checkpoint

    config = ON_DATA.cells()[0].config
    left = tmp_path / "cell" / "run"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    facts = load_image_set(config).facts()
    rest = {"training": {}, "config": {}, "validations": [], "probes": []}
    save_checkpoint(left, {"data": facts.to_dict(), "history": torch.zeros(1), **rest})
    write_data("lab.npz", ones)
    drop_unfinished(tmp_path / "cell", config, DataHere())
    assert left.exists() == (ones == 3)
    assert (tmp_path / "cell.1" / "run").exists() == (ones != 3)


def test_an_attempt_at_other_data_fails_with_a_way_to_go_on(project, tmp_path, monkeypatch):
    study = ON_DATA.override(seeds=(1,))
    small = {"growth_rate": 2, "block_layers": 1, "batch_size": 4, "device": "cpu", "window": 2}
    study = replace(study, base=replace(study.base, **small), variants=grid(init=("he",)))
    (cell,) = study.cells()
    out = study.folder(tmp_path / "out") / "runs" / cell.key
    train(replace(cell.config, out=out, max_steps=2))
    write_data("lab.npz", ones=12)
    said = []
    options = {"say": said.append}
    assert run_study(study, tmp_path / "out", **options).num_failed == 1
    assert "other test images" in said[-2] and "train anew: --rerun changed does so" in said[-2]
    assert run_study(study, tmp_path / "out", **options, rerun_changed=True).num_done == 1
    assert out.with_name(f"{cell.key}.1").exists()


def test_a_rerun_is_part_of_no_other_command(tmp_path, capsys):
    for flag in ("--status", "--dry-run", "--power"):
        assert main(["study", "quickstart", flag, "--rerun", "changed"]) == 2
        assert "--rerun runs the study" in capsys.readouterr().err


def test_a_toml_study_may_begin_with_a_byte_order_mark(tmp_path, capsys):
    (tmp_path / "lab.toml").write_bytes(b"\xef\xbb\xbf" + TOML.encode())
    arguments = ["study", str(tmp_path / "lab.toml"), "--status", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "4 runs: 4 missing" in capsys.readouterr().out


def test_a_trainer_that_notes_nothing_is_no_other_data(project, tmp_path):
    assert run(tmp_path, fake_train)[0].num_done == 4
