"""Candidates as points in a plane of cost and quality, and the front that no other candidate beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .recommend import busy
from .record import Candidate, Interval, Report

Cost = Literal["size", "work"]  # in megabytes, in seconds of work per second of audio
# The score that stands for the task where there are several: the broadest first.
_MAIN_TASKS = (
    "event_f1", "word_error_rate", "character_error_rate", "fense", "cider_d", "rouge_l", "exact_match",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One candidate: `number` is that of the tables."""

    number: int
    name: str
    x: float
    y: Interval
    front: bool  # no other candidate, nor the reference, is at least as good in both and better in one
    chosen: bool


@dataclass(frozen=True)
class Plane:
    """Quality over cost, of which less is better."""

    cost: Cost
    task: str | None  # None: mean KL, which is drawn on a logarithmic axis
    y_better: Literal["higher", "lower"]
    points: tuple[Point, ...]
    reference_x: float
    reference_y: float
    band: Interval | None  # what rounding alone does to y

    @property
    def front(self) -> tuple[Point, ...]:
        """From the cheapest to the best."""
        return tuple(sorted((point for point in self.points if point.front), key=lambda point: (point.x, point.number)))


def ordered(report: Report) -> tuple[tuple[int, Candidate], ...]:
    """Candidates with their numbers: from 1, the largest first."""
    by_size = sorted(report.candidates, key=lambda candidate: -candidate.cost.total_bytes)
    return tuple(enumerate(by_size, start=1))


def chosen(report: Report) -> int | None:
    """Number of the recommended candidate."""
    return next(
        (number for number, candidate in ordered(report) if candidate.name == report.recommendation.choice), None
    )


def main_task(report: Report) -> str | None:
    """The task score to draw; None: no candidate has one."""
    names = {name for candidate in report.candidates for name in candidate.task if name in report.reference.task}
    return next((name for name in (*_MAIN_TASKS, *sorted(names)) if name in names), None)


def planes(report: Report) -> tuple[Plane, ...]:
    """KL over size and over work, and the main task score over both if there is one.

    Not over work that was measured while others used the machine.
    """
    task = main_task(report)
    kinds: list[str | None] = [None] if any(candidate.both for candidate in report.candidates) else []
    kinds += [task] if task else []
    calm = not busy(*(model.cost for model in (report.reference, *report.candidates)))
    costs: tuple[Cost, ...] = ("size", "work") if calm else ("size",)
    return tuple(_plane(report, cost, kind) for kind in kinds for cost in costs)


def _plane(report: Report, cost: Cost, task: str | None) -> Plane:
    base = report.reference
    score = base.task[task] if task else None
    better = score.better if score else "lower"
    reference = (_x(base, cost), score.value.value if score else 0.0)  # KL from itself
    measured = [
        (number, candidate, y) for number, candidate in ordered(report) if (y := _quality(candidate, task)) is not None
    ]
    sign = -1.0 if better == "higher" else 1.0
    places = [(_x(candidate, cost), sign * y.value) for _, candidate, y in measured]
    rivals = [*places, (reference[0], sign * reference[1])]
    choice = chosen(report)
    points = tuple(
        Point(number, candidate.name, place[0], y, front=not _beaten(place, rivals), chosen=number == choice)
        for (number, candidate, y), place in zip(measured, places, strict=True)
    )
    return Plane(cost, task, better, points, *reference, None if task else report.noise_floor.decoder.kl_mean)


def _quality(candidate: Candidate, task: str | None) -> Interval | None:
    if task is None:
        return candidate.both.kl_mean if candidate.both else None
    return candidate.task[task].value if task in candidate.task else None


def _x(candidate: Candidate, cost: Cost) -> float:
    return candidate.cost.total_bytes / 1e6 if cost == "size" else candidate.cost.real_time_factor


def _beaten(place: tuple[float, float], rivals: Sequence[tuple[float, float]]) -> bool:
    """Whether a rival is at least as low in both coordinates, and lower in one."""
    return any(rival != place and rival[0] <= place[0] and rival[1] <= place[1] for rival in rivals)
