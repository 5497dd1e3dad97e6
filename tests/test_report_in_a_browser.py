"""The report's page as headless Chromium lays it out, on a desk and on a telephone."""

import html
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from study_runs import ENVIRONMENT, fill

from lion_fast.report.page import report_studies
from lion_fast.report.results import read_study
from lion_fast.study.studies import STUDIES

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: lays out the page")

# Whatever is wider than the window shows in scrollWidth; tables scroll inside themselves.
PROBE = """
<script>
addEventListener("load", () => {
  const tables = [...document.querySelectorAll("table")].map(t => t.getBoundingClientRect());
  const next = [...document.querySelectorAll("table + table")];
  const gaps = next.map(t => t.getBoundingClientRect().top
    - t.previousElementSibling.getBoundingClientRect().bottom);
  parent.postMessage([
    document.documentElement.scrollWidth, innerWidth, tables.length, Math.min(...gaps)], "*");
});
</script>
"""
# A window has at least 500 pixels, a frame in it as few as it is told.
FRAME = """
<script>
addEventListener("message", event => {
  document.body.dataset.measured = JSON.stringify(event.data);
});
</script>
<body style="margin: 0">
<iframe src="studies.html" style="width: %dpx; height: 2000px; border: 0"></iframe>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    environment = ENVIRONMENT | {"commit": "0123456789" * 4, "dali": "nvidia-dali-cuda130 2.4.0"}
    study = STUDIES["table6"]
    fill(study, folder, lambda c: {"steps_to_target": 1000 + c.seed, "environment": environment})
    report_studies([read_study(study, folder)], folder / "report")
    path = folder / "report" / "studies.html"
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"))
    return path


def browse(page, *options):
    """Run the browser on the page; return what it printed."""
    profile = page.with_name("profile")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", "--window-size=1280,2000", *options]
    return subprocess.run(
        [*command, f"file://{page}"], capture_output=True, text=True, timeout=600,
        env=os.environ | {"HOME": str(page.parent)}, check=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window_and_no_table_touches_the_next(page, width):
    frame = page.with_name(f"frame{width}.html")
    frame.write_text(FRAME % width)
    dom = browse(frame, "--dump-dom")
    found = html.unescape(re.search(r'data-measured="([^"]*)"', dom)[1])
    scroll_width, inner_width, num_tables, gap = map(float, found.strip("[]").split(","))
    assert scroll_width <= inner_width == width
    assert num_tables >= 6
    assert gap >= 16


@pytest.mark.parametrize(("options", "is_dark"), [([], False), (["--force-dark-mode"], True)])
def test_the_page_is_light_or_dark_as_its_reader_wants_it(page, tmp_path, options, is_dark):
    picture = tmp_path / "page.png"
    browse(page, f"--screenshot={picture}", *options)
    pixels = np.asarray(Image.open(picture).convert("L"))
    corner = int(pixels[5, 5])
    assert corner < 60 if is_dark else corner > 240
    # Letters stand out from the ground in either.
    assert np.abs(pixels[:300].astype(int) - corner).max() > 120
