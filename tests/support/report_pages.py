"""Reports of studies, made by the command, and what their pages say."""

import re

from lion_fast.cli import main


def report(tmp_path, *names):
    arguments = ["report", *names, "--studies", str(tmp_path), "--out", str(tmp_path / "report")]
    return main(arguments)


def page(tmp_path):
    return (tmp_path / "report" / "studies.md").read_text(encoding="utf-8")


def line_of(text, *words):
    """The only line that holds all the words, with single spaces."""
    (line,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return re.sub(" +", " ", line)
