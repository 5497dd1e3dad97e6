"""Several processes train one network as one process would; what one cannot do ends all of them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_results import table
from world_runs import CHECKPOINT, STEPS

from lion_fast import cli
from lion_fast.errors import SaidElsewhere, UserError
from lion_fast.study.runner import run_study
from lion_fast.study.studies import find_study
from lion_fast.training.folder.checkpoint import load_checkpoint
from lion_fast.training.ranks.torchrun import ranks_here

SUPPORT = Path(__file__).parent / "support"
BAD_INPUT = {
    "odd_batch": "batch_size is 33, which 2 processes cannot share equally",
    "odd_shards": "virtual_shards is 3, which 2 processes cannot share equally",
    "other_config": "rank 1 differs from rank 0: lr 0.002 and not 0.001",
    "no_data": "dataset '/nowhere.npz' is no known name",
    "other_data": "rank 1 has other images than rank 0",
    "one_device": "device is cuda:0, but each of 2 processes takes a GPU of its own",
    "no_gpu": "torch sees no CUDA GPU",
    "diverging": "lower --lr",
}
SHARED = ("global", "local", "shards", "resnet_shards", "sizes", "stopped", "overflow", "norm")


def environment(rank, size):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    told = dict(zip(names, map(str, (rank, rank, size, size)), strict=True))
    return os.environ | told | {"OMP_NUM_THREADS": "1"}


def finish(processes, seconds=600):
    """Wait for all; no process may be left behind by a test that fails."""
    try:
        return [(*p.communicate(timeout=seconds), p.returncode) for p in processes]
    finally:
        for process in processes:
            process.kill()


def run(folder, stripes, size, *scenarios, **env):
    """Run scenarios of world_runs.py on `size` processes; return what each rank reports."""
    folder.mkdir()
    command = [sys.executable, SUPPORT / "world_runs.py", folder, stripes, *scenarios]
    ended = finish(
        [
            subprocess.Popen(
                command, env=environment(rank, size) | env, stderr=subprocess.PIPE, text=True
            )
            for rank in range(size)
        ]
    )
    for _, errors, code in ended:
        assert code == 0, errors[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, stripes):
    folder = tmp_path_factory.mktemp("alone") / "runs"
    return run(folder, stripes, 1, "global", "shards", "resnet_shards", "sizes")[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory, stripes):
    return run(tmp_path_factory.mktemp("two") / "runs", stripes, 2, *SHARED, *BAD_INPUT)


def losses(outcome):
    rows = table(Path(outcome["run"]))
    return torch.tensor([float(row["loss"]) for row in rows], dtype=torch.float64)


def training_state(outcome):
    return load_checkpoint(outcome["run"])["training"]


def test_two_ranks_with_global_statistics_follow_one_process(alone, two):
    one, both = losses(alone["global"]), losses(two[0]["global"])
    assert len(both) == STEPS
    assert abs(one[0] - both[0]) < 5e-6
    assert ((one - both).abs() / one).mean() < 2e-3
    ours, theirs = training_state(two[0]["global"]), training_state(alone["global"])
    for name, tensor in ours["model"].items():
        if "num_batches" in name:
            assert tensor == theirs["model"][name] == STEPS


def test_a_probe_and_a_validation_are_those_of_one_process(alone, two):
    for name, columns in (("probes.csv", "gradient_ratio"), ("validation.csv", "loss")):
        ours, theirs = (table(Path(each["global"]["run"]), name) for each in (two[0], alone))
        assert [row["step"] for row in ours] == [row["step"] for row in theirs] and ours
        for row, other in zip(ours, theirs, strict=True):
            assert float(row[columns]) == pytest.approx(float(other[columns]), rel=0.02)


def test_gradients_that_overflow_on_one_rank_are_skipped_by_all(two):
    assert [rank["overflow"] for rank in two] == [{"weights": [1.0, 1.0], "scale": 32768.0}] * 2


def test_shared_norms_equal_those_of_the_whole_batch_in_fp64(two):
    for rank in two:
        assert all(error < 1e-12 for error in rank["norm"].values()), rank["norm"]
        assert len(rank["norm"]) == 6


def test_what_another_process_says_is_not_said_twice(monkeypatch, capsys):
    def fails(arguments):
        raise SaidElsewhere("rank 0 says so")

    monkeypatch.setitem(cli._COMMANDS, "train", (fails, ""))
    assert cli.main(["train"]) == 2
    assert capsys.readouterr() == ("", "")


def test_a_study_is_not_started_by_torchrun(monkeypatch, tmp_path):
    for name, value in environment(0, 2).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="torchrun has started 2"):
        run_study(find_study("quickstart"), tmp_path)


def test_an_incomplete_environment_is_said_in_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but RANK is ''"):
        ranks_here()


def test_local_statistics_are_another_course(alone, two):
    assert losses(two[0]["local"])[0] != losses(alone["global"])[0]


@pytest.mark.parametrize("scenario", ["shards", "resnet_shards", "sizes"])
def test_virtual_shards_give_the_same_bits_on_one_and_two_processes(alone, two, scenario):
    ours, theirs = two[0][scenario], alone[scenario]
    assert table(Path(ours["run"])) == table(Path(theirs["run"]))
    torch.testing.assert_close(training_state(ours), training_state(theirs), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_virtual_shards_give_the_same_bits_on_four_processes(alone, tmp_path, stripes):
    found = run(tmp_path / "four", stripes, 4, "shards")
    assert table(Path(found[0]["shards"]["run"])) == table(Path(alone["shards"]["run"]))
    states = training_state(found[0]["shards"]), training_state(alone["shards"])
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_rank_0_alone_writes_and_all_ranks_know_the_outcome(two):
    first, second = two
    for name in ("global", "local", "shards", "sizes"):
        assert first[name]["run"] == second[name]["run"]
        assert first[name]["val_loss"] == second[name]["val_loss"]
        assert first[name]["steps"] == second[name]["steps"] == STEPS
        assert first[name]["world_size"] == 2
        whole, each = first[name]["rates"]
        assert each == pytest.approx(whole / 2)
    # One folder for each run that went well, one for the interrupted, one for the diverged.
    runs = Path(first["global"]["run"]).parent
    assert len([path for path in runs.iterdir() if path.is_dir() and path.name != "mine"]) == 5
    assert len(list((runs / "mine").iterdir())) == 2


def test_a_signal_to_one_rank_stops_all_at_the_same_step(two):
    """Rank 0 is told to stop when step 7 is read; the wish travels with the step after it."""
    assert [rank["stopped"] for rank in two] == [{"interrupted": 15}] * 2
    folders = (Path(two[0]["global"]["run"]).parent / "mine").iterdir()
    assert 8 in [len(table(folder)) for folder in folders]


@pytest.mark.parametrize("scenario", BAD_INPUT)
def test_bad_input_of_any_rank_ends_all_with_one_line(two, scenario):
    leader, other = (rank[scenario]["error"] for rank in two)
    assert BAD_INPUT[scenario] in leader and "\n" not in leader
    assert leader.startswith("UserError") and other.startswith("SaidElsewhere")


def test_a_checkpoint_of_two_ranks_resumes_on_one(alone, two, tmp_path, stripes):
    (stopped,) = [
        path
        for path in (Path(two[0]["global"]["run"]).parent / "mine").iterdir()
        if len(table(path)) == 8
    ]
    whole = losses(alone["global"])
    resumed = run(tmp_path / "resumed", stripes, 1, "resumed", RESUME=str(stopped))
    found = losses(resumed[0]["resumed"])
    assert len(found) == STEPS
    assert ((found - whole).abs() / whole).mean() < 2e-3


@pytest.mark.slow
@pytest.mark.exhaustive
def test_shared_norms_compile_whole(alone, tmp_path, stripes):
    found = run(tmp_path / "compiled", stripes, 2, "compiled")[0]["compiled"]
    one, both = losses(alone["global"]), losses(found)
    assert ((one - both).abs() / one).mean() < 5e-3


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def command_line(tmp_path, stripes, *flags):
    settings = "--growth-rate 2 --block-layers 1 --batch-size 32 --window 4 --device cpu".split()
    where = ["--dataset", str(stripes), "--out", str(tmp_path / "runs")]
    return ["-m", "lion_fast", "train", *settings, *where, *map(str, flags)]


def test_a_rank_that_dies_ends_the_others_with_one_line(tmp_path, stripes):
    """Started without torchrun, which would end them itself."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    dies = (
        "import os, sys; from lion_fast.training.step import step; call = step.TrainStep.__call__\n"
        "def dying(self, batch, row):\n"
        "    call(self, batch, row)\n"
        "    if self.steps_done == 5: os._exit(7)\n"
        "step.TrainStep.__call__ = dying\n"
        "from lion_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = command_line(tmp_path, stripes, "--max-steps", 50)
    commands = [[sys.executable, *arguments], [sys.executable, "-c", dies, *arguments[2:]]]
    (_, errors, code), (_, _, other) = finish(
        [
            subprocess.Popen(
                command,
                env=environment(rank, 2) | address,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, command in enumerate(commands)
        ]
    )
    assert (code, other) == (2, 7), errors
    assert [line for line in errors.splitlines() if line.startswith("lion-fast: ")] == [
        "lion-fast: rank 0 lost another process of the run, whose own message says why: start all"
        " again, with --resume where there is a checkpoint"
    ]
    assert "Traceback" not in errors


def test_a_port_in_use_is_said_in_one_line(tmp_path, stripes):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        done = subprocess.run(
            [sys.executable, *command_line(tmp_path, stripes)],
            env=environment(0, 2) | address,
            capture_output=True,
            text=True,
            timeout=600,
        )
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("lion-fast: ")]
    assert done.returncode == 2 and "cannot meet the other processes" in line
    assert "--master-port that is free" in line and "Traceback" not in done.stderr


@pytest.mark.slow
def test_torchrun_restarts_a_killed_run_which_goes_on_by_itself(tmp_path, stripes):
    """Rank 1 is killed in its first attempt after the checkpoint of step 5."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        "from lion_fast.training.step import step\n"
        "call = step.TrainStep.__call__\n"
        "def dying(self, batch, row):\n"
        "    call(self, batch, row)\n"
        "    first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "    if first and os.environ['RANK'] == '1' and self.steps_done == 8:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "step.TrainStep.__call__ = dying\n"
        "from lion_fast.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    flags = command_line(tmp_path, stripes, "--max-steps", STEPS, "--checkpoint-every", CHECKPOINT)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "--max-restarts", "1", script, *flags[2:]),
        ],
        env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = [path for path in (tmp_path / "runs").iterdir()]
    assert [int(row["step"]) for row in table(folder)] == list(range(1, STEPS + 1))
    # Rank 0 alone ends with the summary.
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line)["world_size"] == 2
