"""Where the numbers of a plot's points go, so that none covers another one or a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MARKER = 5.5  # half the width of a point with its edge, in pixels
_DIGIT_WIDTH, _DIGIT_HEIGHT = 0.66, 0.84  # of the font's size: DejaVu Sans Bold is the widest of those in use
_DIRECTIONS = [
    math.radians(angle) for angle in (45, 135, 0, 180, 315, 225, 90, 270, 20, 160, 70, 110, 200, 340, 250, 290)
]
_DISTANCES = (1.0, 4.0, 10.0, 18.0, 28.0)  # from the point's edge to the label's
FAR = 10.0  # from here on, a line leads from the point to its number


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

    def holds(self, other: Box) -> bool:
        return self.x0 <= other.x0 and self.y0 <= other.y0 and other.x1 <= self.x1 and other.y1 <= self.y1


@dataclass(frozen=True)
class Spot:
    """Where a number goes, and whether that is so far off that it needs a line."""

    number: int
    box: Box
    far: bool


def place(points: Sequence[tuple[int, tuple[float, float]]], inside: Box, text: float) -> tuple[Spot, ...]:
    """Places for the numbers of points, given with their pixels and the most important first; `text` in pixels.

    A number that finds no free place is left out.
    """
    taken = [Box.around(x, y, 2 * MARKER, 2 * MARKER) for _, (x, y) in points]
    spots = []
    for number, (x, y) in points:
        spot = next(
            (spot for spot in _offers(number, x, y, text) if inside.holds(spot.box) and _free(spot, taken)), None
        )
        if spot is not None:
            spots.append(spot)
            taken.append(spot.box)
    return tuple(spots)


def _free(spot: Spot, taken: Sequence[Box]) -> bool:
    return not any(spot.box.overlaps(box) for box in taken)


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
            offers.append(Spot(number, box, far=distance >= FAR))
    return offers
