import itertools

from PIL import Image

from lion_fast import figures


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
