"""The GPU suite: its stages, what they write, and that it refuses to run without a GPU."""

import os
import subprocess
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

import torch

from gpu import suite

BENCH = Path(suite.__file__).parents[1]


def test_the_gpu_suite_says_in_one_line_that_it_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert suite.main(["--stage", "tests"]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert "no CUDA GPU" in line


def test_result_names_state_gpu_date_commit_and_stage():
    name = suite.result_name("NVIDIA H100 80GB HBM3", "0123456789abcdef", "kernels")
    gpu, date, commit, stage = name.removesuffix(".json").split("_")
    assert (gpu, commit, stage) == ("h100-80gb-hbm3", "0123456789ab", "kernels")
    assert len(date) == len("2026-11-21")


def test_a_checkout_that_is_not_installed_can_be_imported_through_links(tmp_path):
    suite.make_importable(tmp_path)
    spec = PathFinder.find_spec("lion_fast.kernels", [str(tmp_path / "lion_fast")])
    assert Path(spec.origin).resolve() == suite.ROOT / "kernels" / "__init__.py"
    assert PathFinder.find_spec("lion_fast", [str(tmp_path)]) is not None


def test_the_suite_imports_its_own_checkout_where_another_is_installed(tmp_path):
    other = tmp_path / "other" / "lion_fast"
    for package in (other, other / "kernels"):
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("")
    (other / "__init__.py").write_text("import lion_fast.errors")
    (other / "errors.py").write_text("")
    (tmp_path / "links").mkdir()
    code = (
        "import sys; from gpu import suite; from pathlib import Path; links = Path(sys.argv[1]);"
        "assert not suite.is_installed(); suite.make_importable(links);"
        "suite.import_from(links); import lion_fast; print(lion_fast.UserError.__module__);"
        "print(lion_fast.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path / "links")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "other"), str(BENCH)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["lion_fast.errors", f"{tmp_path}/links/lion_fast/__init__.py"]


def test_relative_paths_mean_the_folder_where_the_suite_was_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = suite.parse_arguments(["--out", "out", "--data-dir", "images"])
    assert (args.out, args.data_dir) == (tmp_path / "out", tmp_path / "images")


def test_a_rehearsal_writes_apart_from_results_unless_it_is_told_where():
    assert suite.parse_arguments([]).out == suite.ROOT / "bench" / "results"
    assert suite.parse_arguments(["--rehearse"]).out == suite.ROOT / "rehearsal"


def test_a_stage_out_of_time_is_interrupted_so_that_it_can_write_its_results(tmp_path, monkeypatch):
    """Its time is up when it is under way, however long a busy machine takes to start it."""
    file = tmp_path / "kept"
    program = (
        "import pathlib, sys, time\n"
        "file = pathlib.Path(sys.argv[1])\n"
        "try: file.touch(); time.sleep(600)\n"
        "except KeyboardInterrupt: file.write_text('kept')"
    )
    wait = subprocess.Popen.wait

    def wait_or_be_out_of_time(process, timeout=None):
        if timeout != 2:
            return wait(process)
        while not file.exists():
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_or_be_out_of_time)
    assert suite.run_stage([sys.executable, "-c", program, str(file)], {}, seconds=2) is None
    assert file.read_text() == "kept"


def suite_arguments(tmp_path, stage, **given):
    settings = {"data_dir": None, "commit": None, "rehearse": False} | given
    return SimpleNamespace(stage=stage, out=tmp_path, **settings)


INFO = {"gpu": "NVIDIA Test", "torch": "0", "commit": None}


def test_the_stages_are_what_the_benchmark_files_say():
    files = [file for stage in suite.STAGES.values() for file in stage.files]
    assert sorted(files) == sorted(
        ["tests", *(f"bench/{p.name}" for p in BENCH.glob("bench_*.py"))]
    )
    assert suite.STAGES["target"].needs_data and not suite.STAGES["step"].needs_data


def test_tests_and_benchmarks_run_in_one_call():
    command = [sys.executable, "-m", "pytest", "-q", "--co", "--benchmark-disable", "--data-dir=d"]
    for order in (["tests/test_figures.py", "bench"], ["bench", "tests/test_figures.py"]):
        done = subprocess.run([*command, *order], cwd=BENCH.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "test_figures.py::" in done.stdout and "bench_step.py::" in done.stdout


def test_convergence_stages_want_real_images_and_speed_stages_say_they_had_none(tmp_path, capsys):
    assert suite.run_stages(suite_arguments(tmp_path, "target"), tmp_path, INFO) == 1
    printed = capsys.readouterr().out
    assert "needs the real images of --data-dir" in printed and "synthetic" in printed


def test_the_tests_stage_reports_what_failed(tmp_path):
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1" time="2.5">'
        '<testcase classname="tests.a" name="good"/><testcase classname="tests.a" name="bad">'
        "<failure/></testcase></testsuite></testsuites>"
    )
    counts = suite.count_tests(junit)
    assert counts["failed"] == ["tests.a::bad"] and counts["seconds"] == 2.5
    assert suite.table({"tests": counts})[0].startswith("  3 tests, 1 failures")


def test_the_study_stage_goes_on_with_one_store_and_writes_beside_the_other_results(
    tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(suite, "run_stage", lambda *call: calls.append(call) or 0)
    args = suite_arguments(tmp_path, "study")
    args.data_dir, args.commit = Path("images"), "abc"
    assert suite.run_stages(args, tmp_path, INFO) == 0
    words = [" ".join(command) for command, *_ in calls]
    assert [word.split("lion_fast.cli ")[1].split(" --")[0] for word in words] == [
        "study table1",
        "study table1",
        "report table1",
    ]
    assert "--device=cuda --data-dir=images" in words[0]
    assert all(str(suite.ROOT / "studies") in word for word in words)
    assert all(str(tmp_path / "studies" / "table1") in word for word in words[1:])
    assert {env["LION_FAST_COMMIT"] for _, env, _ in calls} == {"abc"}
    assert sum(seconds for *_, seconds in calls) <= suite.STAGE_SECONDS


def test_a_study_stage_whose_run_fails_or_is_cut_short_says_so(tmp_path, monkeypatch):
    args = suite_arguments(tmp_path, "study")
    for codes, outcome in (([1, 0, 0], 1), ([None, 0, 0], None), ([0, 0, 2], 1), ([0, 0, 0], 0)):
        left = iter(codes)
        monkeypatch.setattr(suite, "run_stage", lambda *_, left=left: next(left))
        assert suite.run_study("table1", args, {}) == outcome
