"""Where frames are put in time, whatever their timestamps say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.audio.timeline import HOLE_S, MAX_HOLES_S, Timeline

FRAME_S = 0.02


def test_frames_without_timestamps_follow_each_other() -> None:
    line = Timeline()
    assert [line.place(None, FRAME_S) for _ in range(50)] == [0.0] * 50
    assert line.start_s == 0.0
    assert line.end_s == pytest.approx(1.0)
    assert not list(line.warnings())


@given(st.lists(st.floats(-0.04, 0.04), min_size=1, max_size=100))
def test_jitter_makes_no_hole(jitter: list[float]) -> None:
    line = Timeline()
    assert [line.place(index * FRAME_S + late, FRAME_S) for index, late in enumerate(jitter)] == [0.0] * len(jitter)
    assert not list(line.warnings())


@pytest.mark.parametrize("drift", [0.999, 1.001, 1.01])
def test_a_clock_that_runs_a_little_wrong_makes_no_hole(drift: float) -> None:
    line = Timeline()
    assert not any(line.place(drift * index * FRAME_S, FRAME_S) for index in range(5000))


@given(st.lists(st.floats(1.01 * HOLE_S, 60), min_size=1, max_size=20))
def test_holes_are_silence_and_what_follows_is_in_its_place(holes: list[float]) -> None:
    line, stated_s = Timeline(), 0.0
    line.place(stated_s, FRAME_S)
    for hole_s in holes:
        stated_s += FRAME_S + hole_s
        assert line.place(stated_s, FRAME_S) == pytest.approx(hole_s, abs=1e-6)
        assert line.end_s == pytest.approx(stated_s + FRAME_S)
    (warning,) = line.warnings()
    assert "in one place" in warning or f"in {len(holes)} places" in warning


def test_lost_packets_add_up() -> None:
    line = Timeline()
    silence_s = sum(line.place(2 * index * FRAME_S, FRAME_S) for index in range(100))  # every second one is lost
    assert silence_s == pytest.approx(99 * FRAME_S, abs=HOLE_S)


@given(st.lists(st.floats(-1e15, 1e15), min_size=1, max_size=50))
def test_whatever_timestamps_say_no_more_than_an_hour_is_put_in(stamps: list[float]) -> None:
    line = Timeline()
    assert sum(line.place(stamp, FRAME_S) for stamp in stamps) <= MAX_HOLES_S
    assert line.seconds <= MAX_HOLES_S + len(stamps) * FRAME_S + 1


def test_a_jump_of_days_is_said() -> None:
    line = Timeline()
    assert [line.place(at, FRAME_S) for at in (0.0, 360_000.0, 360_000.0 + FRAME_S)] == [0.0] * 3
    (warning,) = line.warnings()
    assert "jump ahead too far in 1 places" in warning


def test_joined_files_follow_each_other() -> None:
    line = Timeline()
    assert not any(line.place(index % 50 * FRAME_S, FRAME_S) for index in range(150))
    assert line.end_s == pytest.approx(3.0)
