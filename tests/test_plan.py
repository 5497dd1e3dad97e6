import dataclasses
import hashlib

import numpy as np
import pytest

from lion_fast.data.plan import BatchPlan
from lion_fast.errors import UserError


def test_the_plan_of_a_seed_never_changes():
    """Runs are reproducible across versions only while this digest stands: never update it."""
    planned = BatchPlan(num_images=1000, batch_size=128, seed=42, crop_padding=4).steps(0, 20)
    digest = hashlib.sha256()
    for array in planned:
        digest.update(array.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "16af13d27844243c"


def test_an_epoch_visits_every_image_once():
    plan = BatchPlan(num_images=96, batch_size=8, seed=1)
    first, second = plan.steps(0, 12).indices, plan.steps(12, 24).indices
    assert np.array_equal(np.sort(first.ravel()), np.arange(96))
    assert np.array_equal(np.sort(second.ravel()), np.arange(96))
    assert not np.array_equal(first, second)


def test_the_incomplete_tail_batch_is_dropped():
    plan = BatchPlan(num_images=103, batch_size=10, seed=1)
    indices = plan.steps(0, 20).indices
    assert plan.steps_per_epoch == 10
    for epoch in indices[:10], indices[10:]:
        assert len(np.unique(epoch)) == 100


@pytest.mark.parametrize(
    "start, stop", [(0, 0), (7, 7), (0, 1), (6, 8), (5, 23), (13, 14), (14, 21)]
)
def test_any_slice_of_steps_agrees_with_the_whole(start, stop):
    plan = BatchPlan(num_images=31, batch_size=4, seed=9, crop_padding=2)
    whole = plan.steps(0, 25)
    for part, array in zip(plan.steps(start, stop), whole, strict=True):
        assert np.array_equal(part, array[start:stop])


def test_a_change_to_returned_arrays_does_not_reach_the_plan():
    plan = BatchPlan(num_images=31, batch_size=4, seed=9)
    before = plan.steps(0, 3)
    for array in plan.steps(0, 3):
        array[:] = 0
    assert np.array_equal(plan.steps(0, 3).indices, before.indices)


def test_half_of_the_images_are_flipped_and_crops_are_uniform():
    planned = BatchPlan(num_images=50_000, batch_size=500, seed=3, crop_padding=2).steps(0, 100)
    # 5 standard errors: 0.5 / sqrt(50,000) and sqrt(0.2 * 0.8 / 100,000).
    assert abs(planned.flips.mean() - 0.5) < 5 * 0.0023
    frequencies = np.bincount(planned.crops.ravel(), minlength=5) / planned.crops.size
    assert np.abs(frequencies - 0.2).max() < 5 * 0.0013 and len(frequencies) == 5
    assert abs(np.corrcoef(planned.crops.reshape(-1, 2).T)[0, 1]) < 5 * 0.0045


def test_seeds_and_epochs_give_independent_orders_and_flips():
    one, other = (BatchPlan(num_images=4096, batch_size=4096, seed=s).steps(0, 2) for s in (1, 2))
    for a, b in [(one, other), (one._replace(flips=one.flips[::-1]), one)]:
        assert abs((a.flips[0] == b.flips[0]).mean() - 0.5) < 5 * 0.5 / 64
    # Two random permutations agree in one place on average.
    assert (one.indices[0] == other.indices[0]).sum() < 10
    assert (one.indices[0] == one.indices[1]).sum() < 10


def test_crops_do_not_change_order_or_flips():
    plain, cropped = (BatchPlan(50, 7, 5, crop_padding=p).steps(0, 10) for p in (0, 4))
    assert np.array_equal(plain.indices, cropped.indices)
    assert np.array_equal(plain.flips, cropped.flips)
    assert not plain.crops.any() and cropped.crops.any()


@pytest.mark.parametrize("num_images, batch_size", [(10, 11), (0, 1), (10, 0), (10, -1)])
def test_an_impossible_batch_size_is_named(num_images, batch_size):
    with pytest.raises(UserError, match=f"batch_size is {batch_size}"):
        BatchPlan(num_images, batch_size, seed=0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_ranks_columns_make_up_the_batches_of_one_process(world_size):
    plan = BatchPlan(num_images=31, batch_size=6, seed=9, crop_padding=2)
    ranks = [dataclasses.replace(plan, rank=r, world_size=world_size) for r in range(world_size)]
    assert {rank.local_batch_size for rank in ranks} == {6 // world_size}
    assert {rank.whole for rank in ranks} == {plan}
    parts = [rank.steps(3, 17) for rank in ranks]
    for field, array in enumerate(plan.steps(3, 17)):
        assert np.array_equal(np.concatenate([part[field] for part in parts], axis=1), array)


def test_a_batch_that_the_ranks_cannot_share_equally_is_refused():
    with pytest.raises(UserError, match="batch_size is 8, which 3 processes cannot share equally"):
        BatchPlan(num_images=31, batch_size=8, seed=9, world_size=3)
    with pytest.raises(ValueError, match="rank is 2 of 2"):
        BatchPlan(num_images=31, batch_size=8, seed=9, rank=2, world_size=2)


@pytest.mark.parametrize("start, stop", [(-1, 2), (3, 2)])
def test_impossible_steps_are_refused(start, stop):
    with pytest.raises(ValueError, match="need 0 <= start <= stop"):
        BatchPlan(10, 2, seed=0).steps(start, stop)
