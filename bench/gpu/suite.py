"""The GPU suite in stages: `python bench/gpu/suite.py --stage STAGE --out DIR`.

Each stage is a process of this interpreter that ends in under nine minutes; what it has measured by
then is kept. Nothing is installed and nothing is fetched: where lion-fast is not installed, the
stages import it from this checkout. Writes DIR/<gpu>_<date>_<commit>_<stage>.json, prints a table.

`--rehearse` shows in minutes that a stage runs to its end: it does the same with few cases of each
benchmark in two rounds, with the tests that only a GPU runs, and with a small study. Its numbers
mean nothing, so its files are named <stage>-rehearsal and lie in rehearsal/, apart from results.
"""

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.catalogue import read_catalogue
from support.checkout import ROOT, import_path, make_importable

STAGE_SECONDS = 510
FAREWELL_SECONDS = 20
WRITING_SECONDS = 30


@dataclass(frozen=True)
class Stage:
    """Files that one process of pytest runs, paths from the repository's root; or a study."""

    files: tuple[str, ...] = ()
    study: str | None = None
    needs_data: bool = False


def read_stages() -> dict[str, Stage]:
    """Return every stage by name: the tests, the benchmarks by what they say, a study."""
    files: dict[str, list[str]] = {}
    needs_data = set()
    for name, benchmark in read_catalogue().items():
        files.setdefault(benchmark.stage, []).append(f"bench/{name}.py")
        if benchmark.needs_data:
            needs_data.add(benchmark.stage)
    return {
        "tests": Stage(("tests",)),
        **{name: Stage(tuple(of), needs_data=name in needs_data) for name, of in files.items()},
        "study": Stage(study="table1", needs_data=True),
    }


STAGES = read_stages()
REHEARSED_STUDY = Stage(study=str(ROOT / "bench" / "gpu" / "rehearsal.toml"), needs_data=True)


def result_name(gpu: str, commit: str | None, stage: str) -> str:
    """Return `<gpu>_<date>_<commit>_<stage>.json`."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia ")).strip("-")
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return f"{slug}_{date}_{(commit or 'unknown')[:12]}_{stage}.json"


def import_from(folder: Path) -> None:
    """Let this process import from `folder` first, `lion_fast` too where another's was imported."""
    sys.path.insert(0, str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "lion_fast"]:
        del sys.modules[name]


def is_installed() -> bool:
    """Whether the interpreter already imports this checkout's kernels."""
    try:
        spec = importlib.util.find_spec("lion_fast.kernels")
    except ModuleNotFoundError:
        return False
    return spec is not None and Path(spec.origin or "").resolve().is_relative_to(ROOT)


def run_stage(command: list[str], env: dict[str, str], seconds: float) -> int | None:
    """Run a command; return its exit code, None where it was out of time.

    It is interrupted, not killed, at the limit: pytest then writes what it has measured.
    """
    process = subprocess.Popen(command, env=env, cwd=ROOT)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None


def stage_command(name: str, files: list[str], target: Path, args: argparse.Namespace) -> list[str]:
    """Return the pytest call of a stage, which writes its results to `target`."""
    # -P keeps the checkout's root, whose lion_fast lacks kernels, out of sys.path.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    if name == "tests":
        chosen = ["-m", "gpu and not slow"] if args.rehearse else []
        return [*command, f"--junitxml={target}", *chosen]
    command += ["--device=cuda", f"--benchmark-json={target}"]
    if args.data_dir:
        command.append(f"--data-dir={args.data_dir}")
    if args.commit:
        command.append(f"--commit={args.commit}")
    return [*command, "--rehearse"] if args.rehearse else command


def study_commands(study: str, args: argparse.Namespace) -> dict[str, list[str]]:
    """Return the calls that run a study, or go on with it, and write what it holds to `--out`.

    study: its name, or the path of its file. Its store stays in studies/ of the checkout, where the
    next call finds it; a rehearsal's stays in `--out`.
    """
    command = [sys.executable, "-P", "-m", "lion_fast.cli"]
    folder = str(args.out / "studies" / Path(study).stem)
    store = str(args.out / "stores" if args.rehearse else ROOT / "studies")
    data = [f"--data-dir={args.data_dir}"] if args.data_dir else []
    return {
        "run": [*command, "study", study, "--device=cuda", *data, f"--out={store}"],
        "export": [*command, "study", study, f"--export={folder}", "--force", f"--out={store}"],
        "report": [*command, "report", study, f"--out={folder}", f"--studies={store}"],
    }


def run_study(study: str, args: argparse.Namespace, env: dict[str, str]) -> int | None:
    """Run a study for as long as a stage may last; return as `run_stage` does."""
    if args.commit:
        env = {**env, "LION_FAST_COMMIT": args.commit}
    commands = study_commands(study, args)
    code = run_stage(commands["run"], env, STAGE_SECONDS - 2 * WRITING_SECONDS)
    written = [run_stage(commands[name], env, WRITING_SECONDS) for name in ("export", "report")]
    return code if code != 0 or not any(written) else 1


def count_tests(junit: Path) -> dict[str, Any]:
    """Return what a JUnit file says: counts, seconds and the names of what failed."""
    suite = next(ElementTree.parse(junit).iter("testsuite"))
    counts: dict[str, Any] = {
        name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
    }
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "seconds": float(suite.get("time", 0)), "failed": failed}


def table(results: dict[str, Any]) -> list[str]:
    """Return one line per row and ratio of a stage's JSON."""
    lines = []
    for row in results.get("benchmarks", []):
        info = row["extra_info"]
        what = " ".join(str(info.get(key, "")) for key in ("op", "impl", "shape", "dtype", "mode"))
        line = f"  {what or row['name']:<72} {1e3 * row['stats']['median']:>10.4f} ms"
        share = info.get("percent_of_copy_bandwidth")
        lines.append(line + (f" {share:5.1f} % of copy" if share else ""))
        for ratio in info.get("ratios", []):
            interval = f"[{ratio['low']:.4f}, {ratio['high']:.4f}] n={ratio['num_rounds']}"
            lines.append(f"    {ratio['a']} / {ratio['b']}: {ratio['median_ratio']:.4f} {interval}")
    if tests := results.get("tests"):
        parts = (f"{tests[key]} {key}" for key in ("tests", "failures", "errors", "skipped"))
        lines.append("  " + ", ".join(parts) + f" in {tests['seconds']:.0f} s")
        lines += [f"  failed: {name}" for name in tests["failed"]]
    return lines


def ending(code: int | None) -> str:
    """Return in words how a stage ended."""
    return {0: "passed", None: "out of time, what was measured is kept"}.get(code, "FAILED")


def whole_path(text: str) -> Path:
    """Return the path as seen from any folder: stages run in that of the checkout."""
    return Path(text).resolve()


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Run the GPU suite of lion-fast in stages.")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--out", type=whole_path, help="default: bench/results, or rehearsal")
    parser.add_argument("--data-dir", type=whole_path, help="folder that holds CIFAR-10")
    parser.add_argument("--commit", help="commit to state in results where git cannot tell")
    parser.add_argument("--rehearse", action="store_true", help="few cases, to see that they run")
    args = parser.parse_args(arguments)
    args.out = args.out or ROOT / ("rehearsal" if args.rehearse else "bench/results")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; return 0 if all passed, 1 if one failed or nothing ran, 2 without a GPU."""
    args = parse_arguments(arguments)
    if not torch.cuda.is_available():
        print("no CUDA GPU here, so the GPU suite cannot run; `make bench` measures the CPU")
        return 2
    for module in ("pytest", "pytest_benchmark"):
        if importlib.util.find_spec(module) is None:
            print(f"{sys.executable} lacks {module}: install lion-fast[dev] or give another PYTHON")
            return 2
    # A shell's background job starts with interrupts ignored, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        if not is_installed():
            make_importable(Path(folder))
            import_from(Path(folder))
        from support.machine import machine_info

        device = torch.device("cuda", torch.cuda.current_device())
        return run_stages(args, Path(folder), machine_info(device, args.commit))


def run_stages(args: argparse.Namespace, folder: Path, info: dict[str, Any]) -> int:
    """Run the asked stages with `folder` first on their import path; print the table last."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = import_path(folder)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{info['gpu']}, torch {info['torch']}, commit {info['commit'] or 'unknown'}")
    if args.data_dir is None:
        print("no --data-dir: images are synthetic, which is all that speed needs")
    summary, codes = [], []
    for name in STAGES if args.stage == "all" else [args.stage]:
        stage = STAGES[name]
        if args.rehearse and stage.study is not None:
            stage = REHEARSED_STUDY
        if stage.needs_data and args.data_dir is None:
            summary.append(f"{name}: not run, it needs the real images of --data-dir")
            continue
        start = time.monotonic()
        if stage.study is not None:
            codes.append(run_study(stage.study, args, env))
            summary.append(f"{name}: {ending(codes[-1])} after {time.monotonic() - start:.0f} s")
            continue
        label = f"{name}-rehearsal" if args.rehearse else name
        target = args.out / result_name(info["gpu"], info["commit"], label)
        written = folder / "junit.xml" if name == "tests" else target
        code = run_stage(stage_command(name, list(stage.files), written, args), env, STAGE_SECONDS)
        codes.append(code)
        if name == "tests" and written.exists():
            report = {"machine_info": info, "tests": count_tests(written)}
            target.write_text(json.dumps(report, indent=4) + "\n", encoding="utf-8")
        summary.append(
            f"{name}: {ending(code)} after {time.monotonic() - start:.0f} s, {target.name}"
        )
        if target.exists():
            summary += table(json.loads(target.read_text(encoding="utf-8")))
    print("\n".join(["", *summary]))
    return 0 if codes and all(code == 0 for code in codes) else 1


if __name__ == "__main__":
    sys.exit(main())
