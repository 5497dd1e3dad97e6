import csv
import lzma
from pathlib import Path

import pytest
from study_runs import fill, metrics, probes, summary

from lion_fast.cli import main
from lion_fast.errors import UserError
from lion_fast.report.results import read_study
from lion_fast.study.export import NAMES, export_csv
from lion_fast.study.importing import import_csv
from lion_fast.study.store import Store, Table
from lion_fast.study.studies import STUDIES

STUDY = STUDIES["quickstart"]
COMMITTED = Path(__file__).parent.parent / "bench" / "results" / "studies"


def whole(config):
    """A run with all that an export holds."""
    tables = {
        "metrics": metrics(),
        "probes": probes([0.0, 0.5], [0.1, 0.2]),
        "validation": Table(["step", "seconds", "loss"], [[4, 0.5, 1.25]]),
    }
    return {"steps": 4, "steps_to_target": config.seed % 5, "tables": tables}


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def exported(tmp_path, study=STUDY, result=whole):
    fill(study, tmp_path / "there", result)
    export_csv(study, tmp_path / "there", tmp_path / "csv")
    return tmp_path / "csv"


def test_an_import_gives_back_what_was_exported(tmp_path):
    (told,) = import_csv(STUDY, tmp_path / "here", [exported(tmp_path)])
    assert (told.num_taken, told.num_held, told.num_others) == (6, 0, 0)
    export_csv(STUDY, tmp_path / "here", tmp_path / "again")
    for name in NAMES:
        before, after = (rows(tmp_path / folder / name) for folder in ("csv", "again"))
        assert before == after
    there, here = (read_study(STUDY, tmp_path / name) for name in ("there", "here"))
    for one, other in zip(there.runs, here.runs, strict=True):
        assert {k: other.summary[k] for k in one.summary} == one.summary
        assert one.head_norms.keys() == other.head_norms.keys()


def xz(path):
    """Do what the command of that name does."""
    path.with_name(f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes()))
    path.unlink()


def test_an_export_that_xz_made_small_is_read_and_replaced_by_the_next(tmp_path):
    folder = exported(tmp_path)
    for name in NAMES:
        xz(folder / name)
    (told,) = import_csv(STUDY, tmp_path / "here", [folder])
    assert told.num_taken == 6
    export_csv(STUDY, tmp_path / "here", folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-50], lambda whole: b"no such" + whole])
def test_a_damaged_xz_file_is_refused_in_one_line(tmp_path, damage):
    folder = exported(tmp_path)
    xz(folder / NAMES[1])
    path = folder / f"{NAMES[1]}.xz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="cannot read the export"):
        import_csv(STUDY, tmp_path / "here", [folder])


def test_committed_results_stay_small():
    """Tables that a person reads stay as they are; the large ones are xz's, and all fit 10 MiB."""
    sizes = {path: path.stat().st_size for path in COMMITTED.parent.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 10 << 20
    large = [path.name for path, size in sizes.items() if size > 200_000 and path.suffix == ".csv"]
    assert large == [], "make them small with xz -9e"


def test_a_column_of_an_option_that_is_gone_is_no_fact_of_the_environment(tmp_path):
    folder = exported(tmp_path)
    before = rows(folder / NAMES[0])
    with open(folder / NAMES[0], "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*before[0], "fewer_launches"])
        writer.writeheader()
        writer.writerows(row | {"fewer_launches": "False"} for row in before)
    import_csv(STUDY, tmp_path / "here", [folder])
    for run in read_study(STUDY, tmp_path / "here").runs:
        assert "fewer_launches" not in run.summary["environment"]


def test_runs_of_two_folders_become_one_study(tmp_path):
    study = STUDIES["headline"].override(stop_at_target=True)
    of_table6 = STUDIES["table6"].override(stop_at_target=True)
    fill(of_table6, tmp_path / "a", lambda c: {"steps": 4, "steps_to_target": 1000})
    export_csv(of_table6, tmp_path / "a", tmp_path / "a-csv")
    new = study.override(seeds=(1001, 1002))
    fill(new, tmp_path / "b", lambda c: {"steps": 4, "steps_to_target": 1100})
    export_csv(new, tmp_path / "b", tmp_path / "b-csv")
    told = import_csv(study, tmp_path, [tmp_path / "a-csv", tmp_path / "b-csv"])
    assert [(each.num_taken, each.num_others) for each in told] == [(6, 6), (4, 0)]
    results = read_study(study, tmp_path)
    assert len(results.runs) == 10 and len(results.missing) == 10
    assert {run.config.seed for run in results.runs} == {42, 123, 456, 1001, 1002}


def test_a_run_that_is_here_already_stays_as_it_is(tmp_path):
    folder = exported(tmp_path)
    fill(STUDY, tmp_path / "here", lambda c: {"steps_to_target": 7} if c.seed == 42 else None)
    (told,) = import_csv(STUDY, tmp_path / "here", [folder])
    assert (told.num_taken, told.num_held) == (4, 2)
    assert told.line() == f"{folder}: 4 taken, 2 here already; data not known of 4"
    run = read_study(STUDY, tmp_path / "here").find(init="he", seed=42)[0]
    assert run.summary["steps_to_target"] == 7


def test_failed_runs_are_not_taken(tmp_path):
    folder = exported(tmp_path, result=lambda c: whole(c) if c.init == "he" else "loss is nan")
    (told,) = import_csv(STUDY, tmp_path / "here", [folder])
    assert (told.num_taken, told.num_others) == (3, 3)


def test_runs_of_another_config_are_refused_with_the_flags_that_may_be_missing(tmp_path):
    folder = exported(tmp_path, STUDY.override(max_steps=50))
    with pytest.raises(UserError, match="no run of quickstart in .*: give the flags"):
        import_csv(STUDY, tmp_path / "here", [folder])
    assert not (tmp_path / "here").exists()


def test_runs_of_another_version_are_refused(tmp_path):
    def of_another(config):
        environment = summary(config)["environment"] | {"lion-fast": "0.0.9"}
        return {"steps_to_target": 80, "environment": environment}

    with pytest.raises(UserError, match="exported from lion-fast 0.0.9"):
        import_csv(STUDY, tmp_path / "here", [exported(tmp_path, result=of_another)])


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n"])
def test_what_is_no_export_is_refused_in_one_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "summaries.csv").write_text(content)
    arguments = ["study", "quickstart", "--import", str(tmp_path), "--out", str(tmp_path / "o")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "cannot read the export" in error or "is no export of a study" in error
    assert len(error.strip().splitlines()) == 1


def damaged(folder, name, edit):
    """The export with the rows of one file, the first of them its column names, edited."""
    with open(folder / name, newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    columns = {column: number for number, column in enumerate(lines[0])}
    edit(lines, columns)
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def write(column, value):
    def edit(lines, columns):
        lines[1][columns[column]] = value

    return edit


def without(column):
    def edit(lines, columns):
        for line in lines:
            del line[columns[column]]

    return edit


DAMAGES = {
    "a word as accuracy": (0, write("val_accuracy", "high"), "cannot take run"),
    "a word as a head's": (0, write("val_accuracy_head0", "high"), "cannot take run"),
    "no number of steps": (0, write("steps", "nan"), "cannot take run"),
    "no column steps": (0, without("steps"), "no column steps"),
    "no column key": (1, without("key"), "no column key"),
    "no column step": (1, without("step"), "no column step"),
    "a word as loss": (1, write("loss", "low"), "cannot take run"),
    "a word as step": (1, write("step", "first"), "cannot take run"),
    "a summary cut short": (0, lambda lines, _: lines[-1].__delitem__(slice(9, None)), "was cut"),
    "a step cut short": (1, lambda lines, _: lines[-1].__delitem__(slice(3, None)), "was cut"),
    "a value too many": (0, lambda lines, _: lines[1].append("1"), "was cut or edited"),
    "steps cut off": (1, lambda lines, _: lines.__delitem__(slice(-2, None)), "2 of its 4 steps"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_export_is_refused_in_one_line_and_none_of_it_taken(tmp_path, capsys, name):
    folder = exported(tmp_path, STUDY.override(seeds=(42,)))
    file, edit, reason = DAMAGES[name]
    damaged(folder, NAMES[file], edit)
    arguments = ["study", "quickstart", "--import", str(folder), "--out", str(tmp_path / "here")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert reason in error and len(error.strip().splitlines()) == 1
    if (tmp_path / "here").exists():
        with Store.open(STUDY.folder(tmp_path / "here")) as store:
            assert all(cell.summary is None for _, cell in store.of(STUDY))


def test_the_committed_exports_make_the_headline_of_ten_seeds(tmp_path, capsys):
    folders = [str(COMMITTED / name) for name in ("table6", "headline")]
    flags = ["--engine", "compile", "--stop-at-target", "--out", str(tmp_path)]
    assert main(["study", "headline", *flags, "--import", *folders]) == 0
    printed = capsys.readouterr().out
    assert "table6: 6 taken, 6 not of this study or failed" in printed
    assert "headline: 14 taken, 6 here already" in printed
    assert main(["study", "headline", "--power", "--out", str(tmp_path)]) == 0
    assert "| lion_dg" in capsys.readouterr().out
    runs = read_study(STUDIES["headline"], tmp_path).runs
    assert len({run.summary["environment"]["cpu"] for run in runs}) == 2
