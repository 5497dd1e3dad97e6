from types import SimpleNamespace

import pytest
import torch

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.training import resolve as resolve_module
from lion_fast.training.doctor import doctor
from lion_fast.training.resolve import resolve


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
    }


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


def test_triton_on_the_cpu_without_its_interpreter_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="impl='triton' cannot run here"):
        resolve(TrainConfig(device="cpu", impl="triton"))


def test_doctor_reports_every_choice_with_its_reason():
    resolved = resolve(TrainConfig())
    lines = [line.split() for line in doctor()]
    for name, value in resolved.to_dict().items():
        assert [name, value, *resolved.reasons[name].split()] in lines
