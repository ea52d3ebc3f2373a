"""Where the words and numbers of a plot go, so that none covers another one or a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

MARKER = 5.5  # half the width of a point with its edge, in pixels
_DIGIT_WIDTH, _DIGIT_HEIGHT = 0.66, 0.84  # of the font's size: DejaVu Sans Bold is the widest of those in use
_DIRECTIONS = [
    math.radians(angle) for angle in (45, 135, 0, 180, 315, 225, 90, 270, 20, 160, 70, 110, 200, 340, 250, 290)
]
_DISTANCES = (1.0, 4.0, 10.0, 18.0, 28.0)  # from the point's edge to the label's
FAR = 10.0  # from here on, a line leads from the point to its number
_APART, _ABOVE = 4.0, 1.0  # between numbers, across and up: 7 beside 2 would read as 72, but nothing above it does

Line = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float) -> Box:
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    def overlaps(self, other: Box) -> bool:
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1

    def wider(self, across: float, up: float) -> Box:
        return Box(self.x0 - across, self.y0 - up, self.x1 + across, self.y1 + up)

    def crossed_by(self, line: Line) -> bool:
        """Whether any of a straight line lies inside (Liang and Barsky's clipping)."""
        (x, y), (to_x, to_y) = line
        enter, leave = 0.0, 1.0
        for along, room in (
            (x - to_x, x - self.x0), (to_x - x, self.x1 - x), (y - to_y, y - self.y0), (to_y - y, self.y1 - y),
        ):  # fmt: skip
            if along == 0:
                if room <= 0:
                    return False
            elif along < 0:
                enter = max(enter, room / along)
            else:
                leave = min(leave, room / along)
        return enter < leave

    def holds(self, other: Box) -> bool:
        return self.x0 <= other.x0 and self.y0 <= other.y0 and other.x1 <= self.x1 and other.y1 <= self.y1


@dataclass(frozen=True)
class Spot:
    """Where a number goes, and whether that is so far off that it needs a line."""

    number: int
    box: Box
    far: bool
    point: tuple[float, float]

    @property
    def leader(self) -> Line | None:
        """The line from the point to its number."""
        return (self.point, self.box.centre) if self.far else None


def place(points: Sequence[tuple[int, tuple[float, float]]], inside: Box, text: float) -> tuple[Spot, ...]:
    """Places for the numbers of points, given with their pixels and the most important first; `text` in pixels.

    A number that finds no free place is left out.
    """
    markers = [Box.around(x, y, 2 * MARKER, 2 * MARKER) for _, (x, y) in points]
    spots: list[Spot] = []
    for number, (x, y) in points:
        own = Box.around(x, y, 2 * MARKER, 2 * MARKER)
        apart = [box for box in markers if not box.overlaps(own)]
        for spot in _offers(number, x, y, text):
            hidden = any(spot.box.overlaps(box) for box in markers) or not inside.holds(spot.box)
            # A line through another point would seem to start there.
            astray = spot.leader is not None and any(box.crossed_by(spot.leader) for box in apart)
            if not hidden and not astray and _free(spot, spots):
                spots.append(spot)
                break
    return tuple(spots)


def _free(spot: Spot, others: Sequence[Spot]) -> bool:
    """Whether a number and its line stay clear of those that are there."""
    room = spot.box.wider(_APART, _ABOVE)
    for other in others:
        if room.overlaps(other.box) or (other.leader and room.crossed_by(other.leader)):
            return False
        if spot.leader and (
            other.box.wider(_APART, _ABOVE).crossed_by(spot.leader)
            or (other.leader and _lines_cross(spot.leader, other.leader))
        ):
            return False
    return True


def _lines_cross(one: Line, two: Line) -> bool:
    def side(line: Line, point: tuple[float, float]) -> float:
        (x0, y0), (x1, y1) = line
        return (x1 - x0) * (point[1] - y0) - (y1 - y0) * (point[0] - x0)

    return side(one, two[0]) * side(one, two[1]) < 0 and side(two, one[0]) * side(two, one[1]) < 0


def _offers(number: int, x: float, y: float, text: float) -> list[Spot]:
    """Places around a point, the nearest first: the label's edge is a distance away from the point's."""
    width, height = _DIGIT_WIDTH * text * len(str(number)), _DIGIT_HEIGHT * text
    offers = []
    for distance in _DISTANCES:
        reach = MARKER + distance
        for angle in _DIRECTIONS:
            across, up = math.cos(angle), math.sin(angle)
            along = min((reach + width / 2) / max(abs(across), 1e-9), (reach + height / 2) / max(abs(up), 1e-9))
            box = Box.around(x + along * across, y + along * up, width, height)
            offers.append(Spot(number, box, far=distance >= FAR, point=(x, y)))
    return offers


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> tuple[float, ...]:
    """Heights that are a gap apart and as near as can be to those that are wanted, in their order.

    They stay between `low` and `high` where that has room for all of them.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    groups: list[tuple[float, int]] = []  # centre and how many
    for index in order:
        centre, many = wanted[index], 1
        while groups and centre - groups[-1][0] < gap * (many + groups[-1][1]) / 2:
            other, count = groups.pop()
            centre, many = (centre * many + other * count) / (many + count), many + count
        groups.append((centre, many))
    found = [centre + gap * (place - (many - 1) / 2) for centre, many in groups for place in range(many)]
    for place in range(len(found)):  # up from the bottom, then down from the top
        found[place] = max(found[place], low + gap * place)
    for place in range(len(found)):
        found[-1 - place] = min(found[-1 - place], high - gap * place)
    heights = dict(zip(order, found, strict=True))
    return tuple(heights[index] for index in range(len(wanted)))


def fitting(labels: Sequence[tuple[float, float]], low: float, high: float, gap: float) -> tuple[int, ...]:
    """Which labels of an axis to keep, given by centre and width: every so many of those between `low` and `high`.

    As many as can be without two that are nearer to each other than the gap.
    """
    inside = [
        index
        for index, (centre, width) in enumerate(labels)
        if low <= centre - width / 2 and centre + width / 2 <= high
    ]
    for step in range(1, len(inside)):
        kept = inside[::step]
        if all(labels[two][0] - labels[one][0] >= _half(labels, one, two) + gap for one, two in pairwise(kept)):
            return tuple(kept)
    return tuple(inside[:1])


def _half(labels: Sequence[tuple[float, float]], one: int, two: int) -> float:
    return (labels[one][1] + labels[two][1]) / 2
