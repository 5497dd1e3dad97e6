"""Kernels compiled ahead: the launcher finds them, and who has them compiles nothing again."""

import os
import subprocess
import sys

import pytest
from stand_in import needs_stand_in, outcomes

from lion_fast.kernels.ahead import missing_cases, recorded
from lion_fast.kernels.launch import Launch

# In the interpreter nothing compiles, so this is a process of its own.
PROGRAM = """
import sys
import torch
from lion_fast.kernels.ahead import compile_ahead, missing_cases, recorded
from lion_fast.kernels.augment import augment_batch
from lion_fast.kernels.muon.launch import muon_launch

def launches(rows):
    weights = [torch.empty(rows, 9, device="meta")]
    return [muon_launch(weights, weights, weights, torch.empty((), device="meta"), 0.95, 0.0)]

def names(cases):
    return [case.kernel.fn.__name__ for case in cases]

given = [*launches(8), *launches(8)]
print(names(missing_cases(given, 90)))
print(compile_ahead(missing_cases(given, 90), 90, 2))
print(names(missing_cases(given, 90)), names(missing_cases(given, 80)))
print(names(missing_cases([given[0]._replace(num_warps=1)], 90)))
sys.executable = "false"
print(compile_ahead(missing_cases(given, 80), 80, 2))
"""


def test_a_case_is_missing_until_it_was_compiled_for_that_gpu_and_options(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernel = "['_muon_update_kernel']"
    assert done.stdout.splitlines() == [
        kernel,
        "None",
        f"[] {kernel}",
        kernel,
        "exit code 1",
    ]
    assert list((tmp_path / "cache").glob("*/_muon_update_kernel.cubin"))


def test_recorded_launches_are_not_made():
    def fail(*_, **__):
        raise AssertionError("it was launched")

    class Kernel:
        __getitem__ = fail

    launch = Launch(Kernel(), (1,), {}, 4)
    with recorded() as launches:
        launch.run(None)
    assert launches == [launch]
    with pytest.raises(Exception):  # noqa: B017 - whatever a launch without a device raises
        launch.run(None)


def test_the_interpreter_has_nothing_to_compile():
    assert missing_cases([], 90) == []


@needs_stand_in
@pytest.mark.slow
def test_the_first_run_finds_every_kernel_compiled_ahead_and_the_second_says_nothing(tmp_path):
    """From an empty cache: what the launcher compiled would be a case that was not the same."""
    first, second = outcomes("stand_in_ahead.py", "H100", tmp_path / "runs", cache=tmp_path / "new")
    (said,) = [text for text in first["heard"] if " kernels on " in text]
    assert said.split()[2] == "kernels" and int(said.split()[1]) == first["found"]
    assert first["compiled"] == 0
    assert not any(" kernels on " in text for text in second["heard"])
    assert not any("could not" in text for text in first["heard"] + second["heard"])
