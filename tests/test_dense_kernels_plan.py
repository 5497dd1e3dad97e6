"""What dense_backbone's plan cuts, what it refuses, and what it launches and compiles."""

import os
import subprocess
import sys
from math import prod

import pytest
import torch

from lion_fast.kernels.aot import CASES
from lion_fast.kernels.dense import dense_backbone, dense_obstacle
from lion_fast.kernels.dense.aot import DENSENET, step_cases
from lion_fast.kernels.dense.launch_backward import gradient_size, gradient_views
from lion_fast.kernels.dense.plan import Plan, chunks

FITTING = {
    "batch": 128, "height": 32, "width": 32, "stem_channels": 24, "growth_rate": 8,
    "block_layers": 6, "capability": (9, 0), "dtype": torch.bfloat16,
}  # fmt: skip


def test_this_projects_network_fits_from_compute_capability_8():
    for capability in ((8, 0), (9, 0), (10, 0), None):
        assert dense_obstacle(**FITTING | {"capability": capability}) is None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"capability": (7, 5)}, "7.5: before 8.0 Triton's products leave the tensor cores"),
        ({"dtype": torch.float32}, "on a GPU they take bfloat16 or float16"),
        ({"dtype": torch.float64, "capability": None}, "take bfloat16, float16 or float32"),
        ({"height": 28, "width": 28}, "28x28: they take sides of 16, 32 or 64"),
        ({"width": 128}, "32x128: they take sides of 16, 32 or 64"),
        ({"growth_rate": 12}, "growth rate 12: they take 8 or 16"),
        ({"block_layers": 0}, "at least 1 of each"),
        ({"block_layers": 20}, "block 3 has 288 channels: they take 128"),
        ({"batch": 30000}, "batch 30000: their offsets have 32 bits; take at most"),
    ],
)
def test_what_does_not_fit_is_named_with_what_does(change, words):
    obstacle = dense_obstacle(**FITTING | change)
    assert obstacle and words in obstacle and "\n" not in obstacle


def test_fp32_maps_are_the_interpreters():
    assert dense_obstacle(**FITTING | {"dtype": torch.float32, "capability": None}) is None


@pytest.mark.parametrize("batch", [1, 2, 3, 127, 128, 500, 4096])
@pytest.mark.parametrize("sides", [(16, 16), (32, 32), (64, 64), (64, 16), (16, 64)], ids=str)
def test_any_batch_is_cut_evenly(batch, sides):
    for block in Plan(batch, *sides, 24, 8, 6).blocks:
        positions = block.batch * block.height * block.width
        area = block.height * block.width
        assert block.tile * block.num_tiles == positions
        assert block.num_tiles % block.programs == 0 and block.tile % block.width == 0
        assert block.tile >= 16 * block.backward_warps
        assert positions % block.layer_programs == 0
        if block.stage < 2:  # a transition reads pairs of rows, a tap means of one image
            assert block.tile % (2 * block.width) == 0 and area % block.tile == 0
        if block.walks:
            assert batch % block.walk_images == 0 and block.height % block.walk_rows == 0


def test_chunks_cover_the_channels_with_few_idle():
    for channels in range(8, 129, 8):
        assert 0 <= sum(chunks(channels)) - channels <= 8
        assert set(chunks(channels)) <= {16, 32, 64}


def test_the_flat_gradient_holds_every_parameter_once():
    flat = torch.arange(gradient_size(DENSENET), dtype=torch.float64)
    for channels_last in (False, True):
        groups = gradient_views(DENSENET, flat, channels_last)
        shapes = [*DENSENET.conv_shapes, *[(c,) for c in DENSENET.norm_channels] * 2]
        views = [view for group in groups for view in group]
        assert [tuple(view.shape) for view in views] == shapes
        everything = torch.cat([view.flatten() for view in views])
        assert torch.equal(everything.sort().values, flat)
    assert sum(map(prod, DENSENET.conv_shapes)) == 76752


def test_a_step_is_forty_nine_launches():
    assert len(step_cases(DENSENET, torch.bfloat16)) == 49


def test_nothing_is_compiled_for_gpus_that_the_obstacle_names():
    dense = [case for case in CASES if case.name.startswith("dense ")]
    assert dense and all(case.min_capability == 80 for case in dense)


COMPILED = """
import re
from lion_fast.kernels.aot import CASES, compile_case, report
for name in ("dense bf16 block 3 layer 0", "dense bf16 block 3 group 4 backward"):
    (case,) = [case for case in CASES if case.name == name]
    for capability in (80, 90, 100):
        result = report(case, capability)
        ptx = compile_case(case, capability).asm["ptx"]
        single = len(re.findall("ld[.]global[.]b16", ptx))
        vectors = len(re.findall("ld[.]global[.]v4", ptx))
        print(result.error or result.spilled_bytes, result.tensor_core > 0, vectors > single, name)
"""


def test_a_forward_and_a_backward_kernel_compile_to_vector_loads_and_products_without_spills():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6 and all(line.startswith("0 True True ") for line in lines), lines


def small_inputs():
    plan = Plan(2, 16, 16, 24, 8, 1)
    norms = [torch.ones(c) for c in plan.norm_channels]
    convs = [torch.ones(shape) for shape in plan.conv_shapes]
    return [torch.ones(2, 3, 16, 16), convs, norms, norms, norms, norms]


def test_inputs_that_do_not_fit_each_other_are_named():
    def error(at, value, **options):
        inputs = small_inputs()
        inputs[at] = value
        with pytest.raises(ValueError) as caught:
            dense_backbone(*inputs, **{"block_layers": 1, "impl": "triton"} | options)
        return str(caught.value)

    images, convs, norms, *_ = small_inputs()
    assert "6 convs for 2 layers a block: give 9" in error(0, images, block_layers=2)
    assert "block_layers is 0" in error(0, images, block_layers=0)
    assert "5 gammas" in error(2, norms[:5])
    assert "convs[2] is (16, 31, 1, 1)" in error(1, [*convs[:2], convs[2][:, :31], *convs[3:]])
    assert "running_vars[5] is (19,)" in error(5, [*norms[:5], norms[5][:19]])
    assert "images is (2, 1, 16, 16)" in error(0, images[:, :1])
    assert "sides of 16, 32 or 64" in error(0, torch.ones(2, 3, 24, 24))
    assert "float64" in error(0, images.double())
    assert "gammas[0] is torch.float16" in error(2, [norms[0].half(), *norms[1:]])
    apart = torch.ones(24, 2)[:, 0]
    assert "running_means[0] is torch.float32 with strides (2,)" in error(4, [apart, *norms[1:]])
