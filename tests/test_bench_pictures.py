"""The pictures of a benchmark report show what its rows hold."""

import numpy as np
import pytest
from bench_rows import H200, all_pictures, merged, write
from PIL import Image

from lion_fast import figures
from report.page import report_benchmarks
from report.plots import loader_rates, step_bars


def test_pictures_show_ours_and_rivals(tmp_path):
    path = write(tmp_path / "a.json", H200, all_pictures())
    written = report_benchmarks([path], tmp_path / "out")
    assert [p.name for p in written[1:]] == ["step_time.png", "overhead.png", "loaders.png"]
    for picture in written[1:]:
        with Image.open(picture) as image:
            image.verify()
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        assert pixels.shape[1] > 1000
        assert (pixels != 255).any(2).mean() > 0.02
        for style in (figures.OURS, figures.RIVAL):
            color = [int(style.color[i : i + 2], 16) for i in (1, 3, 5)]
            assert (abs(pixels.astype(int) - color).max(2) < 8).sum() > 50, picture


def test_bars_are_the_steps_at_the_smallest_batch(tmp_path):
    bars = step_bars(merged(tmp_path / "a.json", H200, all_pictures()))
    assert [(bar.name, bar.is_ours) for bar in bars] == [
        ("plain", False),
        ("eager dali", True),
        ("graph resident", True),
    ]
    assert [bar.seconds for bar in bars] == pytest.approx([30e-3, 9e-3, 2e-3])


def test_the_loader_that_others_are_compared_with_gets_its_rate(tmp_path):
    rates = loader_rates(merged(tmp_path / "a.json", H200, all_pictures()), "loader+step")
    assert [(rate.line, rate.steps_per_run, rate.is_ours) for rate in rates] == [
        ("dali", 1, True),
        ("dali", 16, True),
        ("workers-2", None, False),
        ("resident", None, True),
    ]
    assert [rate.images_per_second for rate in rates] == pytest.approx([1e5, 4e5, 1e4, 5e5])
