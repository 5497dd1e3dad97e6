"""Launch options that no card has decided yet are off, and change nothing that is computed."""

import json
import subprocess
import sys

import pytest
import torch
from bench_backbone import TINY, make_launches
from stand_in import TESTS, needs_stand_in, noting_environment

from lion_fast.kernels.dense import plan as planning
from lion_fast.kernels.dense.aot import DENSENET
from lion_fast.kernels.dense.launch_backward import run_beside
from lion_fast.kernels.dense.plan import SHIPPED, Options

CUDA = torch.cuda.is_available()


def launches_with(options, plan=TINY):
    """Launches of a step of the same images and weights; each has run once."""
    torch.manual_seed(0)
    dtype, device = (torch.bfloat16, "cuda") if CUDA else (torch.float32, "cpu")
    return make_launches(plan, dtype, torch.device(device), options)


def gradients(launches):
    return launches["reduce"].args["grads"]


@pytest.fixture(scope="module")
def shipped():
    return launches_with(SHIPPED)


def test_no_option_is_on_by_default():
    assert not any(SHIPPED) and len(Options._fields) == 3
    for block in DENSENET.blocks:
        assert block.max_registers(True) is block.max_registers(
            False
        ) is None and block.programs in (128, 256)


def test_limited_registers_are_asked_of_the_group_backwards_alone(shipped):
    limited = launches_with(SHIPPED._replace(limit_registers=True))
    asked = {name: launch.options.get("maxnreg") for name, launch in limited.items()}
    expected = {f"block {b} group 0 backward": 128 for b in (1, 2)}
    expected |= {f"block {b} input backward": 80 for b in (1, 2)}
    assert {name: n for name, n in asked.items() if n} == expected
    assert not any("maxnreg" in launch.options for launch in shipped.values())
    assert torch.equal(gradients(limited), gradients(shipped))


def test_fewer_partials_are_fewer_and_their_sums_are_the_same(shipped, monkeypatch):
    monkeypatch.setattr(planning, "_FEWER_PROGRAMS", (1, 1, 1))
    fewer = launches_with(SHIPPED._replace(fewer_partials=True))
    parts = fewer["block 1 layer 0"].args["NUM_PARTS"]
    assert parts == 1 < shipped["block 1 layer 0"].args["NUM_PARTS"]
    in_groups = [name for name in fewer if "group" in name or "input" in name]
    assert in_groups and all(fewer[name].grid[0] == 1 for name in in_groups)
    for key in range(3):
        ours, theirs = (each["taps"].args["pooled"][key] for each in (fewer, shipped))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    size = gradients(shipped).norm()
    assert (gradients(fewer) - gradients(shipped)).norm() < 1e-5 * size


def test_fewer_partials_still_give_every_processor_a_program():
    for block in DENSENET.blocks:
        fewer = block._replace(options=SHIPPED._replace(fewer_partials=True))
        assert fewer.programs == 128 and fewer.layer_programs == 128


class Stream:
    """A stream that notes what it waits for."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.mark.skipif(CUDA, reason="watches streams in the place of a GPU's")
def test_weight_gradients_run_beside_and_are_waited_for_by_the_reduction(shipped, monkeypatch):
    log = []
    main, side = Stream("main", log), Stream("side", log)
    current = [main]

    class On:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            current.append(self.stream)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", On)
    backward = {name: launch for name, launch in shipped.items() if "backward" in name}
    backward["reduce"] = shipped["reduce"]
    names = {id(launch.args): name for name, launch in backward.items()}
    run = type(shipped["reduce"]).run

    def noted(self, device_of):
        log.append(f"{current[-1].name}: {names[id(self.args)]}")
        run(self, device_of)

    monkeypatch.setattr(type(shipped["reduce"]), "run", noted)
    before = gradients(shipped).clone()
    gradients(shipped).zero_()
    run_beside(list(backward.values()), before, side)
    assert torch.equal(gradients(shipped), before)
    for block in (3, 2, 1):
        at = log.index(f"side: block {block} weights backward")
        assert log[at - 1] == "side waits for main"
        assert log.index(f"main: block {block} input backward") < at
    assert log[-2:] == ["main waits for side", "main: reduce"]
    assert sum(line.startswith("side: ") for line in log) == 3


@needs_stand_in
@pytest.mark.slow
def test_the_stage_that_times_each_option_comes_to_its_end(tmp_path, kernel_cache):
    out = tmp_path / "2027-01-01-h100"
    command = [sys.executable, str(TESTS.parent / "bench" / "gpu" / "card.py"), "--rehearse"]
    command += ["--stages", "options", "--out", str(out), "--folder", str(tmp_path / "folder")]
    env = noting_environment("H100", kernel_cache)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found = [json.loads(line) for line in (out / "card.jsonl").read_text().splitlines()]
    assert [line for line in found if "error" in line] == []
    assert {line["ends"]: line["code"] for line in found if "ends" in line} == {"options": 0}
    rounds = [line["round_ms"] for line in found if "round_ms" in line]
    assert len(rounds) == 2 and set(rounds[0]) == {"shipped", *Options._fields}
