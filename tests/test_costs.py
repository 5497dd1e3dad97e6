"""What has not been run: counted where the counts lie, and told with its price and command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from study_runs import fill
from torch.utils.flop_counter import FlopCounterMode

from lion_fast.cli import main
from lion_fast.config import TrainConfig
from lion_fast.models import build_model
from lion_fast.report.costs import COUNTS, cost_text
from lion_fast.report.results import read_study
from lion_fast.report.statements import STATEMENTS, command_of, judge_all, studies_not_run
from lion_fast.study.studies import STUDIES

COUNTED = Path(__file__).parent.parent / "bench" / "results" / "counts"


@pytest.mark.parametrize("arch", COUNTS)
def test_costs_are_the_committed_counts(arch):
    counted = json.loads((COUNTED / "H100.json").read_text())["counts"]
    (counts,) = (each for each in counted if each["arch"] == arch)
    assert counts["batch_size"] == 128
    graph = counts["engines"]["graph"]
    assert COUNTS[arch].launches == sum(graph["launches"].values())
    assert COUNTS[arch].bytes_moved == sum(graph["bytes"].values())


@pytest.mark.parametrize("arch", COUNTS)
def test_costs_count_three_forward_passes_of_operations(arch):
    with torch.device("meta"):
        model, images = (
            build_model(TrainConfig(arch=arch), 10, (32, 32)),
            torch.empty(128, 3, 32, 32),
        )
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert COUNTS[arch].operations == 3 * counter.get_total_flops()


def test_a_cost_is_steps_times_the_floor_and_times_the_cpu_s_median(tmp_path):
    study = STUDIES["table6"]
    fill(study, tmp_path, lambda c: {"step_milliseconds_median": 360.0})
    config = replace(study.base, max_steps=1000)
    minutes = 2 * 1000 * COUNTS["densenet_ds"].floor_seconds / 60
    text = cost_text([config, config], [read_study(study, tmp_path)])
    assert text == f"needs {minutes:.3f} to 1.7 GPU minutes (2 runs), or 0.20 CPU hours"
    resnet = replace(config, arch="resnet_ds")
    assert "CPU" not in cost_text([config, resnet], [read_study(study, tmp_path)])


def test_the_whole_paper_leaves_no_statement_silent(tmp_path):
    study = STUDIES["table6"].override(stop_at_target=True, engine="compile")
    fill(study, tmp_path, lambda c: {"steps_to_target": 1000 + c.seed % 7})
    judged = judge_all([read_study(STUDIES["table6"], tmp_path)], whole=True)
    assert [statement for statement, _ in judged] == list(STATEMENTS)
    verdicts = {s.text: j for s, j in judged}
    assert "not tested" not in {judgement.verdict for judgement in verdicts.values()}
    table7 = next(j for text, j in verdicts.items() if "Fixup and ReZero" in text)
    # He-init's runs to the target are there already.
    assert "(6 runs)" in table7.figure and table7.command == "lion-fast study table7"
    accuracy = next(j for text, j in verdicts.items() if "LSUV's validation" in text)
    assert (accuracy.verdict, accuracy.command) == ("not run", "lion-fast study table1")
    assert "(3 runs)" in accuracy.figure and "did not train" in accuracy.evidence
    sooner = next(j for text, j in verdicts.items() if "LSUV reaches" in text)
    assert sooner.command == "lion-fast study table6 --engine compile --stop-at-target"


def test_studies_that_are_not_there_are_named_with_the_runs_they_lack(tmp_path):
    fill(STUDIES["table6"], tmp_path, lambda c: {"steps_to_target": 1000})
    found = {s.name: len(m) for s, m in studies_not_run([read_study(STUDIES["table6"], tmp_path)])}
    assert (found["headline"], found["alpha"], found["table1"]) == (14, 12, 36)
    assert not {"table6", "quickstart", "after_3000"} & found.keys()


def test_a_command_has_what_the_named_study_has_not():
    study = STUDIES["headline"]
    assert command_of(study) == "lion-fast study headline"
    changed = study.override(seeds=(1, 2), max_steps=5, engine="graph", stop_at_target=True)
    assert command_of(changed) == (
        "lion-fast study headline --engine graph --max-steps 5 --stop-at-target --seeds 1 2"
    )


def test_a_report_of_the_whole_paper_has_every_row_and_its_command(tmp_path, capsys):
    fill(STUDIES["table6"], tmp_path, lambda c: {"steps_to_target": 1000 + c.seed % 7})
    options = ["--studies", str(tmp_path), "--out", str(tmp_path / "report")]
    assert main(["report", "table6", "--whole-paper", *options]) == 0
    page = (tmp_path / "report" / "studies.md").read_text()
    table = page.partition("#### Evidence")[0].splitlines()
    assert sum("`lion-fast study " in line for line in table) == len(STATEMENTS)
    assert "Statements not tested" not in page
    assert "`lion-fast study alpha`" in page and "predicted, not measured" in page
