import pytest
import torch

from lion_fast.kernels import resolve_impl

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU to choose")
interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton's interpreter is off on a machine with a GPU"
)


def test_auto_and_torch_take_the_reference_on_the_cpu():
    assert resolve_impl("auto", CPU) == "torch"
    assert resolve_impl("torch", CPU) == "torch"


@interpreted
def test_triton_runs_on_the_cpu_inside_the_interpreter():
    assert resolve_impl("triton", CPU) == "triton"
    assert resolve_impl("triton", CPU, torch.float16) == "triton"


@pytest.mark.parametrize("interpret", [None, "0"])
def test_triton_says_in_one_line_why_it_cannot_run_on_the_cpu(monkeypatch, interpret):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if interpret:
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
    with pytest.raises(ValueError) as caught:
        resolve_impl("triton", CPU)
    assert str(caught.value) == (
        "impl='triton' cannot run here: it needs a CUDA device and the tensors are on cpu; "
        "take impl='auto' or 'torch'"
    )


@interpreted
def test_the_interpreter_is_refused_bf16():
    with pytest.raises(ValueError, match="interpreter has no bf16"):
        resolve_impl("triton", CPU, torch.bfloat16)
    assert resolve_impl("auto", CPU, torch.bfloat16) == "torch"


def test_fp64_takes_the_reference():
    assert resolve_impl("auto", CPU, torch.float64) == "torch"
    with pytest.raises(ValueError, match="data are torch.float64"):
        resolve_impl("triton", CPU, torch.float64)


def test_an_unknown_name_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="impl is 'cuda': take one of auto, triton, torch"):
        resolve_impl("cuda", CPU)


@needs_gpu
def test_auto_takes_triton_on_a_gpu_but_for_fp64():
    device = torch.device("cuda")
    assert resolve_impl("auto", device) == "triton"
    assert resolve_impl("auto", device, torch.bfloat16) == "triton"
    assert resolve_impl("auto", device, torch.float64) == "torch"
