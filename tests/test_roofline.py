"""The roofline counts what a step must do: checked against arithmetic by hand."""

import pytest
import torch
from torch import nn

from gpu import roofline
from lion_fast.config import TrainConfig
from lion_fast.training.machine.resolve import resolve

BATCH = 2


@pytest.fixture(scope="module")
def step():
    config = TrainConfig(device="cpu", batch_size=BATCH)
    return roofline.Step(config, resolve(config))


def test_forward_operations_are_those_of_the_convolutions(step):
    # Weights at 32x32 (stem, block 1, transition 1), at 16x16 and at 8x8.
    multiplications = (648 + 19_008 + 2_592) * 1024 + (24_192 + 3_528) * 256 + 26_784 * 64
    assert step.count()["forward"].operations == 2 * BATCH * multiplications


def test_backward_multiplies_twice_but_for_the_gradient_of_the_images(step):
    work = step.count()
    stem = 2 * BATCH * 648 * 1024
    assert work["backward"].operations == 2 * work["forward"].operations - stem


def test_optimizer_reads_four_values_and_writes_three_per_parameter(step):
    assert step.count()["optimizer"] == roofline.Work(0, 7 * 4 * 81_678)


def test_heads_read_every_tap_and_write_its_gradient(step):
    taps = BATCH * (72 * 1024 + 84 * 256 + 90 * 64)
    weights, biases = 10 * (72 + 84 + 90), 30
    work = step.count()["heads"]
    assert work.bytes_moved == 2 * 4 * (taps + weights + biases)
    assert work.operations == 3 * 2 * BATCH * weights


def test_a_convolution_reads_its_input_and_weight_and_writes_its_output():
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    with roofline.convolution_traffic(layer, item_bytes=2) as traffic:
        layer(torch.zeros(1, 3, 4, 4))
    maps, weight = (3 * 16 * 2, 5 * 16 * 2), 4 * layer.weight.numel()
    assert traffic["forward"] == sum(maps) + weight
    assert traffic["backward"] == sum(maps) + 2 * weight
    with roofline.convolution_traffic(layer, item_bytes=2) as traffic:
        layer(torch.zeros(1, 3, 4, 4, requires_grad=True))
    assert traffic["backward"] == sum(maps) + 2 * weight + maps[0]


def test_the_floor_is_the_slower_of_arithmetic_and_traffic():
    assert roofline.Work(100, 10).floor_seconds(10.0, 10.0) == 10.0
    assert roofline.Work(100, 10).floor_seconds(1000.0, 10.0) == 1.0


def test_a_setting_that_cannot_run_ends_in_one_line_and_exit_code_2(capsys):
    assert roofline.main(["--device", "nowhere"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_report_states_every_part_over_its_floor(monkeypatch):
    monkeypatch.setattr(roofline, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(roofline, "matmul_rate", lambda device, dtype: 1e10)
    monkeypatch.setattr(roofline, "NUM_ROUNDS", 1)
    result = roofline.report(TrainConfig(device="cpu", batch_size=BATCH))
    assert list(result["parts"]) == list(roofline.PARTS)
    assert all(part["seconds"] > 0 for part in result["parts"].values())
    *_, total = roofline.lines(result)
    seconds = sum(part["seconds"] for part in result["parts"].values())
    assert f"{1e3 * seconds:.4f}" in total.split()
