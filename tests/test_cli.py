import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from lion_fast import UserError, cli, load_image_set, load_run, predict
from lion_fast.cli import main
from lion_fast.config import TrainConfig
from lion_fast.data.batches import normalised
from lion_fast.training.folder.checkpoint import NAME, load_checkpoint

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


@pytest.fixture(scope="module")
def run(tmp_path_factory, stripes):
    """Folder of a finished run that trained in bf16."""
    out = tmp_path_factory.mktemp("finished")
    arguments = ["--dataset", str(stripes), *TINY, "--out", str(out), "--precision", "bf16"]
    assert main(["train", *arguments, "--max-steps", "3", "--quiet"]) == 0
    (run,) = out.iterdir()
    return run


def test_eval_computes_in_the_runs_precision(run, capsys):
    assert main(["eval", str(run), "--device", "cpu"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert "device cpu  precision bf16" in lines
    summary = json.loads((run / "summary.json").read_text())
    assert json.loads(last)["val_loss"] == summary["val_loss"]


def test_eval_says_when_the_machine_lacks_the_runs_precision(run, tmp_path, capsys):
    elsewhere = shutil.copytree(run, tmp_path / "elsewhere")
    torch.save(load_checkpoint(run) | {"precision": "fp16"}, elsewhere / NAME)
    assert main(["eval", str(elsewhere), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "not in the run's precision: precision fp16 needs a CUDA GPU" in shown
    assert "device cpu  precision fp32" in shown


def images_of(stripes, folder, num=3):
    """The first test images as PNG files, and their pixels."""
    with np.load(stripes) as arrays:
        pixels = arrays["x_test"][:num]
    paths = [folder / f"{number}.png" for number in range(num)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths, pixels


def test_predict_gives_each_images_class_and_probability(run, stripes, tmp_path, capsys):
    paths, pixels = images_of(stripes, tmp_path)
    names = list(map(str, paths))
    assert main(["predict", str(run), *names, "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in told] == names
    model, transform, classes = load_run(run, device="cpu")
    assert not model.training
    with torch.no_grad():
        shares = model(torch.stack([transform(image) for image in pixels]))[-1].softmax(1)
    for row, share in zip(told, shares, strict=True):
        assert row["class_name"] == classes[share.argmax()]
        assert row["probability"] == pytest.approx(share.max().item(), abs=1e-6)
    (alone,) = predict(run, names[0], device="cpu")
    assert alone.class_name == told[0]["class_name"]
    assert main(["predict", str(run), *names, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == names


def test_predicting_from_a_file_that_is_not_there_is_refused_in_one_line(run, tmp_path, capsys):
    assert main(["predict", str(run), str(tmp_path / "none.png")]) == 1
    assert "none.png is no file: give images as JPEG or PNG files" in capsys.readouterr().err


def test_the_transform_gives_what_the_network_is_validated_on(run, stripes, tmp_path):
    paths, pixels = images_of(stripes, tmp_path, 1)
    config = TrainConfig(dataset=str(stripes))
    images = load_image_set(config)
    wanted = normalised(
        images.test_images[:1], images.test_labels[:1], images, torch.device("cpu"), torch.float32
    ).images[0]
    transform = load_run(run, device="cpu").transform
    for image in (paths[0], str(paths[0]), pixels[0], Image.fromarray(pixels[0])):
        assert torch.allclose(transform(image), wanted, atol=1e-5)
    larger = Image.fromarray(pixels[0]).resize((20, 30)).convert("L")
    assert transform(larger).shape == (3, 8, 8)
    with pytest.raises(UserError, match="an image is float64: give PIL or uint8"):
        transform(np.zeros((8, 8)))


def test_quiet_says_nothing_but_the_json(run_in, capsys):
    arguments, _ = run_in
    assert main(["train", *arguments, "--max-steps", "3", "--quiet"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["steps"] == 3


@pytest.mark.parametrize("asked", [False, True])
def test_a_terminal_gets_the_json_only_when_asked(run, asked, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["eval", str(run), "--device", "cpu", *(["--json"] if asked else [])]) == 0
    shown = capsys.readouterr().out
    assert "validation accuracy" in shown
    assert ('"val_accuracy"' in shown) == asked


def test_a_window_beyond_the_end_is_refused_before_anything_runs(run_in, capsys):
    arguments, out = run_in
    assert main(["train", *arguments, "--window", "1000", "--max-steps", "50"]) == 2
    assert "window is 1000 and max_steps is 50" in capsys.readouterr().err
    assert not out.exists()


def test_a_reader_that_leaves_or_a_full_disk_behind_stdout_costs_no_run(run_in):
    arguments, out = run_in
    command = [sys.executable, "-m", "lion_fast", "train", *arguments]
    command += ["--max-steps", "30", "--log-every", "1"]
    reading, writing = os.pipe()
    with open("/dev/full", "w") as full:
        processes = [
            subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
            for stdout in (writing, full)
        ]
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert (process.returncode, errors) == (0, "")
    stored = [json.loads(path.read_text())["steps"] for path in out.glob("*/summary.json")]
    assert stored == [30, 30]


def run_with_stdout(descriptor, arguments):
    return subprocess.run(
        [sys.executable, "-m", "lion_fast", *arguments],
        stdout=descriptor,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_other_commands_end_quietly_when_their_reader_has_left():
    reading, writing = os.pipe()
    os.close(reading)
    done = run_with_stdout(writing, ["--help"])
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_other_commands_say_when_stdout_cannot_be_written():
    with open("/dev/full", "w") as full:
        done = run_with_stdout(full, ["--help"])
    message = "lion-fast: cannot write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.parametrize(("number", "code"), [(None, 130), (2, 130), (15, 143), (1, 129)])
def test_an_interrupt_exits_with_its_signal(number, code, monkeypatch):
    interrupt = KeyboardInterrupt()
    if number is not None:
        interrupt.signal_number = number

    def interrupted(arguments):
        raise interrupt

    monkeypatch.setitem(cli._COMMANDS, "doctor", (interrupted, ""))
    assert main(["doctor"]) == code


@pytest.mark.parametrize("module", ["tyro", "lion_fast.config", "torch"])
def test_ctrl_c_while_a_module_loads_leaves_no_traceback(module, run):
    code = f"""
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
sys.argv = ["lion-fast", "eval", {str(run)!r}]
from lion_fast.__main__ import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_narrow_terminal_shows_every_stage_and_no_json(run_in):
    arguments, _ = run_in
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "lion_fast", "train", *arguments]
        command += ["--max-steps", "3", "--log-every", "1"]
        os.execve(command[0], command, os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    seen = b""
    with suppress(OSError):  # what a terminal's end of file is
        while part := os.read(terminal, 4096):
            seen += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = seen.decode()
    assert "starting" in text
    assert "3/3" in text
    assert "nan" not in text and '"steps"' not in text


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
        (["eval", __file__], "test_cli.py is a file: give the run folder"),
        (["eval", "."], ". is not a run folder"),
        (["predict", "nowhere", "a.png"], "nowhere is not a run folder"),
        (["predict", "nowhere"], "predict needs images"),
        (["train", "--seed", "99999999999999999999"], "seed is 99999999999999999999"),
        (["train", "--image-size", "1000000"], "image_size is 1000000"),
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


def test_eval_of_a_run_without_checkpoint_is_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(TrainConfig().to_dict()))
    assert main(["eval", str(tmp_path)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


LONG = "a" * 5000  # longer than any file system's names


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--dataset", LONG, "--device", "cpu"],
        ["train", "--dataset", "digits", "--device", "cpu", "--out", LONG],
        ["train", "--resume", LONG],
        ["eval", LONG],
        ["predict", LONG, "a.png"],
        ["study", "quickstart", "--status", "--out", LONG],
        ["study", "quickstart", "--import", LONG],
        ["report", "quickstart", "--studies", LONG],
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"),
)
def test_a_path_that_no_file_system_takes_is_one_line(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lion-fast: ") and error.count("\n") == 1


def test_predict_names_images_that_cannot_be_read_and_goes_on_with_the_others(
    run, stripes, tmp_path, capsys
):
    (tmp_path / "a.png").write_bytes(b"no image")
    bad = [str(tmp_path / "a.png"), str(tmp_path / "none.png"), LONG]
    good = list(map(str, images_of(stripes, tmp_path, 2)[0]))
    names = [bad[0], good[0], *bad[1:], good[1]]
    assert main(["predict", str(run), *names, "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert [line.split()[-1] for line in captured.out.splitlines()] == good
    first, *others = captured.err.splitlines()
    assert first.startswith(f"lion-fast: {bad[0]} cannot be decoded") and len(others) == 2
    assert first.endswith(": replace it")  # training could skip it; predict has no such flag
    assert main(["predict", str(run), *names, "--device", "cpu", "--json"]) == 1
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert [row["image"] for row in told] == names and captured.err.count("\n") == 3
    assert [sorted(row) for row in told if row["image"] in bad] == [["error", "image"]] * 3
    assert main(["predict", str(run), *bad, "--device", "cpu"]) == 1
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="a.png cannot be decoded"):
        predict(run, names, device="cpu")


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "lion_fast.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


@pytest.mark.parametrize("loader", ["resident", "workers"])
def test_ctrl_c_saves_and_exits_130(run_in, loader):
    arguments, out = run_in
    arguments += ["--loader", loader, "--num-workers", "1", "--max-steps", "100000"]
    process = start(["train", *arguments, "--log-every", "1"])
    for line in process.stdout:
        if line.split()[0] == "3":  # the third step's log line
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    (run,) = out.iterdir()
    assert f"--resume {run}" in output
    assert (run / "checkpoint.pt").exists()


def test_config_defaults_reach_the_command_line(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert f"(default: {TrainConfig().lr})" in " ".join(capsys.readouterr().out.split())
