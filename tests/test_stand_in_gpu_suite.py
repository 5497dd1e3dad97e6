"""Every stage of `make gpu` runs to its end: in a checkout without git that is not installed."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from stand_in import TESTS, needs_stand_in, noting_environment

from report.page import report_benchmarks
from support.catalogue import read_catalogue

ROOT = TESTS.parent
COMMIT = "0123456789abcdef"
OF_VALUES = r"AssertionError|lion_fast.errors.UserError: (loss is|gradinit's gradient norm is)"
# DALI does not run on the stand-in; LSUV, GradInit and methods that balance look at values, which
# nothing computes, and no accuracy is reached; what runs on the CPU alone needs no stand-in. Engine
# graph's cold set-up compiles what engine compile's does.
LEFT_OUT = {
    "kernels": "not compile-cold",
    "step": "not dali",
    "loaders": "not dali",
    "target": "not -to_target",
    "overhead": "not (lsuv or gradinit or balancing or study_machinery or cpu_step)",
    "tests": "not dali and not lsuv and not at_the_sizes_of_a_run and not beside_a_busy_stream",
}
# What is counted is no row, and these run on the CPU or look at values.
WITHOUT_ROWS = ("bench_counts", "bench_world", "bench_allocator", "bench_study", "bench_balancing")
BENCHMARKED = ("step", "overhead", "loaders", "target", "kernels", "backbone")

pytestmark = [needs_stand_in, pytest.mark.slow, pytest.mark.exhaustive]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Copy what the suite needs of this checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("bench", "kernels", "lion_fast", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Write noise in place of CIFAR-10; return its folder."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, num in (("train", 4096), ("test", 256)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (num, 32, 32, 3), np.uint8)
        arrays[f"y_{split}"] = np.arange(num) % 10
    np.savez(folder / "cifar10.npz", **arrays)
    return folder


@pytest.fixture
def rehearse(checkout, images, tmp_path, kernel_cache):
    """Return a function that rehearses a stage, with files in tmp_path/out; its process ends it."""

    def run(stage):
        # Plain: to show a tensor, torch counts values, and allocates as many.
        options = f"--tb=native --assert=plain -k '{LEFT_OUT.get(stage, '')}'"
        env = noting_environment("H100", kernel_cache) | {"COLUMNS": "500"}
        env["PYTEST_ADDOPTS"] = options
        command = [sys.executable, str(checkout / "bench" / "gpu" / "suite.py"), "--rehearse"]
        command += ["--stage", stage, "--out", "out", "--commit", COMMIT, "--data-dir", str(images)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert f", commit {COMMIT}" in done.stdout, done.stderr
        return done

    return run


def result_of(stage, out):
    """Return the path of the only result file and what it holds."""
    (path,) = out.glob(f"stand-in-h100_*_{COMMIT[:12]}_{stage}-rehearsal.json")
    return path, json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("stage", BENCHMARKED)
def test_a_stage_of_benchmarks_writes_rows_that_the_report_shows(rehearse, tmp_path, stage):
    done = rehearse(stage)
    assert done.returncode == 0, (done.stdout + done.stderr)[-9000:]
    path, content = result_of(stage, tmp_path / "out")
    assert content["machine_info"]["commit"] == COMMIT
    assert content["machine_info"]["device"] == "cuda"
    page, *_ = report_benchmarks([path], tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    written = {row["fullname"].partition("::")[0] for row in content["benchmarks"]}
    for name, about in read_catalogue().items():
        if f"bench/{name}.py" in written:
            assert about.title in text
        else:
            assert about.stage != stage or name in WITHOUT_ROWS


def test_the_stage_of_tests_fails_for_values_alone(rehearse, tmp_path):
    done = rehearse("tests")
    reasons = re.findall(r"^FAILED \S+ - (.*)", done.stdout, re.MULTILINE)
    others = [reason for reason in reasons if not re.match(OF_VALUES, reason)]
    assert others == [], done.stdout[-9000:]
    counts = result_of("tests", tmp_path / "out")[1]["tests"]
    assert counts["tests"] > 30 and counts["errors"] == 0
    assert counts["failures"] == len(counts["failed"]) == len(reasons)


def test_the_stage_of_a_study_exports_and_reports(rehearse, tmp_path):
    done = rehearse("study")
    assert done.returncode == 0, done.stdout + done.stderr
    written = {path.name for path in (tmp_path / "out" / "studies" / "rehearsal").iterdir()}
    assert {"summaries.csv", "metrics.csv", "studies.md"} <= written
