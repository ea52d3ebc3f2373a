"""Changes: a sound that sets in is found where it does, what is as before is not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.subtitles.changes import MIN_STRENGTH, changes
from dasheng_edge.runtime.subtitles.cue import Change

PATCH_S, FRAMES, DIM, BANDS = 0.04, 4, 48, 32
RNG = np.random.default_rng(0)
SOUNDS = RNG.normal(size=(4, DIM))  # what the encoder makes of a sound
LEVELS = -60 + 40 * RNG.uniform(size=(4, BANDS))  # its bands, in dB


def heard(*parts: tuple[int, float]) -> tuple[Change, ...]:
    """Changes of a clip made of sounds by number, so many seconds each, with a little noise."""
    rows = [number for number, seconds in parts for _ in range(round(seconds / PATCH_S))]
    patches = SOUNDS[rows] + 0.1 * RNG.normal(size=(len(rows), DIM))
    log_mel = np.repeat(LEVELS[rows], FRAMES, axis=0) + 0.5 * RNG.normal(size=(FRAMES * len(rows), BANDS))
    return found(log_mel.T.astype(np.float32), patches.astype(np.float32))


def found(log_mel: NDArray[np.float32], patches: NDArray[np.float32]) -> tuple[Change, ...]:
    return changes(log_mel, patches, patch_frames=FRAMES, patch_s=PATCH_S)


def strong(some: tuple[Change, ...]) -> list[float]:
    return [change.time_s for change in some if change.strength > 0.3]


def test_sounds_are_found_where_they_set_in() -> None:
    assert strong(heard((0, 2.0), (1, 3.0), (2, 1.2), (3, 2.0))) == pytest.approx([2.0, 5.0, 6.2], abs=PATCH_S)


def test_what_beats_is_new_only_once() -> None:
    beats = [(number, 0.4) for _ in range(8) for number in (1, 0)]
    assert strong(heard((0, 3.0), *beats)) == pytest.approx([3.0], abs=PATCH_S)


def test_what_lasts_or_gets_quieter_is_no_change() -> None:
    assert strong(heard((0, 6.0))) == []
    fading = np.linspace(0, -40, 600, dtype=np.float32)[None] + LEVELS[0][:, None].astype(np.float32)
    assert found(fading, RNG.normal(size=(150, DIM)).astype(np.float32)) == ()


def test_times_are_in_order_apart_and_inside() -> None:
    noise = found(
        (20 * RNG.normal(size=(BANDS, 1000))).astype(np.float32), RNG.normal(size=(250, DIM)).astype(np.float32)
    )
    times = np.array([change.time_s for change in noise])
    assert len(times) > 3
    assert (np.diff(times) > 0.3).all()
    assert times.min() >= 0.24
    assert times.max() <= 10 - 0.24
    assert all(change.strength >= MIN_STRENGTH for change in noise)


@pytest.mark.parametrize("patches", [0, 1, 5, 12, 13, 20])
def test_short_clips_and_numbers_that_say_nothing(patches: int) -> None:
    assert found(np.zeros((BANDS, FRAMES * patches + 3), np.float32), np.zeros((patches, DIM), np.float32)) == ()
