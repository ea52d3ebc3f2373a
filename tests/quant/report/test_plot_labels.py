"""Where words and numbers of plots go: nothing touches, nothing crosses, nothing leaves the plot."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from dasheng_edge.quant.report.plot_labels import MARKER, Box, Spot, place, spread

INSIDE, TEXT = Box(0, 0, 280, 240), 12.0
Points = list[tuple[int, tuple[float, float]]]


def crowd(seed: int) -> Points:
    """A dense heap in the middle and some around it."""
    draw = random.Random(seed)
    heap = [(draw.gauss(140, 9), draw.gauss(120, 9)) for _ in range(14)]
    around = [(draw.uniform(20, 260), draw.uniform(20, 220)) for _ in range(10)]
    return list(enumerate([*heap, *around], start=1))


def sampled(spot: Spot) -> list[tuple[float, float]]:
    """Places along the line that leads to a number, from the edge of its point."""
    (x0, y0), (x1, y1) = spot.point, spot.box.centre
    return [(x0 + (x1 - x0) * step / 200, y0 + (y1 - y0) * step / 200) for step in range(201)]


def holds(box: Box, x: float, y: float) -> bool:
    return box.x0 < x < box.x1 and box.y0 < y < box.y1


@pytest.mark.parametrize("seed", range(8))
def test_numbers_side_by_side_do_not_read_as_one(seed: int) -> None:
    spots = place(crowd(seed), INSIDE, TEXT)
    assert len(spots) > 10
    for one, two in combinations(spots, 2):
        beside = one.box.y0 < two.box.y1 and two.box.y0 < one.box.y1
        gap = max(two.box.x0 - one.box.x1, one.box.x0 - two.box.x1)
        assert not beside or gap >= 4 - 1e-9


@pytest.mark.parametrize("seed", range(8))
def test_no_line_crosses_a_number_or_another_point(seed: int) -> None:
    points = crowd(seed)
    spots = place(points, INSIDE, TEXT)
    far = [spot for spot in spots if spot.far]
    assert far
    for spot in far:
        line = sampled(spot)
        others = [other.box for other in spots if other is not spot]
        own = Box.around(*spot.point, 2 * MARKER, 2 * MARKER)
        markers = [Box.around(*point, 2 * MARKER, 2 * MARKER) for _, point in points]
        blocks = [*others, *(box for box in markers if not box.overlaps([own]))]
        assert not any(holds(box, x, y) for box in blocks for x, y in line)


def test_names_that_would_touch_are_moved_apart_in_their_order() -> None:
    wanted = (50.0, 52.0, 51.0, 120.0, 3.0)
    heights = spread(wanted, 15, 0, 200)
    assert heights[3] == 120
    assert heights[4] == 3
    assert heights[0] < heights[2] < heights[1]
    assert all(two - one >= 15 - 1e-9 for one, two in pairwise(sorted(heights)))
    assert sum(heights[:3]) / 3 == pytest.approx(51)  # none of them is moved more than another


def test_names_stay_between_the_ends() -> None:
    assert spread((0.0, 1.0, 2.0), 15, 10, 200) == (10, 25, 40)
    assert spread((199.0, 200.0), 15, 10, 200) == (185, 200)
    assert spread((), 15, 10, 200) == ()
