"""Style that all pictures of reports share: legible in print, in grey and to the colour-blind.

What is told apart by colour (Okabe-Ito) is told apart by marker, dash or hatch too, and is named
where it is drawn rather than in a legend.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
INK = "#333333"
PALE = "#BBBBBB"


Dashes = str | tuple[int, tuple[int, ...]]


class Style(NamedTuple):
    """How one of several things in a picture looks."""

    color: str
    marker: str
    dashes: Dashes
    hatch: str


OURS = Style("#0072B2", "o", "-", "")
RIVAL = Style("#D55E00", "s", "--", "////")
STYLES = (
    OURS,
    RIVAL,
    Style("#009E73", "^", "-.", "xxxx"),
    Style("#CC79A7", "v", ":", "\\\\\\\\"),
    Style("#E69F00", "P", (0, (5, 1, 1, 1, 1, 1)), "ooo"),
    Style("#56B4E9", "X", (0, (1, 3)), "++"),
)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches, drawn without a display."""
    _import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG whose bytes depend on the figure alone; never leave half of one.

    A palette of 256 colours makes it a third as large and moves no colour that anyone sees: by 17
    of 255 at most in the committed pictures, whose shades are the edges of lines. A name is drawn
    as it is spelled: `$` begins no formula. What no font has is drawn as a box.
    """
    from matplotlib.text import Text
    from PIL import Image

    # A logarithmic axis writes its powers of ten as formulas.
    axes = [axis for pair in figure.axes for axis in (pair.xaxis, pair.yaxis)]
    powers = [a.get_ticklabels(which="both") for a in axes if a.get_scale() == "log"]
    formulas = set(chain.from_iterable(powers))
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(text in formulas)
        text.set_usetex(False)
    unfinished, pixels = path.with_suffix(".tmp"), BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            figure.savefig(pixels, format="png")
        with Image.open(pixels) as image:
            # The default, median cut, gives a colour of few pixels away.
            picture = image.convert("RGB").quantize(
                256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
            )
        picture.save(unfinished, "PNG", optimize=True, dpi=(DPI, DPI))
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    unfinished.replace(path)


@contextmanager
def drawn(name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Let no failure of a picture end what it is a picture of: `say` one line of it instead."""
    try:
        yield
    except Exception as error:  # whatever the caller's matplotlib, its settings and fonts raise
        reason = " ".join(str(error).split())[:200] or repr(error)
        say(f"no {name}, all else is written: {reason}")


def _import_matplotlib() -> None:
    """Import it without the display that MPLBACKEND asks for: no picture of ours needs one.

    A notebook's backend, which the commands that it starts inherit, is often not installed for
    them, and would fail this import.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: F401
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def clean(axis: "Axes", title: str = "", grid: Literal["x", "y", "both"] | None = None) -> None:
    """Take the box away, set the title on the left, and draw pale lines of `grid` (x, y, both)."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, loc="left", fontsize=10, color=INK)
    axis.tick_params(colors=INK, labelsize=9)
    axis.set_axisbelow(True)
    if grid:
        axis.grid(axis=grid, color=PALE, linewidth=0.5, alpha=0.7)


def mark_sizes(axis: "Axes", changes: Mapping[int, str], color: str = INK) -> None:
    """Mark, at the top, from which step on images are of another size, in words."""
    top = axis.get_xaxis_transform()
    for step, words in changes.items():
        axis.axvline(step, color=color, linewidth=0.8, linestyle=":")
        axis.annotate(words, (step, 1), (3, -9), xycoords=top, textcoords="offset points",
                      fontsize=7, color=color)  # fmt: skip


def bars(
    axis: "Axes", names: Sequence[str], values: Sequence[float], texts: Sequence[str],
    styles: Sequence[Style],
) -> None:  # fmt: skip
    """Draw horizontal bars from the top down, each with its text at its end."""
    places = range(len(names))
    for place, value, text, style in zip(places, values, texts, styles, strict=True):
        axis.barh(
            place, value, height=0.72, color=style.color if not style.hatch else "white",
            edgecolor=style.color, hatch=style.hatch, linewidth=1,
        )  # fmt: skip
        axis.annotate(text, (value, place), (4, 0), textcoords="offset points", va="center",
                      fontsize=9, color=INK)  # fmt: skip
    axis.set_yticks(places, names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(0, 1.18 * max(values))
    axis.tick_params(axis="y", length=0)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return places at least `gap` apart, in the same order, near the wanted ones."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = list(wanted)
    for _ in range(100 * len(places)):
        moved = False
        for below, above in zip(order, order[1:], strict=False):
            lack = gap - (places[above] - places[below])
            if lack > 1e-9 * max(1.0, gap):
                places[below] -= lack / 2
                places[above] += lack / 2
                moved = True
        if not moved:
            break
    return places
