import sys
from dataclasses import replace

import pytest

from lion_fast.training.console import Live, Plain, Progress, make_console

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
    assert isinstance(make_console(10), Live)


def test_the_bar_shows_the_same_figures(capsys):
    console = Live(100)
    console.say(["device cpu [not markup]"])
    console.progress(PROGRESS)
    console.close()
    shown = " ".join(capsys.readouterr().out.split())
    assert "device cpu [not markup]" in shown
    assert "50/100" in shown and "1.2500" in shown and "50.00%" in shown
