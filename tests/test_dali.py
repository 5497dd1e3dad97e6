"""DaliLoader against ResidentLoader, on CPU pipelines unless a GPU is at hand."""

import gc
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI: pip install 'lion-fast[dali]'")

from lion_fast.data import dali
from lion_fast.data.batches import BatchSpec
from lion_fast.data.dali import DaliLoader, dali_status
from lion_fast.data.plan import BatchPlan
from lion_fast.data.resident import ResidentLoader
from lion_fast.errors import UserError

NUM_IMAGES, HEIGHT, WIDTH = 53, 12, 9
CPU = torch.device("cpu")
STATISTICS = {"mean": (0.49, 0.48, 0.44), "std": (0.25, 0.24, 0.26)}


def make_set(num_images=NUM_IMAGES):
    generator = torch.Generator().manual_seed(0)
    shape = (num_images, HEIGHT, WIDTH, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return images, torch.randint(10, (num_images,), generator=generator)


IMAGES, LABELS = make_set()


@pytest.fixture
def make_loader():
    """Makes loaders of the module's set and closes them."""
    loaders = []

    def make(plan, loader_class=DaliLoader, **settings):
        asked = {"num_steps": 1000, "device": CPU, "dtype": torch.float32, **STATISTICS}
        options = (*asked, "channels_last", "reduces")
        asked |= {name: settings.pop(name) for name in options if name in settings}
        images = settings.pop("images", IMAGES)
        loaders.append(loader_class(images, LABELS, plan, BatchSpec(**asked), **settings))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def assert_same_batch(batch, expected, tolerance=1e-6):
    torch.testing.assert_close(batch.images, expected.images, rtol=0, atol=tolerance)
    assert batch.images.stride() == expected.images.stride()
    assert torch.equal(batch.labels, expected.labels)


@pytest.mark.parametrize("steps_per_run", [1, 3, 16])
@pytest.mark.parametrize("crop_padding", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 8, NUM_IMAGES])
def test_every_batch_of_two_epochs_is_the_resident_loaders(
    make_loader, batch_size, crop_padding, steps_per_run
):
    plan = BatchPlan(NUM_IMAGES, batch_size, seed=3, crop_padding=crop_padding)
    loader = make_loader(plan, steps_per_run=steps_per_run)
    resident = make_loader(plan, ResidentLoader)
    for _ in range(2 * plan.steps_per_epoch):
        assert_same_batch(loader.next(), resident.next())


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_layout_and_dtype_is_the_resident_loaders(make_loader, dtype, channels_last):
    plan = BatchPlan(NUM_IMAGES, 8, seed=4)
    settings = {"dtype": dtype, "channels_last": channels_last}
    loader = make_loader(plan, steps_per_run=2, **settings)
    resident = make_loader(plan, ResidentLoader, **settings)
    # Values stay below 4, where neighbouring numbers are at most 2 * eps apart.
    tolerance = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for _ in range(5):
        batch = loader.next()
        assert batch.images.dtype == dtype
        assert_same_batch(batch, resident.next(), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_run_that_holds_steps_of_several_sizes_reduces_each_as_the_resident_loader(
    make_loader, dtype
):
    plan = BatchPlan(NUM_IMAGES, 8, seed=4, crop_padding=2)
    settings = {"dtype": dtype, "reduces": True, "images": IMAGES[:, :8, :8].contiguous()}
    loader = make_loader(plan, steps_per_run=4, **settings)
    resident = make_loader(plan, ResidentLoader, **settings)
    tolerance = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for side in (4, 4, 6, None, 4, 6, 6):
        batch = loader.next(side)
        assert batch.images.dtype == dtype and batch.images.shape[-1] == (side or 8)
        expected = resident.next(side)
        assert_same_batch(batch, expected, tolerance)
        # Of images that were rounded before they are reduced, a third would differ.
        assert (batch.images != expected.images).float().mean() < 0.02 or dtype == torch.float32
    slots = torch.zeros(3, 8, 3, 4, 4, dtype=dtype)
    labels = torch.zeros(3, 8, dtype=torch.int64)
    loader.next_into(slots, labels, 4)  # over the end of a run
    for slot in range(3):
        expected = resident.next(4)
        assert (slots[slot] - expected.images).abs().max() <= tolerance
        assert torch.equal(labels[slot], expected.labels)


@pytest.mark.parametrize("step", [2, 4, 5, 6, 9, 13])
def test_a_run_resumed_anywhere_equals_an_uninterrupted_one(make_loader, step):
    plan = BatchPlan(NUM_IMAGES, 8, seed=5)  # 6 steps an epoch, 4 a run
    resumed, resident = make_loader(plan, steps_per_run=4), make_loader(plan, ResidentLoader)
    resumed.seek(step)
    resident.seek(step)
    for _ in range(9):
        assert_same_batch(resumed.next(), resident.next())


def test_seeking_back_and_forth_never_delivers_a_prefetched_run_of_another_step(make_loader):
    plan = BatchPlan(NUM_IMAGES, 8, seed=6)
    loader, resident = make_loader(plan, steps_per_run=3), make_loader(plan, ResidentLoader)
    for step in (0, 7, 3, 3, 6, 1, 12, 9):
        loader.seek(step)
        resident.seek(step)
        for _ in range(4):
            assert_same_batch(loader.next(), resident.next())


def test_seeking_inside_the_run_being_read_discards_nothing(make_loader, monkeypatch):
    plan = BatchPlan(NUM_IMAGES, 8, seed=6)
    loader, resident = make_loader(plan, steps_per_run=4), make_loader(plan, ResidentLoader)
    loader.next()
    starts = []
    gather = loader._source.gather

    def watched(indices):
        starts.append(loader._source.start)
        return gather(indices)

    monkeypatch.setattr(loader._source, "gather", watched)
    for step in (0, 3, 1, 4):
        loader.seek(step)
        resident.seek(step)
        assert_same_batch(loader.next(), resident.next())
    assert starts == [8]  # the runs at 0 and 4 were there


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps_per_copy", [1, 3, 4, 9])
def test_next_into_copies_whole_runs_and_parts_of_them(
    make_loader, steps_per_copy, dtype, channels_last
):
    plan = BatchPlan(NUM_IMAGES, 8, seed=7)
    loader = make_loader(plan, steps_per_run=4, dtype=dtype, channels_last=channels_last)
    single = make_loader(plan, steps_per_run=4, dtype=dtype, channels_last=channels_last)
    images = torch.empty(steps_per_copy * 8, 3, HEIGHT, WIDTH, dtype=dtype)
    images = images.to(memory_format=single.spec.memory_format).unflatten(0, (-1, 8))
    labels = torch.empty(steps_per_copy, 8, dtype=torch.int64)
    for _ in range(3):
        loader.next_into(images, labels)
        for step in range(steps_per_copy):
            batch = single.next()
            assert torch.equal(images[step], batch.images)
            assert torch.equal(labels[step], batch.labels)


def test_a_batch_outlives_the_runs_prefetched_behind_it(make_loader):
    loader = make_loader(BatchPlan(NUM_IMAGES, 8, seed=8), steps_per_run=2, prefetch=3)
    for _ in range(8):
        batch = loader.next()
        images, labels = batch.images.clone(), batch.labels.clone()
        time.sleep(0.02)
        assert torch.equal(batch.images, images) and torch.equal(batch.labels, labels)


def test_a_training_shorter_than_a_run_prepares_no_more_than_itself(make_loader):
    plan = BatchPlan(NUM_IMAGES, 8, seed=9)
    loader = make_loader(plan, num_steps=2, steps_per_run=16)
    resident = make_loader(plan, ResidentLoader)
    for _ in range(2):
        assert_same_batch(loader.next(), resident.next())
    fitting = make_loader(plan, steps_per_run=2)
    fitting.next()
    assert loader.memory_bytes() == fitting.memory_bytes()


@pytest.mark.parametrize("steps_per_run", [1, 2])
def test_memory_is_the_set_the_gathered_run_and_the_runs_in_flight(make_loader, steps_per_run):
    plan = BatchPlan(NUM_IMAGES, 8, seed=9)
    loader = make_loader(plan, steps_per_run=steps_per_run, prefetch=3)
    loader.next()
    raw = steps_per_run * 8 * HEIGHT * WIDTH * 3
    ready = raw * 4 + steps_per_run * 8 * 8
    set_bytes = IMAGES.nbytes + LABELS.nbytes
    assert loader.memory_bytes() == (set_bytes + raw + 3 * (raw + ready), 0)


def test_waiting_for_a_slow_source_is_counted(make_loader, monkeypatch):
    loader = make_loader(BatchPlan(NUM_IMAGES, 8, seed=10), steps_per_run=2)
    gather = loader._source.gather

    def slow_gather(indices):
        time.sleep(0.05)
        return gather(indices)

    monkeypatch.setattr(loader._source, "gather", slow_gather)
    started = time.perf_counter()
    for _ in range(6):
        loader.next()
    assert 0 < loader.data_wait_seconds <= time.perf_counter() - started


def test_an_error_in_the_source_surfaces_as_itself_each_time(make_loader, monkeypatch):
    loader = make_loader(BatchPlan(NUM_IMAGES, 8, seed=11), steps_per_run=1, prefetch=2)
    loader.next()

    def broken(indices):
        raise OSError("the disk is gone")

    monkeypatch.setattr(loader._source, "gather", broken)
    for _ in range(3):
        with pytest.raises(OSError, match="the disk is gone"):
            loader.next()


def num_threads():
    gc.collect()
    return len(os.listdir("/proc/self/task"))


def test_closing_ends_every_thread_and_twice_is_harmless(make_loader):
    before = num_threads()
    loaders = [make_loader(BatchPlan(NUM_IMAGES, 8, seed=s), num_threads=3) for s in range(3)]
    for loader in loaders:
        loader.next()
    assert num_threads() > before
    for loader in loaders:
        loader.close()
        loader.close()
    assert num_threads() == before


def resident_set_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_fifty_epochs_leave_the_process_no_larger():
    images, labels = make_set(2048)
    plan = BatchPlan(2048, 64, seed=12, crop_padding=1)
    spec = BatchSpec(num_steps=10**6, device=CPU, dtype=torch.float32, **STATISTICS)
    loader = DaliLoader(images, labels, plan, spec)
    sizes = []
    for _ in range(50):
        for _ in range(plan.steps_per_epoch):
            loader.next()
        sizes.append(resident_set_bytes())
    loader.close()
    assert max(sizes[1:]) - sizes[0] < 20e6


@pytest.mark.parametrize("steps_per_run", [1, 4])
def test_ranks_together_deliver_the_batches_of_one_process(make_loader, steps_per_run):
    plan = BatchPlan(NUM_IMAGES, 8, seed=13, crop_padding=1)
    whole = make_loader(plan, ResidentLoader)
    ranks = [
        make_loader(replace(plan, rank=rank, world_size=2), steps_per_run=steps_per_run)
        for rank in range(2)
    ]
    for _ in range(2 * plan.steps_per_epoch):
        parts = zip(*(loader.next() for loader in ranks), strict=True)
        images, labels = (torch.cat(part) for part in parts)
        batch = whole.next()
        torch.testing.assert_close(images, batch.images, rtol=0, atol=1e-6)
        assert torch.equal(labels, batch.labels)


def test_a_dtype_that_no_step_takes_is_refused(make_loader):
    with pytest.raises(ValueError, match="float64"):
        make_loader(BatchPlan(NUM_IMAGES, 8, seed=0), dtype=torch.float64)


@pytest.fixture
def machine(monkeypatch):
    """Pretends another machine: installed wheels, torch's CUDA, the driver's, the GPU."""

    def pretend(wheels=("nvidia-dali-cuda130",), torch_cuda=None, driver_cuda=0, capability=None):
        def version(name):
            if name not in wheels:
                raise dali.metadata.PackageNotFoundError(name)
            return "2.4.0"

        monkeypatch.setattr(dali.metadata, "version", version)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(
            torch._C, "_cuda_getDriverVersion", lambda: 1000 * driver_cuda, raising=False
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return pretend


CU13, CU12 = "nvidia-dali-cuda130", "nvidia-dali-cuda120"


@pytest.mark.parametrize(
    ("setting", "device", "remedy"),
    [
        ({"wheels": ()}, "cpu", r"not installed: pip install 'lion-fast\[dali\]'"),
        ({"wheels": (), "torch_cuda": "12.6"}, "cpu", r"pip install 'lion-fast\[dali-cu12\]'"),
        (
            {"wheels": (CU13,), "torch_cuda": "12.6", "driver_cuda": 13, "capability": (8, 0)},
            "cuda",
            r"CUDA 13 but torch for CUDA 12: .*pip install 'lion-fast\[dali-cu12\]'",
        ),
        (
            {"wheels": (CU12,), "torch_cuda": "13.0", "driver_cuda": 13, "capability": (9, 0)},
            "cuda",
            r"CUDA 12 but torch for CUDA 13: .*pip install 'lion-fast\[dali\]'",
        ),
        (
            {"wheels": (CU13,), "torch_cuda": "12.6", "driver_cuda": 12, "capability": (8, 0)},
            "cuda",
            r"driver is too old: it supports CUDA 12 .*pip install 'lion-fast\[dali-cu12\]'",
        ),
        (
            {"wheels": (CU13,), "torch_cuda": "13.0", "driver_cuda": 13, "capability": (7, 0)},
            "cuda",
            r"no code for compute capability 7.0: .*pip install 'lion-fast\[dali-cu12\]'",
        ),
        ({"torch_cuda": "13.0", "driver_cuda": 13}, "cuda", "torch finds no CUDA GPU"),
    ],
)
def test_what_stands_in_the_way_is_one_line_that_names_the_package(
    machine, setting, device, remedy
):
    machine(**setting)
    with pytest.raises(UserError, match=remedy) as caught:
        dali.require_dali(torch.device(device))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wheel", "torch_cuda", "capability"),
    [(CU13, "13.0", (7, 5)), (CU13, "13.2", (9, 0)), (CU12, "12.6", (7, 0))],
)
def test_a_matching_wheel_is_usable_on_the_gpu(machine, wheel, torch_cuda, capability):
    machine((wheel,), torch_cuda, driver_cuda=13, capability=capability)
    assert dali_status() == ("2.4.0", torch_cuda[:2], "gpu", f"{wheel} 2.4.0")


def test_a_wheel_that_cannot_be_imported_is_named(machine, monkeypatch):
    machine((CU12,))
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=f"{CU12} 2.4.0 cannot be imported .*--force-reinstall"):
        dali.require_dali(CPU)


def test_asking_for_the_status_does_not_import_dali():
    code = (
        "import sys; from lion_fast.data.dali import dali_status\n"
        "print(dali_status().usable_on, 'nvidia.dali' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False" and done.stdout.split()[0] in ("cpu", "gpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: runs a GPU pipeline")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("crop_padding", [0, 2])
def test_gpu_pipelines_deliver_the_resident_batches_on_any_stream(make_loader, dtype, crop_padding):
    plan = BatchPlan(NUM_IMAGES, 8, seed=13, crop_padding=crop_padding)
    device = torch.device("cuda", 0)
    loader = make_loader(plan, device=device, dtype=dtype, steps_per_run=3)
    resident = make_loader(plan, ResidentLoader, device=device, dtype=dtype, impl="torch")
    side = torch.cuda.Stream()
    tolerance = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for step in range(4 * plan.steps_per_epoch):
        stream = side if step % 5 in (1, 2) else torch.cuda.current_stream()
        with torch.cuda.stream(stream):
            batch = loader.next()
            kept = batch.images.clone(memory_format=torch.preserve_format), batch.labels.clone()
        torch.cuda.current_stream().wait_stream(stream)
        assert_same_batch(type(batch)(*kept), resident.next(), tolerance)
