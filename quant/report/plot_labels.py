"""Where the words and numbers of a plot go, so that none covers another one or a point.

Not by adjustText: on plots of this size it leaves up to three numbers on each other and one on most points, takes two
to four seconds for each plot, puts them elsewhere each time, and needs scipy (140 MB).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MARKER = 5.5  # half the width of a point with its edge, in pixels
_DIGIT_WIDTH, _DIGIT_HEIGHT = 0.66, 0.84  # of the font's size: DejaVu Sans Bold is the widest of those in use
_DIRECTIONS = (45, 135, 0, 180, 315, 225, 90, 270, 20, 160, 70, 110, 200, 340, 250, 290)  # degrees, the best first
_DISTANCES = (1.0, 4.0, 10.0, 18.0, 28.0)  # from the point's edge to the number's
FAR = 10.0  # from here on, a line leads from the point to its number
_APART, _ABOVE = 4.0, 1.0  # between numbers, across and up: 7 beside 2 would read as 72, but nothing above it does


class Box(NamedTuple):
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

    def overlaps(self, others: Sequence[Box]) -> bool:
        """Any of them."""
        return any(
            self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1 for other in others
        )

    def within(self, other: Box) -> bool:
        return self.x0 >= other.x0 and self.y0 >= other.y0 and self.x1 <= other.x1 and self.y1 <= other.y1


@dataclass(frozen=True)
class Spot:
    """Where a number goes, and whether that is so far off that it needs a line."""

    number: int
    box: Box
    far: bool
    point: tuple[float, float]

    def line(self) -> list[Box]:
        """Boxes of two pixels, side by side, along the line from the point to its number; none if it needs none."""
        (x, y), (to_x, to_y) = self.point, self.box.centre
        steps = math.ceil(math.hypot(to_x - x, to_y - y)) if self.far else 0
        return [Box.around(x + (to_x - x) * i / steps, y + (to_y - y) * i / steps, 2, 2) for i in range(steps)]


def place(points: Sequence[tuple[int, tuple[float, float]]], inside: Box, text: float) -> tuple[Spot, ...]:
    """Places for the numbers of points, given with their pixels and the most important first; `text` in pixels.

    A number that finds no free place is left out.
    """
    markers = [Box.around(x, y, 2 * MARKER, 2 * MARKER) for _, (x, y) in points]
    spots: list[Spot] = []
    drawn: list[Box] = []  # numbers with the room around them, and lines
    for (number, point), own in zip(points, markers, strict=True):
        # A line through another point would seem to start there.
        blocks = [box for box in markers if not box.overlaps([own])] + drawn
        for spot in _offers(number, point, text):
            line = spot.line()
            clear = spot.box.within(inside) and not spot.box.overlaps(markers + drawn)
            if clear and not any(box.overlaps(blocks) for box in line):
                spots.append(spot)
                x0, y0, x1, y1 = spot.box
                drawn += [Box(x0 - _APART, y0 - _ABOVE, x1 + _APART, y1 + _ABOVE), *line]
                break
    return tuple(spots)


def _offers(number: int, point: tuple[float, float], text: float) -> Iterator[Spot]:
    """Places around a point, the nearest first: the number's edge is a distance away from the point's."""
    (x, y), width, height = point, _DIGIT_WIDTH * text * len(str(number)), _DIGIT_HEIGHT * text
    for distance in _DISTANCES:
        reach = MARKER + distance
        for angle in map(math.radians, _DIRECTIONS):
            across, up = math.cos(angle), math.sin(angle)
            along = min((reach + width / 2) / max(abs(across), 1e-9), (reach + height / 2) / max(abs(up), 1e-9))
            box = Box.around(x + along * across, y + along * up, width, height)
            yield Spot(number, box, distance >= FAR, point)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> tuple[float, ...]:
    """Heights that are a gap apart and as near as can be to those that are wanted, in their order.

    They stay between `low` and `high` if that has room for all of them.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    groups: list[tuple[float, int]] = []  # centre and how many
    for index in order:
        centre, many = wanted[index], 1
        while groups and centre - groups[-1][0] < gap * (many + groups[-1][1]) / 2:
            other, count = groups.pop()
            centre, many = (centre * many + other * count) / (many + count), many + count
        groups.append((centre, many))
    heights = [centre + gap * (place - (many - 1) / 2) for centre, many in groups for place in range(many)]
    for place in range(len(heights)):  # up from the bottom, then down from the top
        heights[place] = max(heights[place], low + gap * place)
    for place in range(len(heights)):
        heights[-1 - place] = min(heights[-1 - place], high - gap * place)
    placed = dict(zip(order, heights, strict=True))
    return tuple(placed[index] for index in range(len(wanted)))
