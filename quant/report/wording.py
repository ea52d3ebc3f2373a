"""What scores, axes and points are called, and the sentences that depend on what there is to say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from dasheng_edge.quant.compare.bootstrap import COVERED, MIN_CLIPS
from dasheng_edge.quant.compare.pareto import Plane, Point
from dasheng_edge.quant.compare.record import Report

from .quantities import clips, figure

_TITLES = {
    "fense": "FENSE", "cider_d_ptb": "CIDEr-D (PTB)", "spider_fl": "SPIDEr-FL", "event_f1": "event F1",
    "rouge_l": "ROUGE-L", "cider_d": "CIDEr-D",
}  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
FRONT = "neither another candidate nor the reference is at least as good on both axes and better on one"


def visible(text: str) -> str:
    """A text whose control characters are shown as symbols, as no browser shows them; line breaks stay."""
    return _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] != "\x7f" else "␡", text)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def score_title(name: str) -> str:
    """A task score's name as it is spoken of."""
    return _TITLES.get(name, name.replace("_", " "))


def x_title(plane: Plane) -> str:
    return "size in MB" if plane.cost == "size" else "work in s per s of audio"


def y_title(plane: Plane) -> str:
    return score_title(plane.task) if plane.task else "mean KL in nats"


def front_names(plane: Plane) -> str:
    """The candidates on the front, from the cheapest."""
    return "; ".join(f"{point.number} {point.name}" for point in plane.front) or "none: the reference beats them all"


def plot_label(plane: Plane) -> str:
    """A plot for those who do not see it."""
    return f"{y_title(plane)} against {plane.cost}, {len(plane.points)} candidates. {plot_caption(plane)}"


def plot_caption(plane: Plane) -> str:
    """Which way is better, and what is on the front."""
    return f"{capital(plane.y_better)} is better. Front: {front_names(plane)}."


def point_label(plane: Plane, point: Point) -> str:
    """What is shown over a point."""
    return f"{point.number} {point.name}: {y_title(plane)} {figure(point.y.value)}, {x_title(plane)} {figure(point.x)}"


def front_note(drawn: Sequence[Plane]) -> str:
    """What the marks in plots mean, those that are there."""
    points = [(plane, point) for plane in drawn for point in plane.points]
    marks = ["Dotted lines are the reference's figures", "bars are 95 % intervals"]
    if any(point.chosen for _, point in points):
        marks.append("the diamond is the recommended candidate")
    if any(plane.task is None and point.y.value <= 0 for plane, point in points):
        marks.append("a triangle is a value below the axis")
    if any(plane.band and plane.band.high > 0 for plane in drawn):
        marks.append("the band in plots of KL is what rounding alone does")
    return (
        f"The front is coloured: {FRONT}. {', '.join(marks[:-1])} and {marks[-1]}. Numbers are those of the tables. A "
        "number is left out if there is no room for it."
    )


def when(report: Report) -> str:
    """Day and minute, or what the report says if that is no date."""
    try:
        return datetime.fromisoformat(report.created.replace("Z", "+00:00")).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return report.created


def held() -> str:
    """How often intervals of 95 % hold the truth, by the number of clips."""
    return ", ".join(f"{percent} % with {count}" for count, percent in COVERED.items() if percent)


def limits(report: Report) -> tuple[str, ...]:
    """What the figures cannot say: what the record has of it, and which task scores rest on too few clips.

    If all clips are few, the record says so.
    """
    counts: dict[str, int] = {}
    for model in (report.reference, *report.candidates):
        for name, score in model.task.items():
            counts[name] = min(score.clips, counts.get(name, score.clips))
    few = [f"{score_title(name)} ({clips(count)})" for name, count in counts.items() if count < MIN_CLIPS]
    if not few or report.settings.clips < MIN_CLIPS:
        return report.limits
    return (
        *report.limits,
        (
            f"Too few clips were scored for {', '.join(few)}: intervals of few are too narrow. In simulations with "
            f"skewed values, what is called 95 % held the truth in {held()} clips, and never with one."
        ),
    )


def calibration(report: Report) -> str:
    """Which clips were calibrated on, and which candidates were not made in this run."""
    given = report.settings.calibration_clips
    if given is not None:
        return clips(given)
    brought = sum(model.recipe.imatrix is not None for model in report.candidates)
    if not brought:
        return "no clips were given to this run"
    have, matrices = ("has", "an importance matrix that was") if brought == 1 else ("have", "importance matrices")
    return f"no clips were given to this run; {brought} of the candidates {have} {matrices} made elsewhere"


def differing(count: int, total: int) -> str:
    if count == 0:
        return "All candidates say what the reference says"
    return f"{count} of {total} candidates say something else"
