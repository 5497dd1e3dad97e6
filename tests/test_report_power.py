"""How many seeds a statement needs, and what the seeds at hand can show."""

from report_pages import line_of, page, report
from study_runs import fill

from lion_fast.cli import main
from lion_fast.report.comparisons import STEPS, compare_variants, conclusion
from lion_fast.report.results import read_study
from lion_fast.study.studies import STUDIES

QUICKSTART = STUDIES["quickstart"]


TABLE6 = STUDIES["table6"]


def noisy(config):
    spread = {42: 0, 123: 9, 456: -9}[config.seed]
    return {"steps_to_target": 1000 + spread + (spread if config.init == "lsuv" else 0)}


def test_beside_no_difference_shown_stands_what_so_many_seeds_can_show(tmp_path):
    fill(TABLE6, tmp_path, noisy)
    report(tmp_path, "table6")
    row = compare_variants(read_study(TABLE6, tmp_path), STEPS)[2]
    line = line_of(page(tmp_path), "densenet_ds lsuv", "| no difference shown", "-70")
    assert line.startswith("| cifar10 densenet_ds lsuv | no difference shown at n = 3 |")
    assert line.endswith(f"| {row.smallest_shown:,.0f} | -70 | {row.seeds_for_effect} |")
    (said,) = [line for line in conclusion(read_study(TABLE6, tmp_path)) if "ds lsuv" in line]
    percent = row.smallest_shown / 10
    assert f"no difference shown at n = 3, which can show {percent:.1f} % or more" in said
    assert f"the paper's effect needs n = {row.seeds_for_effect}" in said


def test_a_report_has_the_paired_tests_and_their_power(tmp_path):
    study = STUDIES["headline"]
    fill(study, tmp_path, lambda c: {"steps_to_target": 1000 + c.seed % 7 * (c.init == "he")})
    report(tmp_path, "headline")
    text = page(tmp_path)
    everything, new = (line_of(text, "lion_dg", name) for name in ("| all ", "without the paper's"))
    assert everything.startswith("| lion_dg | different within bounds | all | 10 | 0.997 |")
    assert "| 7 |" in new
    assert line_of(text, "| lion_dg", "8.3 (paper)")


def test_power_is_told_from_the_runs_at_hand(tmp_path, capsys):
    fill(TABLE6, tmp_path, noisy)
    assert main(["study", "table6", "--power", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert line_of(printed, "lsuv", "7.0 (paper)").startswith("| cifar10 densenet_ds lsuv | 3 |")
    assert "80 % power" in printed


def test_without_spread_power_says_what_to_run(tmp_path, capsys):
    fill(QUICKSTART, tmp_path, lambda config: {"steps_to_target": 80})
    assert main(["study", "quickstart", "--power", "--out", str(tmp_path)]) == 0
    assert "run `lion-fast study quickstart`" in capsys.readouterr().out
