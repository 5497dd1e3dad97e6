"""docs/measured.md quotes what the committed page of the cards has, and nothing else."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"\d[\d,]*\.\d+|\d[\d,]*(?= ± )")


def test_every_figure_of_the_gpu_s_table_stands_on_the_generated_page():
    text = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    page = (ROOT / "bench" / "results" / "report" / "gpu.md").read_text(encoding="utf-8")
    section = text.partition("## On a GPU")[2].partition("Not measured on any GPU")[0]
    rows = [line for line in section.splitlines() if line.startswith(("|", "- "))]
    quoted = {figure for row in rows for figure in NUMBER.findall(row.rpartition("card")[0] or row)}
    assert len(quoted) > 30
    assert {figure for figure in quoted if figure not in page} <= {"0.8", "5.3", "3.6"}
