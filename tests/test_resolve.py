import dataclasses
from types import SimpleNamespace

import pytest
import torch

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.presets import PRESETS
from lion_fast.training.machine import precision as precision_module, resolve as resolve_module
from lion_fast.training.machine.doctor import doctor
from lion_fast.training.machine.resolve import resolve


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that this machine has one GPU of the given compute capability."""

    def pretend(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        properties = SimpleNamespace(major=capability[0], minor=capability[1])
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)

    return pretend


@pytest.mark.parametrize(
    ("capability", "precision", "engine", "impl"),
    [
        ((6, 1), "fp32", "eager", "torch"),
        ((7, 0), "fp16", "graph", "triton"),
        ((7, 5), "fp16", "graph", "triton"),
        ((8, 0), "bf16", "graph", "triton"),
        ((9, 0), "bf16", "graph", "triton"),
        ((10, 0), "bf16", "graph", "triton"),
    ],
)
def test_auto_suits_the_gpu(gpu, capability, precision, engine, impl):
    gpu(capability)
    resolved = resolve(TrainConfig())
    assert resolved.device.type == "cuda"
    assert (resolved.precision, resolved.engine, resolved.impl) == (precision, engine, impl)
    assert set(resolved.reasons) == set(resolved.to_dict())


def test_auto_on_the_cpu_is_eager_fp32_without_triton():
    resolved = resolve(TrainConfig(device="cpu"))
    assert resolved.to_dict() == {
        "device": "cpu",
        "engine": "eager",
        "loader": "resident",
        "precision": "fp32",
        "impl": "torch",
        "backbone": "modules",
    }


@pytest.fixture
def cpu_with(monkeypatch):
    """Pretend that this CPU has, of AVX512-BF16 and AMX, the given ones."""

    def pretend(*names):
        for name, ask in (
            ("AVX512-BF16", "_is_avx512_bf16_supported"),
            ("AMX", "_is_amx_tile_supported"),
        ):
            monkeypatch.setattr(torch.cpu, ask, lambda name=name: name in names)

    return pretend


@pytest.mark.parametrize(
    ("has", "preset", "precision", "reason"),
    [
        (("AVX512-BF16",), "fast", "bf16", "this CPU has AVX512-BF16, and cpu_bf16 allows it"),
        (("AMX", "AVX512-BF16"), "fast", "bf16", "this CPU has AMX"),
        ((), "fast", "fp32", "neither AVX512-BF16 nor AMX"),
        (("AVX512-BF16",), "paper", "fp32", "AVX512-BF16 computes in bf16 if cpu_bf16 allows it"),
        ((), "paper", "fp32", "the CPU's native arithmetic"),
    ],
)
def test_only_preset_fast_takes_bf16_on_a_cpu_that_has_it(cpu_with, has, preset, precision, reason):
    cpu_with(*has)
    config = dataclasses.replace(PRESETS[preset], device="cpu")
    resolved = resolve(config)
    assert resolved.precision == precision
    assert reason in resolved.reasons["precision"]
    report = [line for line in doctor(config) if line.strip().startswith("precision")]
    assert reason in report[0]


def test_a_precision_that_is_asked_for_is_taken_on_any_cpu(cpu_with):
    cpu_with()
    for precision in ("bf16", "fp32"):
        config = dataclasses.replace(PRESETS["fast"], device="cpu", precision=precision)
        assert resolve(config).precision == precision


def test_bf16_instructions_are_asked_of_torch():
    """These are torch's own, in every version that this package runs on."""
    assert precision_module.cpu_bf16_instructions() in (None, "AMX", "AVX512-BF16")


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_v100_refuses_what_it_has_not(gpu, precision):
    gpu((7, 0))
    with pytest.raises(UserError, match=f"precision {precision} needs compute capability 8.0"):
        resolve(TrainConfig(precision=precision))


def test_a_gpu_that_is_not_there_is_named(gpu):
    gpu((9, 0))
    with pytest.raises(UserError, match=r"'cuda:3' but this machine has 1"):
        resolve(TrainConfig(device="cuda:3"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_points_to_doctor():
    with pytest.raises(UserError, match="lion-fast doctor"):
        resolve(TrainConfig(device="cuda"))


def test_compiling_for_the_cpu_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(resolve_module.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"install g\+\+"):
        resolve(TrainConfig(device="cpu", engine="compile"))


def test_the_reference_of_the_fused_backbone_is_not_compiled_where_it_goes_wrong(monkeypatch):
    config = TrainConfig(device="cpu", backbone="fused", impl="torch", engine="compile")
    monkeypatch.setattr(resolve_module, "_TRACES_REFERENCE", True)
    assert resolve(config).backbone == "fused"
    monkeypatch.setattr(resolve_module, "_TRACES_REFERENCE", False)
    with pytest.raises(UserError, match="before torch 2.14 impl torch needs engine eager"):
        resolve(config)
    assert resolve(dataclasses.replace(config, engine="eager")).backbone == "fused"


def test_triton_on_the_cpu_without_its_interpreter_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="impl='triton' cannot run here"):
        resolve(TrainConfig(device="cpu", impl="triton"))


def test_doctor_reports_every_choice_with_its_reason():
    resolved = resolve(TrainConfig())
    lines = [line.split() for line in doctor()]
    for name, value in resolved.to_dict().items():
        assert [name, value, *resolved.reasons[name].split()] in lines
