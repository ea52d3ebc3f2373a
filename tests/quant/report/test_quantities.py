"""Numbers as text: nothing that is shown contradicts what stands beside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.quant.compare.record import Interval
from dasheng_edge.quant.report.quantities import clips, decimals, nats, spans, tick

SIZES = st.floats(min_value=1e-9, max_value=1e4)


def number(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


@given(ends=st.lists(SIZES, min_size=3, max_size=3).map(sorted))
def test_a_value_stands_within_its_interval(ends: list[float]) -> None:
    interval = Interval(low=ends[0], value=ends[1], high=ends[2])
    for shown in (nats(interval), decimals(interval)):
        low, high = shown[1][1:-1].split(", ")
        assert number(low) <= number(shown[0]) <= number(high)


def test_a_narrow_interval_has_as_many_digits_as_its_value() -> None:
    assert nats(Interval(value=0.0316, low=0.0315, high=0.0324)) == ("0.0316", "[0.0315, 0.0324]")
    assert nats(Interval(value=0.0316, low=0.0214, high=0.0424)) == ("0.0316", "[0.021, 0.042]")


def test_perplexities_near_1_are_told_apart() -> None:
    assert decimals(Interval(value=1.0832, low=1.0755, high=1.0913)) == ("1.083", "[1.075, 1.091]")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1e−5"), (2.5e-7, "2.5e−7"), (1e-4, "0.0001"), (0.9725, "0.9725"), (0.1 + 0.2, "0.3"), (30, "30"),
        (14_000, "14,000"), (-20, "−20"), (0, "0"), (-0.0, "0"),
    ],
)  # fmt: skip
def test_numbers_at_axes_are_written_as_in_tables(value: float, text: str) -> None:
    assert tick(value) == text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((), ""),
        ((4,), "4"),
        ((4, 5), "4, 5"),
        (range(1, 17), "1–16"),
        ((18, 21, 22, 23), "18, 21–23"),
        ((1, 2, 4, 5, 6, 9), "1, 2, 4–6, 9"),
    ],
)
def test_numbers_in_a_row_are_a_range(numbers: tuple[int, ...], text: str) -> None:
    assert spans(numbers) == text


def test_one_clip_is_no_clips() -> None:
    assert [clips(count) for count in (0, 1, 2, 1200)] == ["0 clips", "1 clip", "2 clips", "1,200 clips"]
