"""Which clips costs are measured on; what they come to is tested with the comparison."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from dasheng_edge.quant.compare.cost import MEASURED_CLIPS, measured_clips
from dasheng_edge.runtime.audio.clips import Clip


@pytest.mark.parametrize("count", [1, 2, MEASURED_CLIPS - 1, MEASURED_CLIPS])
def test_of_few_clips_all_are_measured(count: int) -> None:
    clips = [Clip(str(index), Path("x")) for index in range(count)]
    assert measured_clips(clips) == clips


@pytest.mark.parametrize("count", [MEASURED_CLIPS + 1, 39, 100, 1001])
def test_of_many_clips_some_are_measured_that_lie_over_all(count: int) -> None:
    clips = [Clip(str(index), Path("x")) for index in range(count)]
    places = [int(clip.id) for clip in measured_clips(clips)]
    assert (len(places), places[0], places[-1]) == (MEASURED_CLIPS, 0, count - 1)
    steps = [after - before for before, after in itertools.pairwise(places)]
    assert 1 <= min(steps) <= max(steps) <= min(steps) + 1
