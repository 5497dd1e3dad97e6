"""`python -m report`, run in bench/, shows what the result files hold, and nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bench_rows import CPU, H200, all_pictures, compared, merged, ratio, row, write

from lion_fast.errors import UserError
from lion_fast.report import markdown
from report.__main__ import _Arguments, main
from report.page import TITLES, report_benchmarks
from report.results import by_machine, read_results
from report.tables import settings
from support.catalogue import About, read_catalogue

BENCH = Path(__file__).resolve().parent.parent / "bench"


SAMPLE = """\
import time

SETTING = {"shape": "densenet_ds B8", "dtype": "float32", "mode": "step"}


def test_time(bench):
    bench.time(lambda: time.sleep(2e-3), op="nap", impl="sleep", bytes_moved=1000, **SETTING)


def test_compare(bench):
    naps = {"lion_dg": lambda: time.sleep(4e-3), "he": lambda: time.sleep(2e-3)}
    samples = bench.compare(naps, rounds=6, op="train_step", impl="eager", **SETTING)
    bench.record_ratio(samples, "lion_dg", "he", bound=0.03)
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """What the harness writes of a benchmark file, on the CPU."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "bench_overhead.py").write_text(SAMPLE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider"]
    options = ["--device=cpu", "--benchmark-json=cpu.json", "--benchmark-max-time=0.02"]
    subprocess.run(
        [*command, *options, "--commit=feedbeefcafe0123", "bench_overhead.py"],
        cwd=folder,
        env={"PYTHONPATH": str(BENCH), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    return folder / "cpu.json"


@pytest.fixture
def page(tmp_path):
    """A function from rows of an H200 to the page's text."""

    def make(*rows):
        report_benchmarks([write(tmp_path / "gpu.json", H200, list(rows))], tmp_path / "out")
        return (tmp_path / "out" / "benchmarks.md").read_text(encoding="utf-8")

    return make


def cells(text, *words):
    """The cells, by column, of the only table row that starts with the words."""
    found = []
    header = None
    for line in text.splitlines():
        if not line.startswith("|"):
            header = None
            continue
        row = [cell.strip() for cell in line.strip("|").split(" | ")]
        if header is None:
            header = row
        elif row[: len(words)] == list(words):
            found.append(dict(zip(header, row, strict=True)))
    (only,) = found
    return only


def test_numbers_of_a_real_run_reach_the_page(real, tmp_path):
    content = json.loads(real.read_text())
    timed, both = content["benchmarks"]
    written = report_benchmarks([real], tmp_path)
    text = written[0].read_text(encoding="utf-8")
    assert [path.name for path in written] == ["benchmarks.md", "overhead.png"]
    assert f"Measured at commit `{content['machine_info']['commit'][:12]}`" in text

    alone = cells(text, "sleep")
    assert alone["median"] == f"{1e3 * timed['stats']['median']:.3f} ms"
    assert alone["rounds"] == str(timed["stats"]["rounds"])
    rate = timed["extra_info"]["gb_per_second"]
    assert float(alone["GB/s"]) == pytest.approx(rate, rel=1e-2)
    share = timed["extra_info"]["percent_of_copy_bandwidth"]
    assert alone["% of copy"] == f"{share:.1f}"

    (estimate,) = both["extra_info"]["ratios"]
    beside = cells(text, "lion_dg")
    assert beside["ratio"] == f"{estimate['median_ratio']:.3f}"
    assert beside["95 % interval"] == f"{estimate['low']:.3f} ... {estimate['high']:.3f}"
    assert beside["its median"] == markdown.seconds(
        both["extra_info"]["median_seconds_of"]["he"], 4
    )


def test_the_command_of_make_bench_report_works_in_its_folder(tmp_path):
    path = write(tmp_path / "gpu.json", H200, [row("bench_heads", 1e-3, "loss", "triton")])
    command = [sys.executable, "-m", "report", str(path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=BENCH, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "out" / "benchmarks.md")]
    assert _Arguments((path,)).out == BENCH / "results" / "report"


def test_every_benchmark_file_says_what_the_suite_and_the_report_must_know():
    catalogue = read_catalogue()
    assert set(catalogue) == {path.stem for path in BENCH.glob("bench_*.py")}
    assert len({about.title for about in catalogue.values()}) == len(catalogue)


def test_a_benchmark_file_alone_adds_a_benchmark_and_a_silent_one_is_refused(tmp_path):
    fields = {"title": "New", "order": 5, "stage": "step", "ours": ("us",)}
    (tmp_path / "bench_new.py").write_text(f"import absent\n\nBENCHMARK = {fields}\n")
    assert read_catalogue(tmp_path) == {"bench_new": About(**fields)}
    (tmp_path / "bench_silent.py").write_text("import absent\n")
    with pytest.raises(ValueError, match="bench_silent.py states no BENCHMARK"):
        read_catalogue(tmp_path)


def test_what_was_not_measured_is_said_and_never_blank(real, tmp_path):
    text = report_benchmarks([real], tmp_path)[0].read_text(encoding="utf-8")
    assert "Not measured: none of the results comes from a GPU." in text
    assert "Step time of every rival and ours: not measured." in text
    assert "![Overhead of every balancing method and of LION-DG](overhead.png)" in text
    (line,) = (line for line in text.splitlines() if line.startswith("Not measured on this"))
    assert all((title in line) == (name != "bench_overhead") for name, title in TITLES.items())
    assert not re.search(r"\| +\||None|nan", text)


def test_a_machine_is_stated_once_and_gpus_come_first(tmp_path):
    gpu = write(tmp_path / "a.json", H200, [row("bench_heads", 1e-3, "loss", "triton")])
    more = write(tmp_path / "b.json", H200, [row("bench_augment", 1e-3, "augment", "triton")])
    cpu = write(tmp_path / "c.json", CPU, [row("bench_heads", 1e-3, "loss", "torch")])
    text = report_benchmarks([cpu, gpu, more], tmp_path)[0].read_text(encoding="utf-8")
    assert re.findall("^### .*", text, re.MULTILINE) == ["### NVIDIA H200", "### Xeon"]
    facts = "driver 570.1, power limit 700 W, CUDA 13.0, cuDNN 91002, torch 2.11.0, Triton 3.6.0"
    assert text.count(facts) == 1
    assert "triton not known" in text
    assert "Measured at commit `0123456789ab`, 2026-11-21." in text
    assert "Measured at commit `0123456789ab` with uncommitted changes, 2026-11-21." in text
    assert "none of the results" not in text


def test_other_versions_are_another_machine(tmp_path):
    rows = [row("bench_heads", 1e-3, "loss", "triton")]
    files = [write(tmp_path / f"{v}.json", H200 | {"torch": v}, rows) for v in ("2.11.0", "2.14.1")]
    assert len(by_machine(map(read_results, files))) == 2


def test_the_newest_measurement_of_a_row_counts_and_the_page_says_so(tmp_path):
    old = [row("bench_heads", 1e-3, "loss", "triton"), row("bench_init", 5e-3, "init", "he")]
    new = [row("bench_heads", 2e-3, "loss", "triton")]
    files = [
        write(tmp_path / "a_new.json", H200 | {"commit": "f" * 40}, new, "2026-11-22T01:00:00"),
        write(tmp_path / "z_old.json", H200, old, "2026-11-21T01:00:00"),
    ]
    text = report_benchmarks(files, tmp_path)[0].read_text(encoding="utf-8")
    assert "2.000 ms" in text and "5.000 ms" in text and "1.000 ms" not in text
    assert "Newer results replace rows of z_old.json." in text
    assert "Heads and losses at commit `ffffffffffff`, 2026-11-22" in text
    assert "Initialisation at commit `0123456789ab`, 2026-11-21" in text


def test_a_kernel_is_set_against_the_fastest_rival_at_its_setting(page):
    def trio(batch, ours, **extra):
        shape = {"shape": f"B{batch}", **extra}
        return [
            row("bench_heads", ours, "loss", "triton", graph=True, **shape),
            row("bench_heads", 4e-6, "loss", "eager", graph=True, **shape),
            row("bench_heads", 2e-6, "loss", "compile", graph=False, **shape),
        ]

    text = page(*trio(128, 1e-6), *trio(512, 3e-6), *trio(2048, 2.01e-6))
    assert cells(text, "triton", "B128")["/ fastest rival"] == "0.500 of compile, **win**"
    assert cells(text, "triton", "B512")["/ fastest rival"] == "1.500 of compile, **loss**"
    word = cells(text, "triton", "B2048")["/ fastest rival"]
    assert word == "1.005 of compile, no difference shown"
    assert cells(text, "eager", "B128")["/ fastest rival"] == "–"
    assert cells(text, "compile", "B128")["in a CUDA graph"] == "no"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (ratio("graph", "plain", 0.2, 0.19, 0.21), "**win** for graph"),
        (ratio("plain", "graph", 0.9, 0.89, 0.91), "**loss** for graph"),
        (ratio("plain", "graph", 1.1, 0.99, 1.21), "no difference shown"),
        (ratio("eager", "graph", 5.0, 4.9, 5.1), "eager is slower"),
        (ratio("graph", "eager", 1.0, 0.99, 1.01, bound=0.02), "no difference shown, inside ±2 %"),
        (ratio("graph", "eager", 1.01, 1.0, 1.03, bound=0.02), "no difference shown, not settled"),
        (ratio("graph", "plain", 1.5, 0.0, float("inf"), num_rounds=1), "too few rounds to tell"),
    ],
)
def test_the_verdict_follows_the_interval(page, entry, words):
    seconds_of = {entry["a"]: 1e-3, entry["b"]: 1e-3}
    text = page(compared("bench_step", seconds_of, "train_step", entry["a"], [entry]))
    assert cells(text, entry["a"])["verdict"].startswith(words)


def test_goals_stand_beside_their_ratios(page):
    ratios = [ratio("plain", "graph", 4.0, 3.9, 4.1), ratio("script", "graph", 2.0, 1.9, 2.1)]
    seconds_of = {"graph": 1e-3, "plain": 4e-3, "script": 2e-3}
    goals = {"plain / graph": "at least 5"}
    text = page(compared("bench_step", seconds_of, "train_step", "graph", ratios, goals=goals))
    assert cells(text, "plain")["goal"] == "at least 5"
    assert cells(text, "script")["goal"] == "–"
    assert cells(text, "graph")["IQR"] == "20 µs"


def test_times_are_per_step_where_a_call_is_several(page):
    extra = {"steps_per_call": 16, "mode": "dali", "images_per_second": 128e3}
    text = page(
        row("bench_step", 32e-3, "train_step", "graph", **extra),
        compared(
            "bench_loaders", {"dali-16": 32e-3, "resident": 16e-3}, "loader+step", "dali",
            [ratio("dali-16", "resident", 2.0, 1.9, 2.1)], **extra,
        ),
    )  # fmt: skip
    assert cells(text, "graph")["median"] == "2.000 ms"
    assert cells(text, "graph")["images/s"] == "128,000"
    beside = cells(text, "dali-16")
    assert (beside["median"], beside["its median"], beside["ratio"]) == (
        "2.000 ms",
        "1.000 ms",
        "2.000",
    )


def test_equal_memory_is_called_equal_and_other_memory_is_shown(page):
    def pair(arch, bytes_of):
        seconds_of, ratios = {"lion_dg": 1e-3, "he": 1e-3}, [ratio("lion_dg", "he", 1, 0.99, 1.01)]
        return compared(
            "bench_overhead", seconds_of, "train_step", "eager", ratios, arch=arch,
            shape=f"{arch} B128", peak_memory_bytes_of=bytes_of,
        )  # fmt: skip

    text = page(
        pair("densenet_ds", {"lion_dg": 3 << 20, "he": 3 << 20}),
        pair("resnet_ds", {"lion_dg": 3 << 20, "he": (3 << 20) + 1}),
    )
    assert cells(text, "lion_dg", "densenet_ds B128")["its peak memory"] == "equal"
    assert cells(text, "lion_dg", "resnet_ds B128")["its peak memory"] == "3.00 MiB"


def test_shared_settings_stand_above_the_table_and_told_ones_are_left_out(tmp_path):
    rows = [
        row("bench_loaders", 1e-3, "loader", name.partition("-")[0], shape=f"B{batch} 32x32",
            loader=name, steps_per_run=steps, arch="densenet_ds", num_workers=workers)
        for batch in (128, 512)
        for name, steps, workers in (("dali-4", 4, None), ("workers-0", None, 0))
    ]  # fmt: skip
    shared, varying, measures = settings(merged(tmp_path / "a.json", H200, rows))
    assert shared == {"dtype": "float32", "mode": "forward", "arch": "densenet_ds"}
    assert set(varying) == {"shape", "loader"}
    assert measures == []


def test_what_benchmarks_note_gets_the_unit_of_its_name(page):
    noted = {
        "mean": 2.5,
        "standard_deviation": 0.25,
        "seconds": [2.0, 3.0],
        "seeds": [42, 123],
        "peak_memory_mib": 512.0,
        "peak_memory_bytes_of_training": {"he": 1024, "lion_dg": 1024},
        "val_accuracy": [[0.5, 0.25], [0.75, 0.5]],
        "goals": {"seconds": "below 3"},
    }
    text = page(row("bench_time_to_target", 2.5, "time_to_target", "lion_dg", **noted))
    line = cells(text, "lion_dg")
    assert (line["mean"], line["standard deviation"]) == ("2.500 s", "250.0 ms")
    assert line["seconds"] == "[2.000 s, 3.000 s]"
    assert line["peak memory"] == "512 MiB"
    assert line["peak memory of training"] == "equal, 1.00 KiB"
    assert line["goal"] == "seconds below 3"
    assert "seeds [42, 123], val accuracy [[0.5, 0.25], [0.75, 0.5]]" in text


def test_a_pipe_in_a_name_does_not_break_the_table(page):
    text = page(row("bench_init", 1e-3, "init", "a|b"), row("bench_init", 2e-3, "init", "c"))
    assert cells(text, "a\\|b")["median"] == "1.000 ms"


def test_the_test_stage_of_the_gpu_suite_is_reported(tmp_path, capsys):
    counts = {"tests": 300, "failures": 1, "errors": 0, "skipped": 4, "seconds": 210.0}
    content = {"machine_info": H200, "tests": {**counts, "failed": ["tests.test_x::test_y"]}}
    path = tmp_path / "h200_tests.json"
    path.write_text(json.dumps(content))
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    text = Path(capsys.readouterr().out.splitlines()[0]).read_text(encoding="utf-8")
    assert "300 tests in 210 s; failures: 1, errors: 0, skipped: 4." in text
    assert "- failed: `tests.test_x::test_y`" in text
    assert "Measured at commit `0123456789ab`." in text


def test_the_same_files_give_the_same_bytes_in_any_order(tmp_path, real):
    gpu = write(tmp_path / "a.json", H200, all_pictures())
    outs = [tmp_path / "one", tmp_path / "two"]
    for out, files in zip(outs, ([gpu, real], [real, gpu, gpu]), strict=True):
        report_benchmarks(files, out)
    names = [[path.name for path in sorted(out.iterdir())] for out in outs]
    assert names[0] == names[1] and len(names[0]) == 4
    for name in names[0]:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name


def damaged(**changes):
    """A file's content with one row of which some `extra_info` is replaced."""
    entry = row("bench_heads", 1e-3, "loss", "triton")
    entry["extra_info"] |= changes
    return json.dumps({"machine_info": H200, "benchmarks": [entry]})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "machine_info is null"),
        ('{"parts": {}}', "machine_info is null"),
        ('{"machine_info": {"cpu": {}}, "benchmarks": []}', "device is null"),
        (json.dumps({"machine_info": H200}), "benchmarks is null"),
        (json.dumps({"machine_info": H200, "tests": {"tests": 3}}), "failures is null"),
        (json.dumps({"machine_info": H200 | {"device": "tpu"}, "benchmarks": []}), "tpu"),
        (damaged(op=None), "op is null"),
        (damaged(steps_per_call=0), "steps_per_call is 0"),
        (damaged(ratios=[{"a": "x"}]), "confidence is null"),
        (damaged(median_seconds_of={"x": "fast"}), 'x is "fast"'),
    ],
)
def test_other_json_is_refused_in_one_line_that_names_the_file(tmp_path, capsys, content, words):
    path = tmp_path / "odd.json"
    path.write_text(content)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "odd.json" in error and words in error
    assert not (tmp_path / "out").exists()


def test_no_files_missing_files_and_a_bad_out_give_one_line(tmp_path, capsys):
    good = write(tmp_path / "good.json", H200, [])
    folder = tmp_path / "folder.json"
    folder.mkdir()
    for arguments, words in (
        ([], "report needs result files"),
        (["nowhere.json"], "nowhere.json: cannot be read"),
        ([str(folder)], "cannot be read"),
        ([str(tmp_path)], "cannot be read"),
        ([str(good), "--out", str(good)], "cannot be written"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and words in error


def counted(path, **changes):
    launches = {"ours": 4, "inductor": 75, "pytorch": 24, "cudnn_cublas": 62, "copy": 1, "fill": 2}
    engine = {
        "launches": launches, "host_calls": 1, "syncs": 0, "peak_bytes": 270942208,
        "bytes": {"forward": 572698392, "backward": 1027646140},
    }  # fmt: skip
    found = {
        "card": "H100", "precision": "bf16", "arch": "densenet_ds", "batch_size": 128,
        "torch": "2.14.1", "triton": "3.8.0", "engines": {"graph": engine},
    }  # fmt: skip
    path.write_text(json.dumps({"counts": [found | changes]}), encoding="utf-8")
    return path


def test_counts_of_a_step_become_a_table_of_their_own(real, tmp_path):
    counts = [counted(tmp_path / "H100.json"), counted(tmp_path / "V100.json", card="V100")]
    text = report_benchmarks([real], tmp_path, counts)[0].read_text(encoding="utf-8")
    row = cells(text, "densenet_ds", "H100", "bf16", "graph")
    assert (row["launches"], row["Inductor"], row["copies, fills"]) == ("168", "75", "3")
    assert (row["host calls"], row["MB"], row["peak MB"]) == ("1", "1,600", "271")
    assert cells(text, "densenet_ds", "V100")["launches"] == "168"
    assert "no time is known" in text


def test_a_file_without_counts_is_refused_by_name(real, tmp_path):
    with pytest.raises(UserError, match="other.json: not counts"):
        report_benchmarks([real], tmp_path, [write(tmp_path / "other.json", CPU, [])])
