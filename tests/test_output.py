"""What is printed survives whatever is behind standard output and error, in every command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lion_fast.cli import main
from lion_fast.output import OUTPUT, Output, complain, exact_json, say
from lion_fast.training.screen.console import Live, Plain, make_console
from lion_fast.training.screen.printed import Progress

SMALL = "--growth-rate 2 --block-layers 1 --batch-size 32 --device cpu --max-steps 2".split()


def command(*arguments, closed="", **settings):
    """Run `lion-fast` with streams that a shell has closed."""
    line = f'exec "$@" {closed}'
    return subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-m", "lion_fast", *map(str, arguments)],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | settings,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, stripes):
    """A run of images in a folder whose name is in no ASCII, with its standard output closed."""
    folder = tmp_path_factory.mktemp("a") / "猫"
    folder.mkdir()
    data = folder / "猫.npz"
    data.write_bytes(Path(stripes).read_bytes())
    out = folder / "runs"
    done = command("train", "--dataset", data, *SMALL, "--out", out, closed=">&-")
    assert (done.returncode, done.stderr) == (0, b"")
    (made,) = out.iterdir()
    return made


def test_files_of_a_run_whose_stdout_is_closed_hold_nothing_else(run):
    assert (run / "metrics.csv").read_text().count("\n") == 3
    assert json.loads((run / "summary.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    "arguments",
    [["doctor"], ["--help"], ["train", "--help"], ["study", "quickstart", "--dry-run"], ["eval"]],
    ids=" ".join,
)
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_a_closed_stream_ends_no_command(run, arguments, closed, tmp_path):
    arguments = [*arguments, str(run)] if arguments == ["eval"] else arguments
    done = command(*arguments, closed=closed, PWD=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_ascii_stdout_takes_any_name_and_the_json_stays_exact(run, stripes):
    done = command("train", "--resume", run, "--max-steps", "3", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    *lines, last = done.stdout.decode("ascii").splitlines()
    assert any("\\u732b" in line for line in lines)
    assert json.loads(last)["run"] == str(run)


def test_a_file_name_that_is_no_text_does_not_end_predict(run, tmp_path):
    from PIL import Image

    path = os.fsencode(tmp_path) + b"/\xff.png"
    with open(path, "wb") as file:
        Image.new("RGB", (8, 8), "red").save(file, "png")
    for flags in ([], ["--json"]):
        done = command("predict", run, os.fsdecode(path), "--device", "cpu", *flags)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"udcff.png" in done.stdout


@pytest.mark.parametrize("arguments", [["doctor"], ["eval"]], ids=" ".join)
def test_a_command_that_only_prints_says_that_it_could_not(run, arguments):
    arguments = [*arguments, str(run)] if arguments == ["eval"] else arguments
    done = command(*arguments, closed="> /dev/full")
    told = b"lion-fast: cannot write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, told)


class Stream:
    """A stream of which everything is wrong that can be."""

    encoding, closed = "ascii", False

    def __init__(self, error=None):
        self.error, self.written = error, ""

    def write(self, text):
        if self.error:
            raise self.error
        text.encode("ascii")
        self.written += text

    def flush(self):
        pass

    def isatty(self):
        return True

    def fileno(self):
        raise OSError("no file")


def test_lines_are_escaped_or_dropped_and_never_an_exception(monkeypatch):
    monkeypatch.setattr(OUTPUT, "loss", None)
    for name in ("stdout", "stderr"):
        for stream in (None, Stream(OSError(28, "No space left on device")), Stream()):
            monkeypatch.setattr(sys, name, stream)
            say("猫") if name == "stdout" else complain("猫")
    assert sys.stderr.written == "lion-fast: \\u732b\n"
    assert OUTPUT.loss.errno == 28


@pytest.mark.parametrize(
    ("term", "encoding", "kind"),
    [("xterm", "utf-8", Live), ("dumb", "utf-8", Plain), ("xterm", "ascii", Plain)],
)
def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch, term, encoding, kind):
    stream = Stream()
    stream.encoding = encoding
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", term)
    assert type(make_console(10)) is kind
    assert Output().can_draw == (kind is Live)


def test_a_dumb_terminal_has_a_line_every_ten_seconds_and_the_last(monkeypatch, capsys):
    times = iter((100.0, 109.0, 111.0, 112.0))
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    console = Plain(pause=10.0)
    for step in (1, 2, 3, 4):
        console.progress(Progress(step, 4, 1.0, 0.5, None, 1.0, 1.0, 0.0, 1.0))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["1", "3", "4"]


@pytest.mark.parametrize("columns", ["0", "1", "5", "words"])
@pytest.mark.parametrize("arguments", [["eval", "--help"], ["predict"]])
def test_help_and_mistakes_are_laid_out_however_narrow_the_terminal(
    arguments, columns, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == (0 if "--help" in arguments else 2)
    assert "lion-fast" in "".join(capsys.readouterr())
    assert os.environ["COLUMNS"] == columns


def strictly(text):
    """Parse JSON as programs do that know no NaN."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_number_that_is_none_is_null_for_programs(stripes, tmp_path, capsys):
    """The only step's loss is finite, and the weights after it overflow."""
    flags = [*SMALL[:-1], "1", "--window", "1", "--lr", "1e38", "--out", str(tmp_path)]
    assert main(["train", "--dataset", str(stripes), *flags]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert strictly(printed[-1])["val_loss"] is None
    (run,) = tmp_path.iterdir()
    assert strictly((run / "summary.json").read_text())["val_loss"] is None
    assert exact_json({"a": [1.5, float("inf"), ("b", -float("inf"))], "c": float("nan")}) == (
        '{"a": [1.5, null, ["b", null]], "c": null}'
    )
