"""What has not been run: told with its command and its price, by steps that were measured."""

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from study_runs import fill

from lion_fast.cli import main
from lion_fast.report.costs import CARDS, cost_text
from lion_fast.report.judging import command_of, judge_all, studies_not_run
from lion_fast.report.results import read_study
from lion_fast.report.statements import STATEMENTS
from lion_fast.study.studies import STUDIES
from report.cards import read_card, runs_by_recipe

GPU = Path(__file__).parent.parent / "bench" / "results" / "gpu"


@pytest.mark.parametrize(
    ("arch", "recipe"), [("densenet_ds", "dense3000fused"), ("resnet_ds", "resnet3000")]
)
def test_the_steps_of_a_card_are_the_committed_runs(arch, recipe):
    times = CARDS["H200"]
    runs = runs_by_recipe(read_card(GPU.parents[2] / times.source))
    found = [run["ms"] for (name, _), each in runs.items() if name == recipe for run in each]
    assert times.milliseconds[arch] == round(median(found), 3)


def test_a_cost_is_steps_times_the_card_s_median_and_times_the_cpu_s(tmp_path):
    study = STUDIES["table6"]
    fill(study, tmp_path, lambda c: {"step_milliseconds_median": 360.0})
    config = replace(study.base, max_steps=50_000)
    text = cost_text([config, config], [read_study(study, tmp_path)], "H200")
    assert text == "needs 2.0 minutes on an H200 (2 runs), or 10 CPU hours"
    resnet = replace(config, arch="resnet_ds")
    text = cost_text([config, resnet], [read_study(study, tmp_path)], "H200")
    assert text == "needs 3.0 minutes on an H200 (2 runs)"


def test_a_card_that_was_not_measured_has_no_costs(tmp_path, capsys):
    fill(STUDIES["table6"], tmp_path, lambda c: {"steps_to_target": 1000})
    options = ["--studies", str(tmp_path), "--out", str(tmp_path / "report"), "--card", "A100"]
    assert main(["report", "table6", "--whole-paper", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'A100', which was not measured: take one of H200" in line


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
    assert (accuracy.verdict, accuracy.command) == ("not run", "lion-fast study cooled")
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
    assert (
        "`lion-fast study alpha`" in page
        and "minutes on an H200 are steps x the median step measured there" in page
    )
