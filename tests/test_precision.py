import dataclasses
import subprocess
import sys

import pytest
import torch

from lion_fast.config import TrainConfig
from lion_fast.training.machine.resolve import resolve
from lion_fast.training.step.step import float32_precision


def settings():
    """Read what torch lets fp32 products do; each call raises where the settings are mixed."""
    matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    return matmul, torch.backends.cuda.matmul.allow_tf32, conv


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_every_reader_of_the_tf32_settings_gets_an_answer_and_they_are_restored(precision):
    resolved = dataclasses.replace(resolve(TrainConfig(device="cpu")), precision=precision)
    before = settings()
    with float32_precision(resolved):
        inside = settings()
    assert inside == (("high", True, True) if precision == "tf32" else ("highest", False, False))
    assert settings() == before


def test_settings_that_cannot_be_restored_are_refused_in_one_line(tmp_path):
    code = (
        "import torch\n"
        "from lion_fast.cli import main\n"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "raise SystemExit(main(['train', '--max-steps', '1', '--device', 'cpu']"
        f" + ['--out', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "fp32_precision settings are mixed" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
