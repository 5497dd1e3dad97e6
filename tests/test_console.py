import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lion_fast.training.screen.console import Live, Plain, make_console
from lion_fast.training.screen.printed import Progress, ending, figures

PROGRESS = Progress(
    step=50,
    max_steps=100,
    loss=1.25,
    accuracy=0.5,
    gradient_ratio=None,
    images_per_second=12345.0,
    step_milliseconds=2.0,
    data_wait_percent=1.0,
    memory_mib=512.0,
)
SUMMARY = {
    "target_accuracy": 0.7,
    "config": {"resolutions": ""},
    "steps_to_target": None,
    "seconds_to_target": None,
    "val_accuracy": 0.5,
    "val_accuracy_per_head": [0.4, 0.5],
    "val_iou_per_class": None,
    "init_seconds": 0.0,
    "setup_seconds": 0.0,
    "reused": False,
    "train_seconds": 1.0,
    "total_seconds": 1.0,
    "run": "runs/a",
    "stopped_seconds": 0.0,
}


def test_plain_lines_are_aligned_under_one_header(capsys):
    console = Plain()
    console.progress(PROGRESS)
    console.progress(replace(PROGRESS, step=100, gradient_ratio=0.25, images_per_second=1.0))
    header, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert {len(line) for line in (header, *lines)} == {len(header)}
    assert lines[0].split()[:4] == ["50", "1.2500", "50.00", "-"]
    assert lines[1].split()[3] == "0.2500"


def test_the_time_left_is_that_of_the_remaining_steps():
    assert PROGRESS.eta_seconds == pytest.approx(0.1)


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert isinstance(make_console(10), Plain)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_console(10), Live)


def shown_by(console, capsys, progress=PROGRESS):
    console.progress(progress)
    console.close()
    return " ".join(capsys.readouterr().out.split())


def test_the_bar_shows_the_same_figures(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    console = Live(100)
    console.say(["device cpu [not markup]"])
    shown = shown_by(console, capsys)
    assert "device cpu [not markup]" in shown
    for figure in ("50/100", "1.2500", "50.00%", "12345 images/s", "2.00 ms/step", "eta 0:00:00"):
        assert figure in shown


@pytest.mark.parametrize("columns", [14, 30, 50, 79, 80, 200])
def test_the_step_counter_survives_the_narrowest_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = shown_by(Live(10**5), capsys, replace(PROGRESS, step=50000, max_steps=10**5))
    assert "50000/100000" in shown
    assert ("50.00%" in shown) == (columns >= 50)
    assert ("━" in shown) == (columns >= 30)


def test_a_run_that_has_reported_nothing_shows_its_steps_and_no_loss():
    assert figures(None, 3000, 80) == ["0/3000"]


def terminal_text(renderable):
    from rich.console import Console

    console = Console(width=80, force_terminal=True)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_a_stage_is_shown_while_it_lasts_and_the_bar_after_it():
    console = Live(100)
    with console.stage("compiling"):
        during = terminal_text(console._render())
    after = terminal_text(console._render())
    console.close()
    assert "compiling  0 s" in during and "0/100" not in during
    assert "0/100" in after and "nan" not in after and "compiling" not in after


def test_a_stage_is_a_line_in_a_pipe_and_nothing_when_quiet(capsys):
    with Plain().stage("loading digits"):
        assert capsys.readouterr().out == "loading digits ...\n"
    with make_console(10, quiet=True).stage("loading digits"):
        assert capsys.readouterr().out == ""


def test_a_window_longer_than_the_run_is_not_called_a_target_missed():
    told = SUMMARY | {"window": 100, "steps": 3}
    assert "not measured, the run has 3 steps only" in ending(SimpleNamespace(**told))[0]
    told = SUMMARY | {"window": 2, "steps": 3}
    assert "not reached in 3 steps" in ending(SimpleNamespace(**told))[0]
