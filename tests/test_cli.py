import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from run_results import results, table

from lion_fast.cli import main
from lion_fast.config import TrainConfig

TINY = ["--growth-rate", "4", "--block-layers", "1", "--batch-size", "32", "--device", "cpu"]


@pytest.fixture
def run_in(tmp_path, stripes):
    """Arguments of a run that takes a second, and the folder of its run folders."""
    out = tmp_path / "runs"
    return ["--dataset", str(stripes), *TINY, "--out", str(out)], out


def last_json(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_last_line_of_train_is_its_summary(run_in, capsys):
    arguments, out = run_in
    assert main(["train", *arguments, "--max-steps", "3"]) == 0
    summary = last_json(capsys)
    (run,) = out.iterdir()
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 3


def test_eval_repeats_the_accuracies_of_the_summary(run_in, capsys):
    arguments, out = run_in
    main(["train", *arguments, "--max-steps", "3"])
    summary = last_json(capsys)
    (run,) = out.iterdir()
    assert main(["eval", str(run), "--device", "cpu"]) == 0
    evaluated = last_json(capsys)
    assert evaluated == {key: summary[key] for key in evaluated}


def test_doctor_says_what_auto_picks_and_what_a_v100_needs(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("engine", "loader", "precision", "impl", "nvidia-dali-cuda120", "cu126"):
        assert word in text


def test_a_preset_sets_the_defaults_and_flags_override_them(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--preset", "quickstart", "--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: 20)" in shown  # quickstart's window


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean train?"),
        (["train", "--lr", "-1"], "lr is -1.0"),
        (["train", "--dataset", "cifar11"], "cifar1"),
        (["train", "--engine", "graph", "--device", "cpu"], "engine graph needs a CUDA GPU"),
        (["train", "--resume", "nowhere"], "nowhere is not a run folder"),
        (["train", "--resume", "nowhere", "--preset", "paper"], "not a run folder"),
        (["eval", "nowhere"], "nowhere is not a run folder"),
    ],
)
def test_bad_input_gives_one_line_and_code_2(arguments, words, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--lrx", "1"], ["--preset", "papers"], ["--lr", "fast"]])
def test_a_mistyped_flag_gets_a_suggestion_and_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", *arguments])
    assert caught.value.code == 2
    text = "".join(capsys.readouterr())
    assert arguments[0][:4] in text


def test_resuming_with_other_settings_lists_the_differences(run_in, capsys):
    arguments, out = run_in
    main(["train", *arguments, "--max-steps", "3"])
    (run,) = out.iterdir()
    assert main(["train", "--resume", str(run), "--lr", "0.5", "--seed", "1"]) == 2
    assert "lr 0.005 -> 0.5, seed 42 -> 1" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--max-steps", "5"]) == 0
    assert last_json(capsys)["steps"] == 5
    assert json.loads((run / "config.json").read_text())["max_steps"] == 5


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "lion_fast.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_if_never_interrupted(run_in, tmp_path, capsys):
    arguments, out = run_in
    arguments += ["--max-steps", "120", "--checkpoint-every", "7", "--window", "5"]
    main(["train", *arguments])
    whole = next(out.iterdir())
    rng = random.Random(int.from_bytes(os.urandom(4)))
    command, killed = ["train", *arguments], 0
    while True:
        process = start(command)
        if killed < 4:
            time.sleep(rng.uniform(1.5, 5.0))
            process.kill()
        process.communicate()
        if killed >= 4 or process.returncode == 0:
            break
        killed += 1
        runs = [path for path in out.iterdir() if path != whole and (path / "config.json").exists()]
        if runs:
            command = ["train", "--resume", str(runs[0])]
    assert process.returncode == 0
    (resumed,) = (path for path in out.iterdir() if path != whole)
    assert table(resumed) == table(whole)
    assert results(resumed) == results(whole)


@pytest.mark.parametrize("loader", ["resident", "workers"])
def test_ctrl_c_saves_and_exits_130(run_in, loader):
    arguments, out = run_in
    arguments += ["--loader", loader, "--num-workers", "1", "--max-steps", "100000"]
    process = start(["train", *arguments, "--log-every", "1"])
    for line in process.stdout:
        if line.split()[0] == "3":  # the third step's log line
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    (run,) = out.iterdir()
    assert f"--resume {run}" in output
    assert (run / "checkpoint.pt").exists()


def test_config_defaults_reach_the_command_line(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert f"(default: {TrainConfig().lr})" in " ".join(capsys.readouterr().out.split())
