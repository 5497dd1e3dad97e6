"""Studies on a simulated Ray cluster: three nodes of this machine, each of one CPU."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import fake_study as fake
import pytest
import ray_runs
from fake_study import is_running, wait_for
from ray_runs import ONE, REAL

from lion_fast.cli import main
from lion_fast.config import TrainConfig
from lion_fast.data.arrays import LabelledArrays
from lion_fast.data.open import load_image_set
from lion_fast.data.sources import lend, read_arrays
from lion_fast.errors import UserError
from lion_fast.study.pools import cluster as ray_cluster, node
from lion_fast.study.pools.connecting import check_answers
from lion_fast.study.runner import run_study
from lion_fast.study.status import status_lines
from lion_fast.study.store import Store

SUPPORT = Path(ray_runs.__file__).parent


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Folder of temporary files on the cluster's nodes, its own wherever else Ray is at work."""
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def address(scratch):
    """Address of a cluster that ends with these tests."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'lion-fast[ray]'")
    with subprocess.Popen(
        [sys.executable, "ray_runs.py"],
        cwd=SUPPORT,
        # Ray's own sockets need a short path.
        env=os.environ
        | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp", "TMPDIR": str(scratch)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        lines = iter(process.stdout.readline, "")
        yield next(line for line in lines if line.startswith("address")).split()[1]
        process.stdin.close()


def start(study, folder, address, trainer, options=""):
    """Start a study in a process of its own, in the folder that nodes import its trainer from."""
    call = f"ray_runs.run(ray_runs.{study}, {str(folder)!r}, {address!r}, ray_runs.{trainer}"
    return subprocess.Popen(
        [sys.executable, "-c", f"import ray_runs; {call}, {options})"],
        cwd=SUPPORT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(*arguments):
    """Run a study to its end; return its exit code, output and errors."""
    process = start(*arguments)
    output, errors = process.communicate(timeout=600)
    return process.returncode, output, errors


def events(folder):
    path = folder / "log.txt"
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


def last_events(folder):
    """The last event of every worker."""
    return list({event[3]: event for event in events(folder)}.values())


def stored(study, folder):
    with Store.open(study.folder(folder)) as store:
        return [each for _, each in store.of(study)]


def numbers(study, folder):
    """What a study's runs gave, without their times."""
    told = {}
    with Store.open(study.folder(folder)) as store:
        for cell, each in store.of(study):
            columns, rows = store.table("metrics", each.id)
            kept = [
                i for i, name in enumerate(columns) if name not in ("seconds", "images_per_second")
            ]
            accuracy = each.summary["val_accuracy_per_head"]
            told[cell.label, cell.config.seed] = accuracy, [[row[i] for i in kept] for row in rows]
    return told


def test_a_signal_lets_runs_in_flight_save_and_brings_their_checkpoints_home(tmp_path, address):
    process = start("fake.STUDY", tmp_path, address, "slow_train", "jobs=2")

    def both_are_midway():
        last = [event[0] for event in last_events(tmp_path)]
        return len(last) == 2 and {*last} <= {"step-1", "step-2", "step-3", "step-4"}

    wait_for(both_are_midway)
    assert "2 running" in status_lines(fake.STUDY, tmp_path)[-1]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (130, ""), output
    assert "interrupted" in output
    assert {event[0] for event in last_events(tmp_path)} == {"saved"}
    saved = [int(path.read_text()) for path in tmp_path.rglob("checkpoint.pt")]
    assert len(saved) == 2 and all(saved)
    assert not any(each.error for each in stored(fake.STUDY, tmp_path))
    done = sum(each.summary is not None for each in stored(fake.STUDY, tmp_path))
    # What nodes have begun, this machine alone goes on with.
    outcome = run_study(fake.STUDY, tmp_path, trainer=fake.fake_train, say=str)
    assert outcome.num_done == 6 - done
    resumed = [each.summary["resumed_at"] for each in stored(fake.STUDY, tmp_path)]
    assert sorted(filter(None, resumed)) == sorted(saved)


def test_a_killed_driver_leaves_nothing_behind_and_only_missing_cells_run(
    tmp_path, address, scratch
):
    def num_done():
        return sum(each.summary is not None for each in stored(fake.STUDY, tmp_path))

    process = start("fake.STUDY", tmp_path, address, "slow_train", "jobs=2")
    wait_for(lambda: events(tmp_path))
    wait_for(num_done)
    wait_for(lambda: any(tmp_path.rglob("checkpoint.pt")))
    assert list(scratch.glob("lion-fast-slot-*"))
    process.kill()
    process.communicate()
    workers = {int(event[3]) for event in events(tmp_path)}
    wait_for(lambda: not any(map(is_running, workers)))
    missing = 6 - num_done()
    before = len(events(tmp_path))
    # A run may have ended between the look at its checkpoint and the kill.
    is_kept = any(tmp_path.rglob("checkpoint.pt"))
    code, output, errors = finish("fake.STUDY", tmp_path, address, "fake.fake_train")
    assert (code, errors) == (0, ""), output
    again = [event for event in events(tmp_path)[before:] if event[0].startswith("from")]
    assert len(again) == missing < 6
    assert any(event[0] != "from-0" for event in again) == is_kept
    assert all(each.summary for each in stored(fake.STUDY, tmp_path))
    assert not list(tmp_path.rglob("checkpoint*"))
    homes = [Path(each.summary["run"]) for each in stored(fake.STUDY, tmp_path)]
    assert all((home / "metrics.csv").exists() for home in homes)
    wait_for(lambda: not list(scratch.glob("lion-fast-slot-*")))


def test_a_bug_fails_its_cells_and_the_rest_goes_on(tmp_path, address):
    options = (tmp_path, address, "fake.train_that_has_a_bug_on_lsuv", "jobs=2")
    code, output, errors = finish("fake.STUDY.override(seeds=(1,))", *options)
    assert (code, errors) == (0, ""), output
    assert "num_done=2, num_failed=1" in output
    (error,) = [each.error for each in stored(fake.STUDY, tmp_path) if each and each.error]
    assert "RuntimeError: illegal memory access" in error


def test_nodes_get_a_data_set_that_only_the_driver_has(tmp_path, address, stripes):
    copy = tmp_path / "stripes.npz"
    copy.write_bytes(stripes.read_bytes())
    study = f"ONE.override(dataset={str(copy)!r})"
    code, output, errors = finish(study, tmp_path, address, "train_without_the_file")
    assert (code, errors) == (0, ""), output
    assert not copy.exists()
    sent = ONE.override(dataset=str(copy))
    copy.write_bytes(stripes.read_bytes())
    run_study(sent, tmp_path / "local", say=str)
    assert numbers(sent, tmp_path) == numbers(sent, tmp_path / "local")
    for each in stored(sent, tmp_path):
        assert each.summary["config"]["dataset"] == str(copy)
        assert each.summary["config"]["out"] == str(Path(each.summary["run"]).parent)


def test_other_code_on_a_node_is_refused(tmp_path, address):
    options = "code='0123'"
    code, _, errors = finish("fake.STUDY", tmp_path, address, "fake.fake_train", options)
    assert code == 2
    assert "has lion-fast's code" in errors and "this machine has 0123" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpus-per-run", "0.25"], "1 CPU and 0.25 GPU, and no node"),
        (["--cpus-per-run", "64"], "a run is to have 64 CPU, and no node"),
    ],
)
def test_what_no_node_has_is_refused_with_what_the_cluster_has(tmp_path, address, flags, words):
    command = [sys.executable, "-m", "lion_fast.cli", "study", "quickstart", "--ray", address]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), *flags], capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and "of 1 CPU and no GPU" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_killed_nodes_cells_go_on_elsewhere_and_give_the_local_runners_numbers(tmp_path, address):
    folder = tmp_path / "ray"
    folder.mkdir()
    options = (folder, address, "train_in_two_parts", "watch=ray_runs.kill_a_node")
    code, output, errors = finish("REAL", *options)
    assert (code, errors) == (0, ""), output
    assert output.count("lost    ") == 1 and "its node has gone" in output
    lost = (folder / "killed").read_text()
    begun = [event for event in events(folder) if event[1:3] == (lost, "1") and "from" in event[0]]
    assert [event[0] for event in begun] == ["from-0", f"from-{ray_runs.PAUSED_AT}"]
    run_study(REAL, tmp_path / "local", say=str, jobs=2)
    assert len(numbers(REAL, folder)) == 12
    assert numbers(REAL, folder) == numbers(REAL, tmp_path / "local")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpus-per-run", "0.5"], "--gpus-per-run goes with --ray only"),
        (["--cpus-per-run", "2"], "--cpus-per-run goes with --ray only"),
        (["--ray", "local", "--gpus-per-run", "0"], "gpus_per_run is 0.0"),
        (["--ray", "local", "--gpus-per-run", "-1"], "gpus_per_run is -1.0"),
        (["--ray", "local", "--gpus-per-run", "1.5"], "gpus_per_run is 1.5"),
        (["--ray", "local", "--gpus-per-run", "nan"], "gpus_per_run is nan"),
        (["--ray", "local", "--cpus-per-run", "0"], "cpus_per_run is 0"),
        (["--ray", "local", "--jobs", "0"], "jobs is 0"),
        (["--ray", "here"], "ray is 'here': give local, auto or HOST:PORT"),
        (["--ray", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["--ray", "127.0.0.1:99999"], "no Ray cluster answers at 127.0.0.1:99999"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_in_one_line(
    tmp_path, capsys, monkeypatch, flags, words
):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: name)
    assert main(["study", "quickstart", "--out", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_an_address_where_something_else_listens_is_refused_at_once():
    def refuse_http2(server):
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.0 505 Not Supported")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=refuse_http2, args=(server,))
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"at {address} .something else listens there"):
            check_answers(address)
        thread.join()


def test_without_ray_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    assert main(["study", "quickstart", "--ray", "local", "--out", str(tmp_path)]) == 2
    assert "pip install 'lion-fast[ray]'" in capsys.readouterr().err


def test_a_study_that_is_not_for_ray_does_not_import_it():
    code = (
        "import sys, lion_fast.study.runner, lion_fast.study.pools.cluster\n"
        "print({'ray', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_node_has_room_for_as_many_runs_as_its_gpus_and_cpus_divide_into():
    gpus = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}}
    assert ray_cluster.Share(2, 0.25).fits(gpus) == 8
    assert ray_cluster.Share(4, 0.25).fits(gpus) == 4
    assert ray_cluster.Share(1, 0.4).fits(gpus) == 4
    assert ray_cluster.Share(1, 1.0).fits(gpus) == 2
    assert ray_cluster.Share(1, 0.0).fits(gpus) == 16
    assert ray_cluster.Share(1, 0.0).fits(gpus | {"Alive": False}) == 0


def test_a_lent_data_set_is_the_same_and_its_file_need_not_exist(stripes, tmp_path, monkeypatch):
    monkeypatch.setattr("lion_fast.data.sources._LENT", {})
    config = TrainConfig(dataset=str(tmp_path / "stripes.npz"))
    here = TrainConfig(dataset=str(stripes))
    with pytest.raises(UserError, match="no such file"):
        load_image_set(config)
    arrays = read_arrays(here)
    assert isinstance(arrays, LabelledArrays)
    lend(config.dataset, arrays)
    assert load_image_set(config).facts() == load_image_set(here).facts()
    assert load_image_set(config).name == "stripes"


def test_the_digest_of_the_code_covers_the_kernels():
    names = node._sources()
    assert {"cli.py", "study/pools/node.py", "kernels/__init__.py"} <= set(names)
    assert len(node.software().code) == 12
