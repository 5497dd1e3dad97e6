"""Every engine, precision, network and loader that the stand-in can run, two by two."""

import itertools

import pytest
from stand_in import needs_stand_in, outcomes

pytestmark = needs_stand_in

# Of images of 16 pixels; the second size begins, and ends, between all other pauses.
COURSE, CHANGES = 'resolutions="8:7,12:9"', (7, 16)
RUNS = {
    "H100": (
        "eager/fp32/resnet_ds/workers",
        'compile/tf32/resnet_ds/resident/placement="residual"',
        'graph/bf16/densenet_ds/workers/impl="torch"/optimizer="muon"'
        '/schedule="linear"/lr_warmup_steps=9',
        f"graph-eager/bf16/densenet_ds/resident/crop_padding=2/{COURSE}",
        'graph/bf16/densenet_ds/resident/backbone="fused"/growth_rate=8/block_layers=2',
        'graph-eager/fp16/resnet_ds/resident/optimizer="sgd"/schedule="linear"/lr_warmup_steps=9',
        # Images of 8 and 12 pixels train by the modules, for which the fused backbone has no plan.
        'graph-eager/bf16/densenet_ds/resident/backbone="fused"/growth_rate=8/block_layers=2'
        f"/{COURSE}",
    ),
    "A100": (
        'eager/tf32/densenet_ds/resident/impl="torch"',
        "eager/bf16/resnet_ds/resident",
        "compile/bf16/densenet_ds/workers",
        "compile/fp16/densenet_ds/workers",
        'graph/tf32/densenet_ds/workers/impl="torch"',
        "graph/fp32/densenet_ds/resident/steps_per_replay=3",
        f'graph-eager/tf32/densenet_ds/workers/impl="torch"/{COURSE}',
    ),
    "V100": (
        "eager/fp16/densenet_ds/workers",
        "compile/fp32/densenet_ds/resident",
        'graph/fp16/resnet_ds/resident/optimizer="muon"',
        "graph-eager/fp32/resnet_ds/workers/steps_per_replay=1",
    ),
}
AXES = (
    ("H100", "A100", "V100"),
    ("eager", "compile", "graph", "graph-eager"),
    ("fp32", "tf32", "bf16", "fp16"),
    ("densenet_ds", "resnet_ds"),
    # DALI links its own CUDA runtime statically, so the stand-in cannot take that one's place.
    ("resident", "workers"),
)
V100_LACKS = {("V100", "tf32"), ("V100", "bf16")}
MAX_STEPS, RESUMED_STEPS = 40, 51
# Where a run pauses: validation every 18 steps, checkpoint every 20, probe every 13, and the end.
PAUSES = (0, 13, 18, 20, 26, 36, 39, 40)
RESUMED_PAUSES = (40, 51)


def test_every_pair_of_settings_is_run():
    rows = [(card, *run.split("/")[:4]) for card, runs in RUNS.items() for run in runs]
    for a, b in itertools.combinations(range(len(AXES)), 2):
        wanted = set(itertools.product(AXES[a], AXES[b])) - V100_LACKS
        assert wanted <= {(row[a], row[b]) for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("card", "runs"),
    [
        # Eager, a compiled graph of PyTorch's operators, and one of ours.
        pytest.param("H100", RUNS["H100"][::2], id="some"),
        *(pytest.param(*each, marks=pytest.mark.exhaustive, id=each[0]) for each in RUNS.items()),
    ],
)
def test_doctor_knows_the_card_and_runs_train_validate_probe_checkpoint_and_resume(
    card, runs, tmp_path, kernel_cache
):
    found = outcomes("stand_in_runs.py", card, tmp_path, "doctor", *runs, cache=kernel_cache)
    check_doctor(card, "\n".join(found["doctor"]["result"]))
    for run in runs:
        assert "result" in found[run], (run, found[run])
        check_run(run, found[run]["result"])


@pytest.mark.slow
def test_a_run_on_the_second_gpu_makes_it_the_current_one(tmp_path, kernel_cache):
    run = "graph-eager/fp32/densenet_ds/resident"
    env = {"STAND_IN_DEVICES": "2", "RUN_DEVICE": "cuda:1"}
    found = outcomes("stand_in_runs.py", "H100", tmp_path, run, cache=kernel_cache, env=env)
    assert "result" in found[run], found[run]
    check_run(run, found[run]["result"])
    assert found[run]["result"]["devices"] == [1]


def check_doctor(card, report):
    assert f"stand-in {card}" in report
    assert f"precision  {'fp16' if card == 'V100' else 'bf16'}" in report
    assert "engine     graph" in report
    assert "\nmps  " in report


def check_run(run, result):
    engine, precision, _, loader, *options = run.split("/")
    assert result["steps"] == [MAX_STEPS, RESUMED_STEPS] and result["summary"] == RESUMED_STEPS
    assert result["metrics"] == list(range(1, RESUMED_STEPS + 1))
    assert {"checkpoint.pt", "metrics.csv", "probes.csv", "validation.csv"} <= set(result["files"])
    assert result["resolved"]["precision"] == precision
    assert result["resolved"]["loader"] == loader
    assert result["waits"] == [], run
    assert len(result["first"]["ours"]) == (0 if 'impl="torch"' in options else 4), run
    if engine.startswith("graph"):
        check_graphs(result, chunk_of(options), CHANGES if COURSE in options else ())
    else:
        assert result["first"]["captures"] == []


def chunk_of(options):
    given = dict(option.split("=") for option in options)
    return int(given.get("steps_per_replay", 8))


def check_graphs(result, chunk, changes):
    """One graph of a chunk and one of a step a size; every span between pauses is of one size.

    It is chunks and a rest.
    """
    lengths = sorted({chunk, 1}, reverse=True)
    for part, pauses in (("first", PAUSES), ("resumed", RESUMED_PAUSES)):
        captures = result[part]["captures"]
        ahead = [change for change in changes if change > pauses[0]]
        ones = captures[len(lengths) - 1 :: len(lengths)]
        assert len(ones) == len(ahead) + 1
        assert captures == [length * one for one in ones for length in lengths]
        wanted = []
        for start, end in itertools.pairwise(sorted({*pauses, *ahead})):
            one = ones[sum(change <= start for change in ahead)]
            chunks, rest = divmod(end - start, chunk)
            wanted += [chunk * one] * chunks + [one] * rest
        assert result[part]["replays"] == wanted
