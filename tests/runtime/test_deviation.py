"""One rule for all deviations: what is equal, scaled, not a number, of another shape, or zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.deviation import (
    Deviation,
    logits_relative_rms,
    max_difference,
    noise_share_of,
    relative_rms,
    relative_rms_of,
)

WANT = np.array([[3.0, 4.0]], np.float32)
ZEROS, NOTHING = np.zeros_like(WANT), np.zeros((0, 2), np.float32)


def deviation(got: NDArray[Any], want: NDArray[Any]) -> Deviation:
    return Deviation.of([(got, want)])


def test_a_gain_of_a_tenth_is_a_tenth_and_20_db() -> None:
    assert relative_rms(WANT * 1.1, WANT) == pytest.approx(0.1, rel=1e-5)
    assert deviation(WANT * 1.1, WANT).noise_share == pytest.approx(0.01, rel=1e-5)
    assert deviation(WANT * 1.1, WANT).snr_db == pytest.approx(20.0, rel=1e-5)
    assert relative_rms_of(20.0) == pytest.approx(0.1)
    assert noise_share_of(20.0) == pytest.approx(0.01)
    assert max_difference(WANT, WANT + 0.5) == 0.5


@pytest.mark.parametrize("same", [WANT, ZEROS, NOTHING])
def test_what_is_equal_does_not_differ(same: NDArray[Any]) -> None:
    assert relative_rms(same, same) == max_difference(same, same) == deviation(same, same).noise_share == 0
    assert deviation(same, same).snr_db is None


@pytest.mark.parametrize(
    ("got", "want"), [(WANT * np.nan, WANT), (WANT, WANT * np.nan), (WANT * np.inf, WANT * np.inf)]
)
def test_nan_is_within_no_tolerance(got: NDArray[Any], want: NDArray[Any]) -> None:
    assert not relative_rms(got, want) <= 1e300
    assert not max_difference(got, want) <= 1e300
    snr_db = deviation(got, want).snr_db
    assert snr_db is not None
    assert not snr_db >= -1e300


def test_unequal_shapes_are_infinitely_far_apart() -> None:
    assert max_difference(WANT, WANT.T) == relative_rms(WANT, WANT.T) == np.inf
    assert deviation(WANT, WANT.T).snr_db == -np.inf


def test_any_difference_from_zeros_is_huge() -> None:
    assert relative_rms(WANT, ZEROS) > 1e100
    snr_db = deviation(WANT, ZEROS).snr_db
    assert snr_db is not None
    assert snr_db < -1000


def test_several_arrays_count_as_one() -> None:
    got, want = np.arange(12.0).reshape(2, 6), np.arange(1.0, 13.0).reshape(2, 6)
    parts = [deviation(*pair) for pair in zip(got, want, strict=True)]
    assert Deviation.total(parts).relative_rms == pytest.approx(relative_rms(got, want))
    assert Deviation.of(zip(got, want, strict=True)).snr_db == pytest.approx(deviation(got, want).snr_db)


def test_a_constant_added_to_logits_changes_nothing() -> None:
    logits = np.random.default_rng(0).normal(size=300).astype(np.float32)
    assert logits_relative_rms(logits + 7, logits) < 1e-6
    assert relative_rms(logits + 7, logits) > 1
