import csv
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from study_runs import summary

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.report.results import read_study
from lion_fast.study.export import export_csv
from lion_fast.study.grid import Study, grid
from lion_fast.study.status import status_lines
from lion_fast.study.store import Store, Table

STUDY = Study(
    name="small",
    title="A small study",
    base=TrainConfig(max_steps=5),
    variants=grid(init=("he", "lion_dg")),
    seeds=(1, 2),
)
SUMMARY = summary(
    STUDY.base, steps=2, val_accuracy_per_head=[0.25, 0.5], resolved={"device": "cpu"}
)
TABLES = {
    "metrics": Table(["step", "loss"], [[1, 2.5], [2, None]]),
    "validation": Table(["step", "loss"], [[2, 1.5]]),
}


@pytest.fixture
def store(tmp_path):
    with Store.create(STUDY, tmp_path) as store:
        yield store


def test_a_finished_run_reads_back_whole(store):
    before = store.cells()
    store.finish(before[1].id, SUMMARY, TABLES)
    after = store.cells()
    assert after[1].summary == SUMMARY
    assert [cell.summary for cell in after if cell.id != before[1].id] == [None] * 3
    assert store.table("metrics", before[1].id) == (["step", "loss"], [(1, 2.5), (2, None)])
    assert store.table("metrics", before[0].id).rows == []


def test_the_stored_config_is_that_of_the_cell(store):
    for cell, stored in store.of(STUDY):
        assert stored.config == cell.config


def test_runs_with_more_heads_widen_the_tables(store):
    first, second, *_ = store.cells()
    store.finish(first.id, SUMMARY, TABLES)
    wide = Table(["step", "loss", "loss_head3"], [[1, 2.0, 3.0]])
    store.finish(second.id, SUMMARY, {"metrics": wide})
    assert list(store.table("metrics", first.id).columns) == ["step", "loss", "loss_head3"]
    assert store.table("metrics", first.id).rows == [(1, 2.5, None), (2, None, None)]
    assert store.table("metrics", second.id).rows == [(1, 2.0, 3.0)]


def test_a_run_is_recorded_whole_or_not_at_all(store):
    cell = store.cells()[0]
    torn = Table(["step", "loss"], [[1, 2.0], [2]])
    with pytest.raises(sqlite3.ProgrammingError):
        store.finish(cell.id, SUMMARY, {"validation": TABLES["validation"], "metrics": torn})
    assert store.cells()[0].summary is None
    assert store.table("validation", cell.id).rows == []
    store.finish(cell.id, SUMMARY, TABLES)
    assert store.cells()[0].summary == SUMMARY


def test_a_failure_is_kept_until_the_run_succeeds_and_never_replaces_a_result(store):
    cell = store.cells()[0]
    store.fail(cell.id, "loss is nan")
    assert store.cells()[0].error == "loss is nan"
    store.finish(cell.id, SUMMARY, TABLES)
    store.fail(cell.id, "late news")
    assert (store.cells()[0].summary, store.cells()[0].error) == (SUMMARY, None)


def test_more_seeds_and_variants_join_the_store_and_results_stay(tmp_path, store):
    store.finish(store.cells()[0].id, SUMMARY, TABLES)
    wider = Study(
        name="small",
        title="t",
        base=STUDY.base,
        variants=grid(init=("he", "lion_dg", "lsuv")),
        seeds=(1, 2, 3),
    )
    Store.create(wider, tmp_path).close()
    found = store.of(wider)
    assert len(found) == 9
    assert sum(stored.summary is not None for _, stored in found) == 1


def test_another_config_is_refused_with_the_difference(tmp_path, store):
    with pytest.raises(
        UserError, match=r"another config: lr 0\.005 -> 0\.5, max_steps 5 -> 6; give"
    ):
        Store.create(STUDY.override(lr=0.5, max_steps=6), tmp_path)
    Store.create(STUDY.override(data_dir=tmp_path, log_every=3), tmp_path).close()


def test_another_versions_store_is_shown_and_gets_no_more_runs(tmp_path):
    with Store.create(STUDY, tmp_path) as store:
        store.finish(store.cells()[0].id, SUMMARY, TABLES)
    change(tmp_path / "small" / "study.sqlite", "UPDATE study SET version = '0.0.1'")
    with pytest.raises(UserError, match=r"was written by lion-fast 0\.0\.1 and this is"):
        Store.create(STUDY, tmp_path)
    assert status_lines(STUDY, tmp_path)[-1].startswith("small: 4 runs: 1 done, 3 missing")
    assert len(read_csv(export_csv(STUDY, tmp_path, tmp_path / "csv")[0])) == 1
    assert len(read_study(STUDY, tmp_path).runs) == 1


def test_another_layout_is_refused(tmp_path, store):
    change(store.path, "PRAGMA user_version = 99")
    with pytest.raises(UserError, match="has layout 99 and this version of lion-fast reads"):
        Store.open(store.folder)


def change(path, statement):
    database = sqlite3.connect(path)
    with database:
        database.execute(statement)
    database.close()


def test_a_study_that_was_never_run_is_no_store(tmp_path):
    with pytest.raises(UserError, match="no study in"):
        Store.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def text_file(path):
    path.write_text("this is no database, but somebody's notes\n" * 50)


def foreign_database(path):
    change(path, "CREATE TABLE recipes (name TEXT)")


def torn_database(path):
    with Store.create(STUDY, path.parents[1]) as store:
        store.finish(1, SUMMARY, {"metrics": Table(["step"], [[i] for i in range(5000)])})
    data = bytearray(path.read_bytes())
    data[8192:12288] = b"\xa5" * 4096
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (text_file, "is damaged .file is not a database. and was left as it is"),
        (foreign_database, "is not a lion-fast study: it was left as it is"),
        (torn_database, "is damaged .* and was left as it is"),
    ],
)
def test_what_is_no_whole_store_is_named_and_not_touched(tmp_path, spoil, words):
    path = tmp_path / "small" / "study.sqlite"
    path.parent.mkdir()
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=words):
        Store.create(STUDY, tmp_path)
    assert path.read_bytes() == before


def test_a_store_locked_by_another_program_says_so(tmp_path, store):
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match="another program has locked .*: close it and start again"):
        Store.create(STUDY, tmp_path, busy_seconds=0.05)
    other.execute("ROLLBACK")
    other.close()
    Store.create(STUDY, tmp_path, busy_seconds=0.05).close()


HOLD = """
import sys
from pathlib import Path
from lion_fast.study.store import Store
with Store.open(Path(sys.argv[1])) as store, store.claim(int(sys.argv[2])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def hold(store, cell_id):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.folder), str(cell_id)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_claim_excludes_other_processes_and_dies_with_its_own(store, ending):
    mine, other, *_ = [cell.id for cell in store.cells()]
    with store.claim(mine) as held:
        assert held and store.claimed_by(mine) == os.getpid()
        process, answer = hold(store, mine)
        process.communicate()
        assert answer == "False"
    process, answer = hold(store, mine)
    assert answer == "True"
    assert store.claimed_by(mine) == process.pid
    assert store.claimed_by(other) is None
    with store.claim(mine) as held:
        assert not held
    with store.claim(other) as held:
        assert held
    process.send_signal(ending)
    process.communicate()
    assert store.claimed_by(mine) is None
    with store.claim(mine) as held:
        assert held


def test_a_finished_cell_cannot_be_claimed(store):
    cell = store.cells()[0]
    store.finish(cell.id, SUMMARY, TABLES)
    with store.claim(cell.id) as held:
        assert not held


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ("{}", "lacks .*steps.* and was left as it is"),
        ("[]", "lacks"),
        ("{", "has no valid JSON as its summary"),
        (json.dumps(SUMMARY | {"steps": 3})[:-1] + ', "resolved": 1}', None),
    ],
)
def test_a_summary_that_is_none_of_ours_is_one_line(tmp_path, capsys, store, stored, words):
    change(store.path, f"UPDATE cells SET summary = '{stored}' WHERE id = 1")
    if words is None:
        assert store.cells()[0].summary["steps"] == 3
        return
    with pytest.raises(UserError, match=f"study.sqlite is damaged .*run .*{words}"):
        store.cells()


@pytest.fixture
def read_only_folder():
    """A function that takes away the right to write in a folder; the folder's own name."""
    if os.geteuid() == 0:  # root may write everywhere
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)

            def protect():
                os.seteuid(65534)

            yield folder, protect
            os.seteuid(0)
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)

            def protect():
                for path in (*folder.rglob("*"), folder):
                    path.chmod(0o555 if path.is_dir() else 0o444)

            yield folder, protect
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)


@pytest.mark.parametrize("journal", [False, True])
def test_a_read_only_store_can_be_read_and_only_read(tmp_path, read_only_folder, journal):
    folder, protect = read_only_folder
    with Store.create(STUDY, folder) as store:
        store.finish(store.cells()[0].id, SUMMARY, TABLES)
        store_files = {path: path.read_bytes() for path in store.folder.glob("*.sqlite*")}
    if journal:  # as a killed process leaves it
        assert any(path.name.endswith("-wal") for path in store_files)
        for path, content in store_files.items():
            path.write_bytes(content)
    csv_folder = tmp_path / "csv"
    csv_folder.mkdir()
    protect()
    before = sorted(path.name for path in (folder / "small").iterdir())
    assert status_lines(STUDY, folder)[-1].startswith("small: 4 runs: 1 done, 3 missing")
    assert len(read_study(STUDY, folder).runs) == 1
    assert sorted(path.name for path in (folder / "small").iterdir()) == before
    with pytest.raises(UserError, match="cannot use .*: Permission denied|see to its disk"):
        Store.create(STUDY, folder)


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_export_holds_every_summary_and_every_step(tmp_path, store):
    done, failed, *_ = store.cells()
    probes = Table(["step", "gradient_ratio"], [[1, 0.75]])
    store.finish(done.id, SUMMARY, TABLES | {"probes": probes})
    store.fail(failed.id, "loss is nan")
    paths = export_csv(STUDY, tmp_path, tmp_path / "csv")
    assert [path.name for path in paths] == ["summaries.csv", "metrics.csv"]
    summaries, metrics = map(read_csv, paths)
    assert [(row["init"], row["seed"], row["error"], row["steps"]) for row in summaries] == [
        ("he", "1", "", "2"),
        ("lion_dg", "1", "loss is nan", ""),
    ]
    assert (summaries[0]["val_accuracy_head1"], summaries[0]["device"]) == ("0.5", "cpu")
    assert [
        (row["init"], row["seed"], row["step"], row["loss"], row["val_loss"], row["gradient_ratio"])
        for row in metrics
    ] == [("he", "1", "1", "2.5", "", "0.75"), ("he", "1", "2", "", "1.5", "")]


def test_numbers_survive_export_exactly(tmp_path, store):
    cell = store.cells()[0]
    values = [math.pi, 1e-300, 0.1 + 0.2]
    table = Table(["step", "loss"], [[i, value] for i, value in enumerate(values)])
    store.finish(cell.id, SUMMARY, {"metrics": table})
    _, path = export_csv(STUDY, tmp_path, tmp_path / "csv")
    assert [float(row["loss"]) for row in read_csv(path)] == values


def test_the_export_holds_fields_that_do_not_vary(tmp_path, store):
    store.finish(store.cells()[0].id, SUMMARY, TABLES)
    path, _ = export_csv(STUDY, tmp_path, tmp_path / "csv")
    (row,) = read_csv(path)
    assert (row["lr"], row["batch_size"], row["dataset"]) == ("0.005", "128", "digits")
    assert (row["device"], row["engine"]) == ("cpu", "auto")


def test_an_export_replaces_its_own_files_and_asks_before_it_touches_others(tmp_path, store):
    store.finish(store.cells()[0].id, SUMMARY, TABLES)
    folder = tmp_path / "csv"
    for _ in range(2):
        export_csv(STUDY, tmp_path, folder)
    other = Study(name="other", title="t", base=STUDY.base, variants=grid(init=("lsuv",)))
    with Store.create(other, tmp_path) as others:
        others.finish(1, SUMMARY, TABLES)
    with pytest.raises(UserError, match="holds other runs than this study's: .*--force"):
        export_csv(other, tmp_path, folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds notes.txt already: .*--force"):
        export_csv(STUDY, tmp_path, folder)
    export_csv(other, tmp_path, folder, force=True)
    assert read_csv(folder / "summaries.csv")[0]["init"] == "lsuv"
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        export_csv(STUDY, tmp_path, tmp_path / "file")
