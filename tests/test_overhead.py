"""LION-DG costs nothing by structure: a step after it is the same work as a step after He-init.

`bench/bench_overhead.py` proves it by time and by peak memory.
"""

import re
from dataclasses import replace
from functools import partial
from itertools import accumulate
from unittest import mock

import pytest
import torch
import torch._inductor.config as inductor_config
from bench_overhead import FirstSteps, allocation_sizes
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.utils import run_and_get_code
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch
from lion_fast.data.open import load_image_set
from lion_fast.training.machine.resolve import _has_cpp_compiler
from support.training import Training, new_step

ARCHITECTURES = ("densenet_ds", "resnet_ds")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: lists the kernels that it runs"
)


@pytest.fixture(params=ARCHITECTURES)
def config(request, stripes):
    return TrainConfig(
        dataset=str(stripes),
        arch=request.param,
        growth_rate=2,
        block_layers=1,
        base_width=8,
        batch_size=8,
        device="cpu",
        engine="eager",
    )


@pytest.fixture
def images(config):
    return load_image_set(config)


class OperatorLog(TorchDispatchMode):
    """Writes down every operator with its arguments, tensors by shape, strides and dtype alone."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        def describe(tensor):
            return str((tuple(tensor.shape), tensor.stride(), tensor.dtype))

        described = tree_map_only(torch.Tensor, describe, (args, kwargs or {}))
        if function.namespace != "profiler":  # marks that carry a handle of the moment, not work
            self.calls.append((str(function), str(described)))
        return function(*args, **(kwargs or {}))


def operators(config, images):
    with Training(config, images, num_steps=1) as training, OperatorLog() as log:
        training()
    return log.calls


def test_only_the_auxiliary_heads_start_with_other_values(config, images):
    he, lion_dg = (new_step(replace(config, init=init), images).model for init in ("he", "lion_dg"))
    heads = {id(parameter) for parameter in lion_dg.aux_parameters()}
    for (name, ours), theirs in zip(lion_dg.named_parameters(), he.parameters(), strict=True):
        assert torch.equal(ours, theirs) == (id(ours) not in heads or not theirs.any()), name


def test_parameters_are_the_same_in_name_shape_dtype_and_layout(config, images):
    def described(init):
        model = new_step(replace(config, init=init), images).model
        return [(name, p.shape, p.dtype, p.stride()) for name, p in model.state_dict().items()]

    assert described("lion_dg") == described("he")


def test_optimizer_state_is_the_same_in_bytes(config, images):
    def state(init):
        with Training(replace(config, init=init), images, num_steps=1) as training:
            training()
            entries = training.step.optimizer.state_dict()["state"]
        return {
            (number, name): (tensor.shape, tensor.dtype, tensor.untyped_storage().nbytes())
            for number, values in entries.items()
            for name, tensor in values.items()
        }

    he = state("he")
    assert state("lion_dg") == he
    assert len(he) == 3 * len(list(new_step(config, images).model.parameters()))


def test_a_step_runs_the_same_operators_in_the_same_order(config, images):
    he = operators(replace(config, init="he"), images)
    assert operators(replace(config, init="lion_dg"), images) == he
    names = [name for name, _ in he]
    for part in ("convolution.", "convolution_backward.", "_fused_adamw_."):
        assert any(part in name for name in names), part


def test_the_warm_up_that_lion_dg_replaces_adds_operators(config, images):
    plain = operators(config, images)
    assert len(operators(replace(config, aux_warmup_steps=10), images)) > len(plain)


def test_a_step_allocates_the_same_bytes_in_the_same_order(config, images):
    def sizes(init):
        with Training(replace(config, init=init), images, num_steps=1) as training:
            return allocation_sizes(training)

    he = sizes("he")
    assert sizes("lion_dg") == he
    assert max(accumulate(he)) > images.train_images[: config.batch_size].numel() * 4


def test_the_measure_of_allocations_sees_a_single_byte():
    def make(num_bytes):
        torch.empty(num_bytes, dtype=torch.uint8)

    assert allocation_sizes(partial(make, 1000)) == [1000, -1000]
    assert allocation_sizes(partial(make, 1001)) == [1001, -1001]


def generated_code(config, images):
    """What Inductor writes for the forward and the backward pass of a step."""
    step = new_step(replace(config, engine="compile"), images)
    step.compile()
    num_heads = len(step.model.heads.aux) + 1
    inputs = torch.randn(config.batch_size, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    batch = Batch(inputs, torch.zeros(config.batch_size, dtype=torch.int64))
    # Reading the source takes no compiler: kernels that do nothing stand for the written ones.
    unbuilt = mock.patch.object(AsyncCompile, "cpp_pybinding", lambda *_: lambda *_: None)
    with unbuilt, inductor_config.patch(fx_graph_cache=False):
        _, sources = run_and_get_code(step, batch, torch.zeros(1 + 2 * num_heads))
    torch.compiler.reset()
    # The one line that is not code numbers the compilations of the process.
    return [re.sub(r"^# AOT ID: .*", "", source) for source in sources]


@pytest.mark.skipif(
    not _has_cpp_compiler(), reason="engine compile needs a C++ compiler on the CPU"
)
@pytest.mark.parametrize(
    "config",
    [
        "densenet_ds",
        pytest.param("resnet_ds", marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    ],
    indirect=True,
)
def test_compiled_code_is_identical(config, images):
    he = generated_code(replace(config, init="he"), images)
    assert generated_code(replace(config, init="lion_dg"), images) == he
    forward, backward = he
    assert "extern_kernels.convolution(" in forward or "mkldnn" in forward
    assert "convolution_backward" in backward


def test_restarts_train_the_same_first_steps_again(config, images):
    with Training(replace(config, init="he"), images, num_steps=2) as training:
        weights = [p.detach().clone() for p in training.step.model.parameters()]
        restart = FirstSteps(training, weights)

        def trained():
            restart()
            return [p.detach().clone() for p in training.step.model.parameters()]

        first, again = trained(), trained()
    for before, one, other in zip(weights, first, again, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, before)


@needs_gpu
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_a_step_runs_the_same_gpu_kernels_in_the_same_order(config, images, engine):
    def kernels(init):
        asked = replace(config, init=init, device="cuda", engine=engine)
        with Training(asked, images, num_steps=16) as training:
            training()
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                training()
                torch.cuda.synchronize()
        events = [
            event
            for event in profiler.profiler.kineto_results.events()
            if event.device_type() == torch.autograd.DeviceType.CUDA
        ]
        return [event.name() for event in sorted(events, key=lambda event: event.start_ns())]

    kernels("he")  # cuDNN chooses its algorithms by trying them once
    he = kernels("he")
    assert len(he) > 50
    assert kernels("lion_dg") == he
