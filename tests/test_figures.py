import itertools
import os
import subprocess
import sys

import pytest
from PIL import Image

from lion_fast import figures
from lion_fast.figures import drawn, new_figure, save


def test_labels_are_spread_without_changing_their_order():
    wanted = [0.5, 0.1, 0.51, 0.5, 0.9]
    places = figures.spread(wanted, 0.1)
    order = sorted(range(5), key=lambda index: wanted[index])
    gaps = [places[b] - places[a] for a, b in itertools.pairwise(order)]
    assert min(gaps) >= 0.1 - 1e-6
    assert places[1] == 0.1 and places[4] == 0.9


def test_a_picture_is_small_has_its_bytes_again_and_shows_what_was_drawn(tmp_path):
    paths = [tmp_path / name for name in ("first.png", "second.png")]
    for path in paths:
        figure = figures.new_figure(4, 3)
        axis = figure.subplots()
        for place, style in enumerate(figures.STYLES):
            axis.plot([1, 2], [1, place], color=style.color, linewidth=3)
        figures.save(figure, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert {path.suffix for path in tmp_path.iterdir()} == {".png"}
    with Image.open(paths[0]) as picture:
        assert (picture.mode, picture.size) == ("P", (600, 450))
        shown = {tuple(color) for _, color in picture.convert("RGB").getcolors()}
    for style in figures.STYLES:
        wanted = [int(style.color[i : i + 2], 16) for i in (1, 3, 5)]
        assert min(max(map(abs, map(int.__sub__, wanted, each))) for each in shown) < 18


def picture(text, path):
    figure = new_figure(3, 2)
    axis = figure.subplots()
    axis.set_title(text)
    axis.set_yticks([0, 1], [text, text])
    axis.legend([], title=text)
    save(figure, path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a$_$b", "$", "a_b^c$d$", "100 %", "\\frac", "猫", "{}"])
def test_a_name_is_drawn_as_it_is_spelled(name, tmp_path):
    assert picture(name, tmp_path / "a.png")


def test_a_formula_in_a_name_is_no_formula(tmp_path):
    assert picture("$a$", tmp_path / "a.png") != picture("a", tmp_path / "b.png")


def test_a_picture_that_fails_leaves_no_file_and_ends_nothing(tmp_path):
    notes = []
    for error in (ValueError("bad\nrc"), RuntimeError(), ImportError("none")):
        with drawn("a.png", notes.append):
            raise error
    assert notes[0] == "no a.png, all else is written: bad rc"
    assert notes[1:] == [
        "no a.png, all else is written: RuntimeError()",
        "no a.png, all else is written: none",
    ]
    figure = new_figure(3, 2)
    figure.savefig = lambda *_, **__: (tmp_path / "a.tmp").write_bytes(b"half") and 1 / 0
    with pytest.raises(ZeroDivisionError):
        save(figure, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_notebooks_backend_that_is_not_here_keeps_no_picture_from_being_drawn(tmp_path):
    code = (
        "import os; from pathlib import Path; from lion_fast.figures import new_figure, save;"
        f" save(new_figure(3, 2), Path({str(tmp_path / 'a.png')!r})); "
        "print(os.environ['MPLBACKEND'])"
    )
    backend = "module://no_such_module.backend_inline"
    env = os.environ | {"MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{backend}\n", "")
