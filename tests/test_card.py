"""A call on a card: what it plans, how it ends stages, and what travels there."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gpu import card, pack

BENCH = Path(card.__file__).parents[1]


def test_longer_plans_only_add_stages_and_every_stage_is_a_function():
    plans = [[stage.name for stage in card.plan(minutes)] for minutes in (12, 25, 40)]
    assert plans[0] == plans[1][: len(plans[0])] and plans[1] == plans[2][: len(plans[1])]
    assert len(plans[0]) < len(plans[1]) < len(plans[2]) == len(card.STAGES)
    for stage in card.STAGES:
        assert callable(getattr(importlib.import_module(f"gpu.{stage.module}"), stage.name))
    assert not {stage.name for stage in card.STAGES} & card.TO_COME.keys()


def test_what_did_not_end_the_first_time_comes_before_what_did():
    names = [stage.name for stage in card.plan(12)]
    assert names.index("values") < names.index("tests") < names.index("heads")
    assert names.index("heads") < names.index("steps")
    assert [stage.name for stage in card.plan(12, ["runs", "machine"])] == ["machine", "runs"]


FAKES = """
import sys, time, types
import torch  # as `card.prepare` does: a stage's time is its own
sys.path.insert(0, {bench!r})
from pathlib import Path
from gpu import card
from gpu.findings import Call

fakes = types.ModuleType("gpu.fakes")
def quick(call, seconds):
    call.say("quick", saw=1)
    (out / "quick").touch()
def slow(call, seconds):
    call.say("slow", saw=1)
    time.sleep(60)
def behind(call, seconds):
    end = time.monotonic() + seconds / 2
    while not (out / "quick").exists() and time.monotonic() < end:
        time.sleep(0.02)
    call.say("behind", saw=1)
def broken(call, seconds):
    raise ValueError("no such kernel")
fakes.quick, fakes.slow, fakes.behind, fakes.broken = quick, slow, behind, broken
sys.modules["gpu.fakes"] = fakes
out = Path(sys.argv[1])
stage = lambda name, seconds, **more: card.Stage(name, "fakes", seconds, **more)
card.Schedule(Call(out), {seconds}, out / "ended.txt").run({stages})
"""


@pytest.fixture
def findings(tmp_path):
    """A function that runs stages in a process of its own and returns what was found."""

    def run(stages, seconds=20):
        program = FAKES.format(bench=str(BENCH), seconds=seconds, stages=stages)
        command = [sys.executable, "-c", program, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "card.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    return run


def test_a_stage_out_of_time_is_ended_and_said_so_and_the_next_begins(findings):
    found = findings('[stage("slow", 3), stage("quick", 30)]', seconds=60)
    assert {"saw": 1}.items() <= found[1].items()
    codes = {line["ends"]: line["code"] for line in found if "ends" in line}
    assert codes == {"slow": "out of time", "quick": 0}


def test_a_stage_that_fails_is_told_with_its_error_and_the_next_begins(findings):
    found = findings('[stage("broken", 5), stage("quick", 5)]')
    (error,) = [line["error"] for line in found if "error" in line]
    assert error == "ValueError: no such kernel"
    assert [line["code"] for line in found if "ends" in line] == [1, 0]


def test_nothing_runs_beside_a_stage_that_times(findings):
    beside = 'stage("behind", 3, times=False, beside=True)'
    found = findings(f'[{beside}, stage("quick", 5)]')
    order = [line["stage"] for line in found if "saw" in line]
    assert order == ["behind", "quick"]


def test_what_looks_at_values_runs_beside_what_compiles(findings):
    beside = 'stage("behind", 40, times=False, beside=True)'
    found = findings(f'[{beside}, stage("quick", 5, times=False)]', seconds=50)
    order = [line["stage"] for line in found if "saw" in line]
    assert order == ["quick", "behind"]


def test_a_stage_that_too_little_time_is_left_for_is_left_out_and_said_so(findings):
    found = findings('[stage("quick", 300), stage("quick", 5)]', seconds=20)
    assert [line["left_out"] for line in found if "left_out" in line] == ["quick"]
    assert [line["code"] for line in found if "ends" in line] == [0]


def test_a_later_call_takes_what_the_earlier_one_has_not_ended(findings):
    stages = '[stage("quick", 5), stage("slow", 8), stage("behind", 3)]'
    first = findings(stages, seconds=7)
    assert [line["ends"] for line in first if "ends" in line] == ["quick", "slow"]
    again = findings(stages, seconds=25)[len(first) :]
    assert [line["ends"] for line in again if "ends" in line] == ["slow", "behind"]


def test_a_machine_without_a_gpu_is_told_so_in_one_line(tmp_path):
    command = [sys.executable, str(BENCH / "gpu" / "card.py"), "--folder", str(tmp_path)]
    env = {"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert "no CUDA GPU" in line


@pytest.fixture
def images(tmp_path):
    """A small cifar10.npz; its folder."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, num in (("train", 2500), ("test", 70)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (num, 8, 8, 3), np.uint8)
        arrays[f"y_{split}"] = rng.integers(0, 10, num)
    np.savez(tmp_path / "cifar10.npz", **arrays)
    return tmp_path


def test_images_come_back_from_two_halves_bit_by_bit(images, tmp_path):
    pack.pack_images(images / "cifar10.npz", tmp_path / "carry")
    halves = [tmp_path / "carry" / f"data-{number}" for number in (1, 2)]
    assert pack.unpack_part(halves[0], tmp_path / "there") is None
    folder = pack.unpack_part(halves[1], tmp_path / "there")
    with np.load(images / "cifar10.npz") as sent, np.load(folder / "cifar10.npz") as come:
        assert set(sent) == set(come)
        for name in sent:
            np.testing.assert_array_equal(sent[name], come[name])


def test_code_travels_without_results_and_names_its_commit(tmp_path):
    commit = pack.pack_code(tmp_path / "code")
    assert len(commit.removesuffix("-dirty")) == 40
    assert (tmp_path / "code" / "bench" / "gpu" / "card.py").is_file()
    assert not (tmp_path / "code" / "bench" / "results").exists()
    assert pack.folder_bytes(tmp_path / "code") < 16 << 20


@pytest.mark.parametrize(("minutes", "number"), [(9, 2), (12, 2), (25, 3), (40, 5)])
def test_the_printed_calls_share_the_minutes_and_the_halves(tmp_path, minutes, number):
    folders = [tmp_path / name for name in ("code", "data-1", "data-2", "wheels")]
    lines = list(pack.calls(SimpleNamespace(minutes=minutes), "abc", folders))
    commands = lines[1::2]
    assert len(commands) == number
    seconds = int(commands[0].partition("--seconds ")[2].split()[0])
    assert seconds <= pack.CALL_SECONDS and abs(number * seconds - 60 * minutes) < number
    assert "--part ../data-1" in commands[0] and "--part ../data-2" in commands[1]
    assert all("--part" not in command for command in commands[2:])
    assert lines[0] == f"# call 1 of {number}, in a folder that holds code, wheels, data-1:"
