"""Sources that machine code comes from: which function a line is in, and which loop or condition.

Python and CUDA C++ alike, as this project's formatters lay them out: what belongs to a line stands
below it, further in.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from gpu.sass import Frame
from support.checkout import ROOT

FOLDERS = ("kernels/persistent/csrc", "kernels/dense", "kernels/muon")
_LOOP = re.compile(r"(for|while)\b")
_FUNCTION = re.compile(r"def (\w+)|(?:DEVICE|SHAPE|KERNEL\(\w+\)) [\w<>: ]*?[*&]?(\w+)\(")


class Place(NamedTuple):
    """A line, and the function that it is in."""

    function: str
    text: str


@cache
def _lines(file: str) -> tuple[str, ...]:
    """Return a file's lines, from 1 on; none of a file that is not the kernels' own."""
    paths = [path for folder in FOLDERS if (path := ROOT / folder / file).exists()]
    return ("", *paths[0].read_text(encoding="utf-8").splitlines()) if paths else ()


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


@cache
def place(frame: Frame) -> Place:
    """Return a frame's place; of a file that is not the kernels' own, an empty one."""
    lines = _lines(frame.file)
    if not 0 < frame.line < len(lines):
        return Place("", "")
    for number in range(frame.line, 0, -1):
        is_outermost = _depth(lines[number]) == 0
        if is_outermost and (found := _FUNCTION.match(lines[number])):
            return Place(found[1] or found[2], lines[frame.line].strip())
    return Place("", lines[frame.line].strip())


def _around(frame: Frame) -> Iterator[str]:
    """Yield a line, then those that it belongs to, from the nearest to the function's first."""
    lines = _lines(frame.file)
    depth = _depth(lines[frame.line]) + 1
    for number in range(frame.line, 0, -1):
        line = lines[number]
        if line.strip() and not line.startswith("#") and _depth(line) < depth:
            depth = _depth(line)
            yield line.strip()
            if depth == 0:
                return


@cache
def loop_place(frames: tuple[Frame, ...]) -> Place:
    """Return the head of the innermost loop around a place that the jump of a loop comes from."""
    for frame in frames:
        if inside := place(frame).function:
            for line in _around(frame):
                if _LOOP.match(line):
                    return Place(inside, line)
    return Place("", "")


@cache
def is_below(frame: Frame, function: str, head: str) -> bool:
    """Whether a line lies in what belongs to a line with `head` in it, of that function."""
    return place(frame).function == function and any(head in line for line in _around(frame))
