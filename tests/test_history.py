import pytest
import torch
from hypothesis import given, strategies as st

from lion_fast.kernels import HeadLosses
from lion_fast.training.step.history import History, NonFiniteLoss, row_width, write_row


def history(window=3, target=0.5, batch_size=4):
    return History(num_heads=2, batch_size=batch_size, window=window, target=target)


def rows(*main_hits):
    return torch.tensor([[1.0, 0.5, 0.4, 1.0, float(hits)] for hits in main_hits])


def test_a_row_holds_loss_then_losses_then_hits():
    row = torch.full((row_width(2),), float("nan"))
    losses = HeadLosses(torch.tensor(3.0), torch.tensor([1.0, 2.0]), torch.tensor([5, 6]))
    write_row(row, losses)
    assert row.tolist() == [3.0, 1.0, 2.0, 5.0, 6.0]


def test_the_target_counts_only_over_a_full_window():
    record = history()
    record.extend(rows(4, 4), 1.0)
    assert record.target_record is None
    record.extend(rows(4), 2.0)
    assert record.target_record is not None
    assert (record.target_record.step, record.target_record.seconds) == (3, 2.0)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 5))
def test_the_crossing_is_the_first_full_window_whose_mean_reaches_the_target(hits, window):
    record = history(window=window)
    for step, hit in enumerate(hits, 1):
        record.extend(rows(hit), float(step))
    means = [sum(hits[end - window : end]) / (4 * window) for end in range(window, len(hits) + 1)]
    expected = next((window + i for i, mean in enumerate(means) if mean >= 0.5), None)
    assert (record.target_record.step if record.target_record else None) == expected


def test_a_later_dip_does_not_move_the_crossing():
    record = history(window=1)
    record.extend(rows(0, 3), 1.0)
    record.extend(rows(0, 0, 4), 2.0)
    assert record.target_record.step == 2


def test_steps_that_finish_together_share_their_throughput():
    record = history()
    record.extend(rows(1), 0.5)
    record.extend(rows(1, 1), 1.5)
    assert [r.images_per_second for r in record.records] == [8.0, 8.0, 8.0]
    assert record.median_step_milliseconds() == 500.0


def test_a_record_survives_its_checkpoint():
    before, after = history(), history()
    before.extend(rows(1), 0.5)
    before.extend(rows(4, 4), 1.5)
    before.extend(rows(3), 1.75)
    after.load_state(before.state())
    assert after.records == before.records
    assert after.windowed == before.windowed
    assert after.target_record == before.target_record


def test_a_non_finite_loss_names_its_step_and_keeps_the_steps_before():
    record = history()
    broken = rows(1, 1, 1)
    broken[2, 1] = float("inf")
    with pytest.raises(NonFiniteLoss, match="step 3") as caught:
        record.extend(broken, 1.0)
    assert caught.value.step == 3
    assert len(record) == 2
