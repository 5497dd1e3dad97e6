import pytest

from lion_fast.report import markdown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.50 s"),
        (0.0123456, "12.3 ms"),
        (4.2e-5, "42.0 µs"),
        (3e-8, "30.0 ns"),
        (0.0, "0.00 ns"),
    ],
)
def test_times_have_units_and_three_digits(value, text):
    assert markdown.seconds(value) == text


def test_numbers_are_never_scientific():
    assert markdown.significant(1_234_567.0) == "1,234,567"
    assert markdown.significant(0.00012345) == "0.000123"
    assert markdown.significant(float("inf")) == "∞"
    assert markdown.num_bytes(1536) == "1.50 KiB"
    assert markdown.num_bytes(7) == "7 B"
