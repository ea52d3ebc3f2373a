"""What scores, axes and points are called, and the sentences that depend on what there is to say."""

from __future__ import annotations

import re
from datetime import datetime

from dasheng_edge.quant.compare.bootstrap import COVERED, MIN_CLIPS
from dasheng_edge.quant.compare.pareto import Plane, Point
from dasheng_edge.quant.compare.recommend import busy
from dasheng_edge.quant.compare.record import Report, TaskScore

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


def when(report: Report) -> str:
    """Day and minute, or what the report says if that is no date."""
    try:
        return datetime.fromisoformat(report.created.replace("Z", "+00:00")).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return report.created


def held() -> str:
    """How often intervals of 95 % hold the truth, by the number of clips."""
    return ", ".join(f"{percent} % with {count}" for count, percent in COVERED.items() if percent)


def beside_others(report: Report) -> str:
    """Says where other programs used the machine while speeds were measured; empty where they did not."""
    costs = [model.cost for model in (report.reference, *report.candidates)]
    if not busy(*costs):
        return ""
    share = max(cost.others_share or 0.0 for cost in costs)
    return (
        f"Other programs used up to {share:.0%} of the machine while speeds were measured: times and rates are not "
        "those of the candidates, and no verdict rests on them. The same command on an idle machine measures them anew."
    )


def task_scores(report: Report) -> dict[str, list[TaskScore]]:
    """By their names, those of all models that have them."""
    scores: dict[str, list[TaskScore]] = {}
    for model in (report.reference, *report.candidates):
        for name, score in model.task.items():
            scores.setdefault(name, []).append(score)
    return scores


def limits(report: Report) -> tuple[str, ...]:
    """What the figures cannot say: what the record has of it, and which task scores rest on too few clips.

    If all clips are few, the record says so.
    """
    counts = {name: min(score.clips for score in scores) for name, scores in task_scores(report).items()}
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
