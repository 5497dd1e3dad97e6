"""gpu.md shows what a card's findings hold: medians, intervals and n, losing rows too."""

import json
import re
from pathlib import Path

import pytest

from lion_fast.errors import UserError
from report.card_page import cards_page
from report.cards import read_card, step_times

GPU = Path(__file__).resolve().parent.parent / "bench" / "results" / "gpu"
H200 = GPU / "2026-11-27-h200"


def cells(lines, *words):
    """Return the first table row that holds all the words, as cells."""
    for line in lines:
        if line.startswith("|") and all(word in line for word in words):
            return [cell.strip() for cell in line.strip("|").split("|")]
    raise AssertionError(f"no row has {words}")


@pytest.fixture
def folder(tmp_path):
    """A function from findings to a folder that holds them."""

    def write(*findings):
        path = tmp_path / "2027-01-01-h100"
        path.mkdir(exist_ok=True)
        text = "\n".join(map(json.dumps, findings))
        (path / "card.jsonl").write_text(text + "\n", encoding="utf-8")
        return path

    return write


def test_the_committed_h200_says_what_was_found_with_interval_and_n():
    page = cards_page([H200])
    assert cells(page, "graph / fused")[1:] == ["2.103", "[2.101, 2.105]", "61"]
    assert cells(page, "lion_dg / he")[1:] == ["0.99984", "[0.99937, 1.0002]", "100"]
    fused = cells(page, "CIFAR-10", "fused")
    assert fused[1].startswith("0.6366 ± 0.025 [0.6176, 0.6556] s, 490.8 ± 17")
    assert fused[2] == "n = 9 seeds"


def test_what_lost_and_what_did_not_end_is_on_the_page():
    page = cards_page([H200])
    assert float(cells(page, "graph / fewer")[1]) < 1
    assert float(cells(page, "ResNet-DS, ended at 70 %, lion_dg", "steps")[3]) > 1
    unfinished = [line for line in page if line.startswith("- ")]
    assert "- stage `heads`: out of time" in unfinished


def test_the_page_says_what_code_it_was_where_the_stamp_is_wrong():
    text = "\n".join(cards_page([H200]))
    assert "commit 5a75cde" in text and "fixes_for_torch_2.11.patch" in text


def test_the_committed_page_is_what_the_files_give():
    committed = (GPU.parent / "report" / "gpu.md").read_text(encoding="utf-8")
    folders = sorted(path for path in GPU.iterdir() if path.is_dir())
    assert committed == "\n".join(cards_page(folders)) + "\n"


def test_ratios_are_computed_from_rounds_where_rounds_were_written(folder):
    rounds = [
        {"stage": "steps", "round_ms": {"stock": 3.0 * drift, "fused": 1.0 * drift, "graph": 2.0}}
        for drift in (1.0, 1.5, 1.2, 0.9)
    ]
    times = step_times(read_card(folder({"stage": "sanity", "gpu": "H100"}, *rounds)))
    assert times.ms["fused"] == (pytest.approx(1.1), 4)
    ratios = {ratio.name: ratio for ratio in times.ratios}
    assert ratios["stock / fused"][1:] == (pytest.approx(3), pytest.approx(3), pytest.approx(3), 4)


def test_a_run_that_never_got_there_is_counted_and_has_no_mean(folder):
    run = {"stage": "runs", "recipe": "fast", "init": "he", "setup": 0.1, "val": 0.7, "ms": 1.0}
    found = [run | {"seed": s, "steps": n, "seconds": n} for s, n in ((1, 400), (2, None))]
    assert cells(cards_page([folder(*found)]), "| preset fast-v1")[2:4] == ["2", "1 of 2 runs"]


@pytest.mark.parametrize("text", ["", "{'stage': 1}\n", "[1]\n"])
def test_a_folder_without_findings_is_refused_in_one_line(folder, text):
    path = folder()
    (path / "card.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(str(path))) as refusal:
        read_card(path)
    assert "\n" not in str(refusal.value)
