"""What `doctor` says of several runs on one GPU."""

import pytest

from lion_fast.training.machine.packing import mps_status


@pytest.fixture
def pipes(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "mps"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "mps").mkdir()
    (tmp_path / "bin").mkdir()
    return tmp_path


def test_a_control_pipe_says_that_mps_is_there(pipes):
    (pipes / "mps" / "control").touch()
    assert mps_status().startswith(f"found in {pipes / 'mps'}: ")


def test_an_installed_daemon_that_is_off_says_how_to_start_it(pipes):
    daemon = pipes / "bin" / "nvidia-cuda-mps-control"
    daemon.touch()
    daemon.chmod(0o755)
    status = mps_status()
    assert status.startswith("off: ")
    assert "`nvidia-cuda-mps-control -d`" in status


def test_a_missing_daemon_is_named(pipes):
    assert mps_status().startswith("not installed (nvidia-cuda-mps-control ")
