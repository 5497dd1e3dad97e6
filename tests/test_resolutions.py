"""Training that begins on smaller images: what the course says, and that nothing else notices."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from run_results import results, table
from small_runs import small_config
from study_runs import fill

from lion_fast.cli import main
from lion_fast.config import TrainConfig
from lion_fast.data.sides import check_sides
from lion_fast.errors import UserError
from lion_fast.report.page import report_studies
from lion_fast.report.results import read_study
from lion_fast.resolutions import FULL_SIZE, Resolutions
from lion_fast.study.check import obstacle_lines
from lion_fast.study.runner import run_study
from lion_fast.study.studies import find_study
from lion_fast.training import Interrupted, StepCache, train
from lion_fast.training.agenda import Agenda
from lion_fast.training.folder.checkpoint import load_checkpoint
from lion_fast.training.screen.console import Silent
from lion_fast.training.step.history import History
from lion_fast.training.step.step import TrainStep

# Digits are 16x16: 7 steps at 8, 4 at 12, and from step 11 on, counted from 0, as they are.
COURSE, REDUCED = "8:7,12:4", 11
SIDES = [8] * 7 + [12] * 4 + [16] * 9


@pytest.fixture
def config(tmp_path):
    return small_config("digits", tmp_path, max_steps=20, window=3, resolutions=COURSE)


class Stops(Silent):
    """A console that has the run stopped at its first log line."""

    def progress(self, progress):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def sides(monkeypatch):
    """Sides of the images of every step that is taken, rehearsed ones included."""
    seen, step = [], TrainStep.__call__

    def watched(self, batch, row):
        seen.append(batch.images.shape[-1])
        step(self, batch, row)

    monkeypatch.setattr(TrainStep, "__call__", watched)
    return seen


def test_a_course_says_the_size_of_every_step_and_where_it_changes():
    course = Resolutions.parse(" 8:7, 12 : 4 ")
    assert str(course) == COURSE
    assert [course.side_at(step) or 16 for step in range(20)] == SIDES
    assert course.changes == {7: 12, 11: None} and course.num_reduced == REDUCED
    left = [course.steps_to_change(step) for step in (0, 6, 7, 10, 11, 99)]
    assert left == [7, 1, 4, 1, None, None]
    assert course.sides_from(0) == [8, 12, None] and course.sides_from(7) == [12, None]
    assert course.sides_from(11) == [None]


def test_no_course_is_full_size_throughout():
    assert Resolutions.parse("") == Resolutions.parse(" ") == FULL_SIZE
    assert FULL_SIZE.sides_from(0) == [None] and FULL_SIZE.steps_to_change(0) is None
    assert FULL_SIZE.changes == {} and FULL_SIZE.cost(7, 32) == 7


def test_a_step_costs_the_square_of_its_share_of_the_side():
    course = Resolutions.parse("16:250,24:100")
    assert course.cost(500, 32) == 250 / 4 + 100 * 9 / 16 + 150
    assert course.cost(100, 32) == 25 and course.cost(251, 32) == 250 / 4 + 9 / 16


def test_a_config_keeps_a_course_in_one_spelling():
    config = TrainConfig(resolutions=" 16:250 , 24:0100")
    assert config.resolutions == "16:250,24:100"
    assert TrainConfig.from_dict(config.to_dict()) == config


BAD = {
    "16": "resolutions has '16': give pixels:steps",
    "16:": "resolutions has '16:': give pixels:steps",
    "16:250,": "resolutions has '': give pixels:steps",
    "16:2.5": "resolutions has '16:2.5'",
    "16x16:5": "resolutions has '16x16:5'",
    "16:-5": "resolutions has 16:-5: pixels and steps must be at least 1",
    "16:0": "resolutions has 16:0: pixels",
    "0:5": "resolutions has 0:5: pixels",
    "-8:5": "resolutions has -8:5: pixels",
    "16:5,24:5,16:5": "resolutions has 16 pixels twice: give all steps of a size together",
    ",".join(f"{side}:1" for side in range(8, 15)): "has 7 sizes, .* at most 6",
    "16:40": "16:40 takes 40 steps, and max_steps is 40: raise max_steps above 40",
    "16:30,24:30": "takes 60 steps, and max_steps is 40",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_course_is_refused_in_one_line_with_the_remedy(text):
    with pytest.raises(UserError, match=BAD[text]):
        TrainConfig(resolutions=text, max_steps=40)


@pytest.mark.parametrize(
    ("text", "size", "words"),
    [
        ("20:5", (32, 32), "20:5, and images are 32x32 pixels: give one of 16, 24, 28, 30, 31"),
        ("64:5", (32, 32), "64:5, and images are 32x32 pixels: give one of 16"),
        ("16:5,32:9", (32, 32), "32:9, .* training ends at that size anyway"),
        ("4:5", (8, 8), "4:5, .* 8x8 pixels: networks need 8"),
        ("6:5", (12, 12), "6:5, .* 12x12 pixels: give one of 8, 9, 10, 11"),
        ("16:5", (32, 48), "16:5, .* 32x48 pixels: only square ones are reduced"),
    ],
)
def test_sizes_that_the_images_cannot_take_are_refused_with_those_that_they_can(text, size, words):
    check_sides(Resolutions.parse("16:5,24:5"), (32, 32))
    with pytest.raises(UserError, match=words):
        check_sides(Resolutions.parse(text), size)


@pytest.mark.parametrize("course", ["16:5", "7:5", "32:5", "8:30", "8:-1", "8"])
def test_the_command_line_ends_with_two_and_leaves_no_folder(course, tmp_path, capsys):
    given = ["--resolutions", course, "--max-steps", "20", "--out", str(tmp_path / "runs")]
    assert main(["train", "--quiet", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lion-fast: resolutions ")
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_chunks_end_where_a_size_does():
    agenda = Agenda(30, False, 0, 0, 0, Resolutions.parse(COURSE))
    enqueued, chunks = 0, []
    while enqueued < 30:
        chunks.append(agenda.steps_before_pause(enqueued, 4))
        enqueued += chunks[-1]
    assert chunks == [4, 3, 4, 4, 4, 4, 4, 3]


def test_the_window_begins_anew_at_another_size_and_counts_at_full_size_alone():
    course = Resolutions.parse("8:3,12:2")
    history = History(num_heads=1, batch_size=4, window=2, target=0.75, resolutions=course)
    recent = []
    for hits in (4, 4, 4, 0, 4, 2, 4, 3):
        history.extend(torch.tensor([[1.0, 1.0, float(hits)]]), 1.0)
        recent.append(history.recent_accuracy())
    assert recent == [1.0, 1.0, 1.0, 0.0, 0.5, 0.5, 0.75, 0.875]
    assert history.windowed == [None] * 6 + [0.75, 0.875]
    assert history.windowed_before == [None, 1.0, 1.0, None, 0.5] + [None] * 3
    assert history.target_record.step == 7


def test_every_step_has_the_images_of_its_size_and_the_set_up_has_seen_them_all(config, sides):
    summary = train(config)
    rehearsed, trained = sides[: -summary.steps], sides[-summary.steps :]
    assert trained == SIDES
    assert rehearsed == [8, 8, 12, 12, 16, 16]


def test_a_run_says_what_it_cost_and_counts_its_target_at_full_size(config):
    summary = train(replace(config, target_accuracy=0.05))
    windowed = [row["train_accuracy_windowed"] for row in table(summary.run)]
    assert windowed[: REDUCED + 2] == [""] * (REDUCED + 2) and all(windowed[REDUCED + 2 :])
    told = json.loads((summary.run / "summary.json").read_text())
    assert told["steps_to_target"] == REDUCED + 3
    assert told["cost_to_target"] == 7 / 4 + 4 * 9 / 16 + 3
    assert told["cost"] == 7 / 4 + 4 * 9 / 16 + 9
    plain = train(replace(config, resolutions="", max_steps=2))
    assert (plain.cost, plain.cost_to_target) == (2, None)


def test_running_statistics_and_counters_go_on_across_a_change(config):
    summary = train(config)
    state = load_checkpoint(summary.run)["training"]
    counters = [v for n, v in state["model"].items() if n.endswith("num_batches_tracked")]
    assert counters and all(counter == 20 for counter in counters)
    assert state["steps_done"] == 20


# In the first size, at its end, in the second, at its end, in the last.
@pytest.mark.parametrize("stopped_at", [3, 7, 9, 11, 15])
def test_a_run_resumed_at_any_step_equals_an_uninterrupted_one(config, stopped_at, sides):
    config = replace(config, crop_padding=2, optimizer="muon", gradient_ratio_every=5)
    whole = train(config)
    with pytest.raises(Interrupted):
        train(replace(config, log_every=stopped_at), console=Stops())
    (stopped,) = {*config.out.iterdir()} - {whole.run}
    assert len(table(stopped)) == stopped_at
    sides.clear()
    resumed = train(config, resume=stopped)
    ahead = list(dict.fromkeys(SIDES[stopped_at:]))
    assert sides == [side for side in ahead for _ in range(2)] + SIDES[stopped_at:]
    assert table(resumed.run) == table(whole.run)
    assert table(resumed.run, "probes.csv") == table(whole.run, "probes.csv")
    assert results(resumed.run) == results(whole.run)
    ours, theirs = (load_checkpoint(run.run)["training"] for run in (resumed, whole))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_resumed_run_keeps_its_course(config):
    part = train(config)
    with pytest.raises(UserError, match="resolutions 8:7,12:4 -> 8:6,12:4"):
        train(replace(config, resolutions="8:6,12:4", max_steps=30), resume=part.run)


@pytest.mark.parametrize("loader", ["workers", "dali"])
def test_every_loader_trains_the_same_run(config, loader):
    """DALI's runs of 5 steps hold steps of two sizes."""
    reference = train(replace(config, crop_padding=2))
    options = {"loader": loader, "num_workers": 1, "steps_per_run": 5}
    other = train(replace(config, crop_padding=2, **options))
    for ours, theirs in zip(table(reference.run), table(other.run), strict=True):
        if loader == "workers":
            assert ours == theirs
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-4)


def test_a_step_that_was_set_up_before_trains_a_course_anew(config):
    cache = StepCache()
    first = train(config, reuse=cache)
    again = train(replace(config, seed=7), reuse=cache)
    fresh = train(replace(config, seed=7))
    assert again.reused and not first.reused
    assert table(again.run) == table(fresh.run)
    assert not train(replace(config, seed=7, resolutions="8:7"), reuse=cache).reused


def test_virtual_shards_take_a_course_as_one_batch_does(config, sides):
    summary = train(replace(config, virtual_shards=2))
    assert sides[-20:] == SIDES
    assert table(summary.run) == table(train(replace(config, virtual_shards=2)).run)


def test_a_probe_sees_the_coming_step_at_its_size(config, monkeypatch):
    from lion_fast.training import loop

    seen, probe = {}, loop.probe_gradients

    def watched(model, batch, *args, step, **kwargs):
        seen[step] = batch.images.shape[-1]
        return probe(model, batch, *args, step=step, **kwargs)

    monkeypatch.setattr(loop, "probe_gradients", watched)
    train(replace(config, gradient_ratio_every=7))
    assert seen == {1: 8, 8: 12, 15: 16}


@pytest.mark.slow
def test_a_compiled_step_of_every_size_is_made_in_the_set_up(config, monkeypatch):
    from torch._dynamo.utils import counters

    from lion_fast.training.loop import Training

    made, set_up = [], Training.set_up

    def watched(self):
        before = counters["stats"]["unique_graphs"]
        set_up(self)
        made.append(counters["stats"]["unique_graphs"] - before)
        counters["stats"]["unique_graphs"] = 0

    monkeypatch.setattr(Training, "set_up", watched)
    compiled, eager = train(replace(config, engine="compile")), train(config)
    assert made[0] == 3 and counters["stats"]["unique_graphs"] == 0
    for ours, theirs in zip(table(eager.run), table(compiled.run), strict=True):
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-3)


def test_the_curve_marks_where_the_size_changes(config, monkeypatch):
    from lion_fast.training.folder import plots

    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    train(config)
    texts = {text.get_text(): text.xy[0] for text in drawn[0].axes[1].texts}
    assert (texts["12 px"], texts["full size"]) == (7, 11)


def test_a_report_has_cost_beside_steps_and_seconds_and_tests_it(tmp_path):
    study = replace(
        find_study("quickstart"),
        name="sizes",
        base=TrainConfig(max_steps=400, window=20, target_accuracy=0.95),
        variants=({"resolutions": ""}, {"resolutions": "8:40,12:20"}),
        baseline={"resolutions": ""},
        seeds=(1, 2, 3),
    )

    def result(config):
        steps = 100 + config.seed
        cost = Resolutions.parse(config.resolutions).cost(steps, 16)
        return {"steps_to_target": steps} | ({"cost_to_target": cost} if config.resolutions else {})

    fill(study, tmp_path, result)
    report_studies([read_study(study, tmp_path)], tmp_path / "report")
    text = (tmp_path / "report" / "studies.md").read_text()
    cost = 40 / 4 + 20 * 9 / 16
    assert "#### Computation to the target" in text and "less computation" in text
    assert f"{cost + 42:,.1f} ± 1.0" in text and "102.0 ± 1.0" in text
    assert f"at the cost of {cost + 42:,.1f}" in text
    values = json.loads((tmp_path / "report" / "studies.json").read_text())
    plain, sized = values["studies"]["sizes"]["cost_to_target"]
    assert plain["by_seed"]["1"] == 101 and sized["by_seed"]["1"] == cost + 41
    assert (tmp_path / "report" / "sizes_curves.png").exists()


def test_a_dry_run_says_which_sizes_the_built_in_images_cannot_take(tmp_path):
    path = tmp_path / "sizes.toml"
    path.write_text('title = "t"\n[base]\nmax_steps = 99\n[axes]\nresolutions = ["16:9", "8:9"]\n')
    found = [line for line in obstacle_lines(find_study(str(path))) if "pixels" in line]
    assert len(found) == 1 and "resolutions has 16:9, and images are 16x16 pixels" in found[0]


def test_a_report_of_one_size_has_no_table_of_cost(tmp_path):
    study = find_study("quickstart")
    fill(study, tmp_path, lambda config: {"steps_to_target": 80 + config.seed % 5})
    report_studies([read_study(study, tmp_path)], tmp_path / "report")
    assert "Computation to the target" not in (tmp_path / "report" / "studies.md").read_text()


def test_a_study_with_an_axis_of_courses_runs_and_says_what_they_cost(tmp_path):
    path = tmp_path / "sizes.toml"
    path.write_text(
        'title = "Smaller images first"\nseeds = [1]\n'
        '[base]\ndataset = "digits"\ngrowth_rate = 2\nblock_layers = 1\nbatch_size = 32\n'
        'max_steps = 14\nwindow = 2\ntarget_accuracy = 0.01\ndevice = "cpu"\n'
        '[axes]\nresolutions = ["", "8:4, 12:2"]\n[baseline]\nresolutions = ""\n'
    )
    study = find_study(str(path))
    run_study(study, tmp_path / "out")
    plain, sized = read_study(study, tmp_path / "out").runs
    assert (plain.config.resolutions, sized.config.resolutions) == ("", "8:4,12:2")
    steps = sized.summary["steps_to_target"]
    assert steps >= 8 and sized.summary["cost_to_target"] == 4 / 4 + 2 * 9 / 16 + steps - 6
    assert plain.summary["cost_to_target"] == plain.summary["steps_to_target"] < steps
