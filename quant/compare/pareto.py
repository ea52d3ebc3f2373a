"""Candidates as points in a plane of cost and quality, and the front that no other candidate beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dasheng_edge.quant.report.quantities import score_title

from .record import Candidate, Interval, Report

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
    """What is drawn over what. Less is better along x: megabytes, or seconds of work per second of audio."""

    kind: Literal["size", "work"]
    x_title: str
    y_title: str
    y_better: Literal["higher", "lower"]
    logarithmic: bool  # y
    points: tuple[Point, ...]
    reference_x: float
    reference_y: float
    band: Interval | None  # what rounding alone does to y

    @property
    def title(self) -> str:
        return f"{self.y_title} against {'size' if self.kind == 'size' else 'work'}"

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
    return next((number for number, one in ordered(report) if one.name == report.recommendation.choice), None)


def main_task(report: Report) -> str | None:
    """The task score to draw; None: no candidate has one."""
    names = {name for candidate in report.candidates for name in candidate.task if name in report.reference.task}
    return next((name for name in (*_MAIN_TASKS, *sorted(names)) if name in names), None)


def planes(report: Report) -> tuple[Plane, ...]:
    """KL over size and over work, and the main task score over both if there is one."""
    made = [_plane(report, kind, None) for kind in ("size", "work")] if _with_kl(report) else []
    if (task := main_task(report)) is not None:
        made += [_plane(report, kind, task) for kind in ("size", "work")]
    return tuple(made)


def _with_kl(report: Report) -> bool:
    return any(candidate.both is not None for candidate in report.candidates)


def _plane(report: Report, kind: Literal["size", "work"], task: str | None) -> Plane:
    base = report.reference
    score = base.task[task] if task else None
    reference_y = score.value.value if score else 0.0  # KL from itself
    better = score.better if score else "lower"
    measured = [
        (number, candidate, y) for number, candidate in ordered(report) if (y := _quality(candidate, task)) is not None
    ]
    sign = -1.0 if better == "higher" else 1.0
    places = [(_x(candidate, kind), sign * y.value) for _, candidate, y in measured]
    rivals = [*places, (_x(base, kind), sign * reference_y)]
    choice = chosen(report)
    points = tuple(
        Point(number, candidate.name, place[0], y, front=not _beaten(place, rivals), chosen=number == choice)
        for (number, candidate, y), place in zip(measured, places, strict=True)
    )
    x_title = "size in MB" if kind == "size" else "seconds of work per second of audio"
    y_title = score_title(task) if task else "mean KL in nats"
    band = None if task else report.noise_floor.decoder.kl_mean
    return Plane(kind, x_title, y_title, better, task is None, points, _x(base, kind), reference_y, band)


def _quality(candidate: Candidate, task: str | None) -> Interval | None:
    if task is None:
        return candidate.both.kl_mean if candidate.both else None
    return candidate.task[task].value if task in candidate.task else None


def _x(candidate: Candidate, kind: Literal["size", "work"]) -> float:
    return candidate.cost.total_bytes / 1e6 if kind == "size" else candidate.cost.real_time_factor


def _beaten(place: tuple[float, float], rivals: Sequence[tuple[float, float]]) -> bool:
    """Whether a rival is at least as low in both coordinates, and lower in one."""
    return any(rival != place and rival[0] <= place[0] and rival[1] <= place[1] for rival in rivals)
