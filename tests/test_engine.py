"""How steps are executed must not change what they compute."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from gpu_waits import waits_refused
from run_results import table

from lion_fast.config import TrainConfig
from lion_fast.training import loop, stages, train
from lion_fast.training.step.engine import StepEngine

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA GPU: CUDA graphs and tensor cores",
)


needs_dali = pytest.mark.skipif(
    importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None,
    reason="needs NVIDIA DALI: pip install 'lion-fast[dali]'",
)


@pytest.fixture
def config(tmp_path, stripes):
    return TrainConfig(
        dataset=str(stripes),
        growth_rate=4,
        block_layers=1,
        batch_size=32,
        max_steps=22,
        window=5,
        target_accuracy=0.6,
        checkpoint_every=9,
        out=tmp_path / "runs",
    )


def losses(summary):
    return torch.tensor([float(row["loss"]) for row in table(summary.run)])


def test_steps_run_in_chunks_are_the_same_steps(config, monkeypatch):
    config = replace(config, device="cpu")
    reference = train(config)

    def chunked(step, loader, row_width, config, resolved):
        return StepEngine(step, loader, torch.zeros(4, row_width))

    monkeypatch.setattr(stages, "make_engine", chunked)
    assert table(train(config).run) == table(reference.run)


def test_reading_the_meter_late_changes_nothing_but_where_a_run_stops(config, monkeypatch):
    config = replace(config, device="cpu")
    reference = train(config)
    monkeypatch.setattr(loop, "_lag", lambda device: 2)
    assert table(train(config).run) == table(reference.run)

    # A checkpoint drains the meter, so a crossing just before one would not be read late.
    summary = train(replace(config, stop_at_target=True, checkpoint_every=0))
    assert summary.steps_to_target == reference.steps_to_target
    assert summary.steps == summary.steps_to_target + 2


@needs_gpu
@pytest.mark.parametrize("loader", ["resident", "workers", pytest.param("dali", marks=needs_dali)])
@pytest.mark.parametrize("graph_compile", [False, True])
@pytest.mark.parametrize("steps_per_replay", [1, 8])
def test_a_captured_graph_repeats_the_eager_steps(config, loader, graph_compile, steps_per_replay):
    """22 steps with checkpoints every 9: full replays and single-step remainders alternate."""
    config = replace(config, device="cuda", precision="fp32", num_workers=1, impl="torch")
    eager = train(replace(config, engine="eager"))
    graph = train(
        replace(
            config,
            engine="graph",
            loader=loader,
            graph_compile=graph_compile,
            steps_per_replay=steps_per_replay,
        )
    )
    torch.testing.assert_close(losses(graph), losses(eager), rtol=2e-3, atol=2e-3)


@needs_gpu
@pytest.mark.parametrize("engine", ["eager", "compile", "graph"])
def test_the_fused_kernels_train_the_same_run_in_every_engine(config, engine):
    config = replace(config, device="cuda", precision="fp32", engine=engine)
    ours, theirs = train(config), train(replace(config, impl="torch"))
    torch.testing.assert_close(losses(ours), losses(theirs), rtol=2e-3, atol=2e-3)


@needs_gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_lower_precision_learns(config, engine, precision):
    if precision != "fp16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip(f"{precision} needs compute capability 8.0")
    summary = train(replace(config, device="cuda", engine=engine, precision=precision))
    assert summary.steps_to_target is not None
    assert losses(summary).isfinite().all()


@needs_gpu
def test_a_graph_run_resumes_where_it_stopped(config):
    config = replace(config, device="cuda", engine="graph", precision="fp32")
    whole = train(config)
    part = train(replace(config, max_steps=13))
    resumed = train(config, resume=part.run)
    torch.testing.assert_close(losses(resumed), losses(whole), rtol=2e-3, atol=2e-3)


@needs_gpu
def test_the_hot_loop_never_waits_for_the_device(config):
    """Between pauses, issuing steps must not synchronise; the meter is read by events alone."""
    config = replace(config, device="cuda", engine="eager", checkpoint_every=0)
    issue = StepEngine.run

    def watched(self, num_steps):
        with waits_refused():
            return issue(self, num_steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepEngine, "run", watched)
        train(config)


@pytest.fixture
def cifar(data_dir, tmp_path):
    if data_dir is None:
        pytest.skip("needs real CIFAR-10: pass --data-dir")
    return TrainConfig(dataset="cifar10", data_dir=data_dir, init="he", out=tmp_path / "runs")


@pytest.mark.slow
def test_the_compiled_engine_learns_cifar10_like_the_eager_one(cifar):
    config = replace(cifar, max_steps=60, window=30, checkpoint_every=0)
    eager = train(replace(config, engine="eager"))
    compiled = train(replace(config, engine="compile"))
    assert compiled.train_accuracy == pytest.approx(eager.train_accuracy, abs=0.03)


@needs_dali
@needs_gpu
@pytest.mark.slow
def test_no_faster_setting_moves_the_crossing_out_of_the_seeds_spread(cifar):
    """Steps to 70 % of each engine and precision, against the spread of fp32 over seeds."""
    config = replace(cifar, stop_at_target=True, max_steps=2500, checkpoint_every=0)
    seeds = [
        train(replace(config, engine="graph", precision="fp32", impl="torch", seed=seed))
        for seed in (42, 123, 456, 7, 8)
    ]
    steps = torch.tensor([float(summary.steps_to_target) for summary in seeds])
    slack = 3 * steps.std()
    for change in (
        {"engine": "graph", "precision": "auto"},
        {"engine": "graph", "precision": "fp16"},
        {"engine": "compile", "precision": "auto"},
        {"engine": "graph", "precision": "auto", "loader": "dali"},
    ):
        summary = train(replace(config, **change))
        assert abs(summary.steps_to_target - steps.mean()) <= slack, change
