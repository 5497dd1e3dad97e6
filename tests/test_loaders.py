import contextlib
import multiprocessing
import os
import signal
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from lion_fast.data import make_loader, resident
from lion_fast.data.batches import BatchSpec
from lion_fast.data.images import ImageSet
from lion_fast.data.plan import BatchPlan
from lion_fast.data.resident import ResidentLoader
from lion_fast.data.workers import WorkersLoader
from lion_fast.errors import UserError
from lion_fast.kernels import augment_batch_ref, reduce_images

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
NUM_IMAGES, BATCH_SIZE, NUM_STEPS = 23, 4, 12  # 5 steps an epoch, 3 images left over
# Python 3.12 and later warn of every fork in a process with threads, which torch always has.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def make_set(num=NUM_IMAGES, size=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num, size, size, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(10, (num,), generator=generator)


def make(kind, *, plan=None, padding=0, num_steps=NUM_STEPS, device=DEVICE, **setting):
    plan = plan or BatchPlan(NUM_IMAGES, BATCH_SIZE, seed=7, crop_padding=padding)
    asked = dict(num_steps=num_steps, mean=MEAN, std=STD, device=device, dtype=torch.float32)
    options = (*asked, "channels_last", "reduces")
    asked |= {name: setting.pop(name) for name in options if name in setting}
    return kind(*make_set(), plan, BatchSpec(**asked), **setting)


def planned_batch(step, padding=0, dtype=torch.float32, channels_last=True):
    plan = BatchPlan(NUM_IMAGES, BATCH_SIZE, seed=7, crop_padding=padding)
    indices, flips, crops = (torch.from_numpy(array[0]) for array in plan.steps(step, step + 1))
    return augment_batch_ref(
        *make_set(), indices, flips, MEAN, STD,
        crops=crops, padding=padding, out_dtype=dtype, channels_last=channels_last,
    )  # fmt: skip


def assert_planned(batch, step, **setting):
    images, labels = planned_batch(step, **setting)
    assert torch.equal(batch.images.cpu(), images), f"images of step {step}"
    assert torch.equal(batch.labels.cpu(), labels), f"labels of step {step}"
    layout = torch.channels_last if setting.get("channels_last", True) else torch.contiguous_format
    assert batch.images.is_contiguous(memory_format=layout)
    assert batch.images.device.type == batch.labels.device.type == DEVICE.type


LOADERS = {
    "resident": (ResidentLoader, {"impl": "torch"}),
    "resident-triton": (ResidentLoader, {"impl": "triton"}),
    "workers-0": (WorkersLoader, {"num_workers": 0}),
    "workers-2": (WorkersLoader, {"num_workers": 2}),
}
loaders = pytest.mark.parametrize("kind, setting", LOADERS.values(), ids=LOADERS)


@loaders
@pytest.mark.parametrize(
    "padding, dtype, channels_last",
    [(0, torch.float32, True), (2, torch.float32, False), (2, torch.float16, True)],
)
def test_every_loader_delivers_the_plan_to_the_bit_over_two_epochs_and_after_seeking(
    kind, setting, padding, dtype, channels_last
):
    if kind is ResidentLoader and setting["impl"] == "torch" and CUDA:
        pytest.skip("stock torch on a GPU divides by a reciprocal: see test_augment")
    with closing(
        make(kind, padding=padding, dtype=dtype, channels_last=channels_last, **setting)
    ) as loader:
        expected = dict(padding=padding, dtype=dtype, channels_last=channels_last)
        for step in range(10):
            assert_planned(loader.next(), step, **expected)
        for start in 7, 3, 3, 11:
            loader.seek(start)
            for step in range(start, min(start + 3, NUM_STEPS)):
                assert_planned(loader.next(), step, **expected)


@loaders
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_loader_reduces_to_the_bit_and_may_change_size_at_any_step(kind, setting, dtype):
    sides = [4, 4, 6, 6, None, None, 4, None]
    with closing(make(kind, padding=2, dtype=dtype, reduces=True, **setting)) as loader:
        for step, side in enumerate(sides):
            batch = loader.next(side)
            whole, labels = planned_batch(step, padding=2)
            expected = (reduce_images(whole, side) if side else whole).to(dtype)
            assert torch.equal(batch.images.cpu(), expected) and batch.images.dtype == dtype
            assert torch.equal(batch.labels.cpu(), labels)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
        loader.seek(1)
        images = torch.full((2, BATCH_SIZE, 3, 6, 6), torch.nan, device=DEVICE)
        loader.next_into(images, torch.empty(2, BATCH_SIZE, dtype=torch.int64), 6)
        for step in 1, 2:
            expected = reduce_images(planned_batch(step, padding=2)[0], 6).to(dtype).float()
            assert torch.equal(images[step - 1].cpu(), expected)


@loaders
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_deliver_the_batches_of_one_process(kind, setting, world_size):
    plan = BatchPlan(NUM_IMAGES, BATCH_SIZE, seed=7, crop_padding=2)
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(
                closing(make(kind, plan=replace(plan, rank=r, world_size=world_size), **setting))
            )
            for r in range(world_size)
        ]
        for step in range(7):
            parts = [loader.next() for loader in ranks]
            assert {len(part.labels) for part in parts} == {BATCH_SIZE // world_size}
            images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
            expected_images, expected_labels = planned_batch(step, padding=2)
            assert (images.cpu() - expected_images).abs().max() <= 1e-6
            assert torch.equal(labels.cpu(), expected_labels)


@loaders
def test_next_into_fills_slots_with_consecutive_steps(kind, setting):
    with closing(make(kind, **setting)) as loader:
        loader.seek(2)
        images = torch.full((3, BATCH_SIZE, 3, 8, 8), torch.nan, device=DEVICE)
        labels = torch.full((3, BATCH_SIZE), -7, device=DEVICE)
        loader.next_into(images, labels)
        for slot in range(3):
            expected_images, expected_labels = planned_batch(2 + slot)
            assert (images[slot].cpu() - expected_images).abs().max() <= 1e-6
            assert torch.equal(labels[slot].cpu(), expected_labels)


@pytest.mark.parametrize("name, kind", [("resident", ResidentLoader), ("workers", WorkersLoader)])
def test_make_loader_executes_the_plan_on_the_training_images(name, kind):
    names = tuple(map(str, range(10)))
    images, labels = make_set()
    image_set = ImageSet("made", images, labels, images[:2], labels[:2], names, MEAN, STD)
    plan = BatchPlan(NUM_IMAGES, BATCH_SIZE, seed=7)
    spec = BatchSpec.of(image_set, num_steps=3, device=DEVICE, dtype=torch.float32)
    with closing(make_loader(name, image_set, plan, spec, num_workers=1)) as loader:
        assert type(loader) is kind and loader.name == name and loader.plan is plan
        assert loader.spec is spec and (spec.mean, spec.std) == (MEAN, STD)
        assert loader.walks_on_device == (name == "resident")
        assert_planned(loader.next(), 0)
    with pytest.raises(ValueError, match="loader is 'auto': take one of resident, dali, workers"):
        make_loader("auto", image_set, plan, spec)


@loaders
def test_steps_that_were_not_planned_are_refused(kind, setting):
    with closing(make(kind, num_steps=2, **setting)) as loader:
        for step in -1, 3:
            with pytest.raises(ValueError, match=rf"seek\({step}\): the loader holds 2 steps"):
                loader.seek(step)
        loader.seek(2)
        if loader.walks_on_device and (CUDA or setting["impl"] == "triton"):
            assert loader.next().labels.tolist() == [-1] * BATCH_SIZE
        else:
            with pytest.raises(ValueError, match="step"):
                loader.next()


def test_resident_refuses_a_plan_that_is_too_large_to_hold(monkeypatch):
    monkeypatch.setattr(resident, "MAX_PLANNED_IMAGES", NUM_STEPS * BATCH_SIZE)
    make(ResidentLoader)
    with pytest.raises(UserError, match="max_steps 13 x batch_size 4"):
        make(ResidentLoader, num_steps=13)


@pytest.mark.parametrize("padding", [0, 2])
def test_resident_states_and_releases_the_bytes_it_holds(padding):
    loader = make(ResidentLoader, padding=padding)
    data = NUM_IMAGES * (8 * 8 * 3 + 8)
    plan = NUM_STEPS * BATCH_SIZE * (4 + 1 + (2 * 4 if padding else 0))
    assert sum(loader.memory_bytes()) == data + plan + 8
    assert loader.memory_bytes()[0 if CUDA else 1] == 0
    loader.close()
    assert sum(loader.memory_bytes()) == 8


def test_seek_keeps_every_address_that_a_captured_graph_would_read():
    loader = make(ResidentLoader, padding=2)

    def addresses():
        tensors = [value for value in vars(loader).values() if isinstance(value, torch.Tensor)]
        assert len(tensors) == 6
        return [tensor.data_ptr() for tensor in tensors]

    before = addresses()
    loader.next()
    loader.seek(5)
    loader.next()
    assert addresses() == before


@pytest.mark.parametrize("num_workers", [0, 1])
def test_workers_leave_the_global_random_generator_alone(num_workers):
    before = torch.get_rng_state()
    with closing(make(WorkersLoader, num_workers=num_workers)) as loader:
        loader.next()
        loader.seek(1)
        loader.next()
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_outlive_seek_and_end_with_close():
    with closing(make(WorkersLoader, num_workers=2)) as loader:
        children = set(multiprocessing.active_children())
        assert len(children) == 2
        loader.next()
        loader.seek(3)
        assert set(multiprocessing.active_children()) == children
    assert not any(child.is_alive() for child in children)
    with pytest.raises(ValueError, match="no step is left"):
        loader.next()


def test_what_a_worker_raises_is_raised_once_and_close_still_ends_the_workers():
    with closing(make(WorkersLoader, num_workers=2, mean=(0.5, 0.5), std=(1.0, 1.0))) as loader:
        children = multiprocessing.active_children()
        with pytest.raises(RuntimeError, match=r"in DataLoader worker process 0(?s:.*)normalize"):
            loader.next()
    assert not any(child.is_alive() for child in children)


# torch raises out of a signal handler, even within a finaliser.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_worker_ends_the_run_instead_of_hanging_it():
    with closing(make(WorkersLoader, num_workers=1, num_steps=10_000)) as loader:
        loader.next()
        (worker,) = multiprocessing.active_children()
        with pytest.raises(RuntimeError, match="worker.*(exited unexpectedly|killed|died)"):
            os.kill(worker.pid, signal.SIGKILL)  # torch's signal handler may raise at once
            for _ in range(10_000):
                loader.next()


def test_workers_measure_how_long_next_waited():
    with closing(make(WorkersLoader, num_workers=0)) as loader:
        assert loader.data_wait_seconds == 0
        started = time.perf_counter()
        for _ in range(5):
            loader.next()
        assert 0 < loader.data_wait_seconds <= time.perf_counter() - started


def test_workers_state_the_set_and_what_may_be_prefetched():
    batch = BATCH_SIZE * (4 * 8 * 8 * 3 + 8)
    for num_workers in 0, 1:
        with closing(make(WorkersLoader, num_workers=num_workers)) as loader:
            expected = NUM_IMAGES * (8 * 8 * 3 + 8) + 2 * num_workers * batch
            assert loader.memory_bytes() == (expected, 0)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU: captures a graph")
def test_a_captured_next_walks_the_plan_and_follows_seek():
    loader = make(ResidentLoader, padding=2, impl="triton")
    loader.next()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batches = [loader.next() for _ in range(3)]
    for start in 0, 6, 2:
        loader.seek(start)
        for step in range(start, start + 6, 3):
            graph.replay()
            for slot, batch in enumerate(batches):
                assert_planned(batch, step + slot, padding=2)


def test_the_plan_is_uploaded_whole_whatever_the_epoch_boundaries():
    plan = BatchPlan(NUM_IMAGES, BATCH_SIZE, seed=7, crop_padding=2)
    planned = plan.steps(0, NUM_STEPS)
    loader = make(ResidentLoader, plan=plan)
    held = (loader._indices, loader._flips, loader._crops)
    for ours, expected in zip(held, planned, strict=True):
        assert np.array_equal(ours.cpu().numpy(), expected)
