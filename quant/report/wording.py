"""The sentences of a report: headings, what the figures mean, what to know before quoting them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from dasheng_edge.quant.compare.bootstrap import COVERED, FEW_CLIPS
from dasheng_edge.quant.compare.pareto import Plane, Point
from dasheng_edge.quant.compare.record import ClipTexts, Report

from .quantities import clips, figure, fixed, score_title, seconds

# What a reader must know to read the tables, one sentence each.
GLOSSARY = (
    (
        "KL divergence",
        (
            "how far a candidate's probabilities for the next token are from the reference's, in nats, with both "
            "reading the reference's own answers: 0 is no difference at all; the median and the p99 tell the usual "
            "token from the worst in a hundred."
        ),
    ),
    ("Same top-1", "share of positions in these answers where both models put the same token first."),
    (
        "Perplexity",
        (
            "how many tokens a model wavers between, on average, where the reference had decided for one; the "
            "reference's own, which is more than 1, too, comes from the run for the noise floor."
        ),
    ),
    ("Same answer", "share of clips that both models, left to write freely, answer with exactly the same tokens."),
    ("First difference", "the token at which free answers part, in the median over the clips where they do."),
    (
        "Encoder SNR",
        (
            "how strong the reference's audio embeddings are against the error in the candidate's: 10 dB more is a "
            "tenth of the error's power."
        ),
    ),
    (
        "Interval",
        (
            "what stands in brackets covers 95 % of what other clips of the same kind would give, drawing whole clips "
            "(bootstrap)."
        ),
    ),
)
TASK_NOTE = (
    "Scores of free answers against what the clips' manifest states, each on the clips for which it states that. A "
    "point is 0.01; changes are paired clip by clip, so they can be certain where the intervals of the scores "
    "themselves overlap."
)
CROSSING_NOTE = (
    "Mean KL in nats when only the encoder is the candidate's, when only the decoder is, and when both are: the "
    "larger of the first two is the part to give more bits to."
)
LENGTH_NOTE = (
    "SNR of the audio embeddings in dB by length of the clip; “exact” is no difference at all. Coarse encoders can "
    "be fine on short clips and fail on long ones."
)
TEXTS_NOTE = "{Removed} is what only the reference said, {added} what only the candidate said."
FRONT = "neither another candidate nor the reference is at least as good on both axes and better on one"
WHY_NOT_NOTE = (
    "All candidates had the same clips, so two of them may differ for certain although their intervals overlap: that "
    "the intervals overlap means that nothing here shows a difference, not that there is none."
)


def title(report: Report) -> str:
    return f"Quantizations of {report.model}"


def when(report: Report) -> str:
    """Day and minute, or what the report says where that is no date."""
    try:
        return datetime.fromisoformat(report.created.replace("Z", "+00:00")).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return report.created


def summary(report: Report) -> str:
    """What was compared with what."""
    many, settings = len(report.candidates), report.settings
    return (
        f"{many} candidate{'s' if many != 1 else ''} against {report.reference.name}, on {clips(settings.clips)} "
        f"({fixed(settings.audio_s / 60, 1)} minutes of audio)"
    )


def cost_note(report: Report) -> str:
    """How costs were measured; older records do not say on how many clips."""
    count = report.reference.cost.clips
    part = count is not None and count < report.settings.clips
    spaced = ", evenly spaced over those that were compared" if part else ""
    return (
        f"Measured in a process of its own for each model, clip after clip, on "
        f"{'at most 20 clips' if count is None else clips(count)}{spaced}. First token: from the call to the first "
        "token, median and p90 over these clips."
    )


def noise_note(report: Report) -> str:
    first, second = report.noise_floor.threads
    return (
        f"The reference against itself, with {first} threads and with {second}: what rounding alone does. A "
        "candidate that is as near as this cannot be told from the reference."
    )


def limits(report: Report) -> tuple[str, ...]:
    """What the figures cannot say: what the record has of it, and which task scores rest on too few clips.

    Where all clips are few, the record says so.
    """
    if report.settings.clips < FEW_CLIPS:
        return report.limits
    counts: dict[str, int] = {}
    for one in (report.reference, *report.candidates):
        for name, score in one.task.items():
            counts[name] = min(score.clips, counts.get(name, score.clips))
    few = [f"{score_title(name)} ({clips(count)})" for name, count in counts.items() if count < FEW_CLIPS]
    if not few:
        return report.limits
    held = ", ".join(f"{percent} % with {count}" for count, percent in COVERED.items() if percent)
    return (
        *report.limits,
        (
            f"Too few clips were scored for {', '.join(few)}: intervals of few are too narrow. In simulations with "
            f"skewed values, what is called 95 % held the truth in {held} clips, and never with one."
        ),
    )


def front_note(drawn: Sequence[Plane]) -> str:
    """What the marks in plots mean, those that are there."""
    points = [(plane, point) for plane in drawn for point in plane.points]
    marks = ["dotted lines are the reference's figures", "bars are 95 % intervals"]
    if any(point.chosen for _, point in points):
        marks.append("the diamond is the recommended candidate")
    if any(plane.logarithmic and point.y.value <= 0 for plane, point in points):
        marks.append("a triangle is a value below the axis")
    if any(plane.band and plane.band.high > 0 for plane in drawn):
        marks.append("the band in plots of KL is what rounding alone does")
    listed = f"{', '.join(marks[:-1])} and {marks[-1]}"
    return (
        f"Coloured is the front: {FRONT}. {listed[0].upper()}{listed[1:]}. Numbers are those of the tables; one that "
        "finds no room is left out."
    )


def front_names(plane: Plane) -> str:
    """The candidates on the front, from the cheapest."""
    return "; ".join(f"{point.number} {point.name}" for point in plane.front) or "none: the reference beats them all"


def plot_label(plane: Plane) -> str:
    """A plot for those who do not see it."""
    return f"{plane.title}, {len(plane.points)} candidates. {plot_caption(plane)}"


def plot_caption(plane: Plane) -> str:
    """Which way is better, and what is on the front."""
    return f"{plane.y_better.capitalize()} is better. Front: {front_names(plane)}."


def point_label(plane: Plane, point: Point) -> str:
    """What is shown over a point."""
    return f"{point.number} {point.name}: {plane.y_title} {figure(point.y.value)}, {plane.x_title} {figure(point.x)}"


def clip_title(clip: ClipTexts) -> str:
    return f"{clip.clip} · {seconds(clip.seconds)}"


def differing(count: int, total: int) -> str:
    if count == 0:
        return "all candidates say what the reference says"
    return f"{count} of {total} candidates say something else"


def quoting(report: Report) -> tuple[tuple[str, str], ...]:
    """What must be told with the figures."""
    settings = report.settings
    calibration = (
        "no clips were given to this run" if settings.calibration_clips is None else clips(settings.calibration_clips)
    )
    heard = (
        f"{settings.clips}, {fixed(settings.audio_s, 1)} s of audio, SHA-256 {settings.clips_sha256}: other clips give "
        "other figures"
    )
    repeat = (
        "run `dasheng-edge compare` of the same version on the same bundles and clips, with the settings below; "
        "`report.json`, beside this page, holds every figure unrounded"
    )
    scope = "all figures are against this reference, not against the truth; times hold for this machine alone"
    return (
        ("Scope", scope),
        ("Tool", report.tool),
        ("Machine", "; ".join(f"{name}: {value}" for name, value in report.machine.items()) or "not known"),
        ("Clips", heard),
        ("Calibration", calibration),
        ("To repeat it", repeat),
    )


def settings(report: Report) -> tuple[tuple[str, str], ...]:
    """What the comparison was asked for."""
    asked = report.settings
    matrices = {
        one.recipe.imatrix_sha256: one.recipe.imatrix
        for one in report.candidates
        if one.recipe.imatrix and one.recipe.imatrix_sha256
    }
    return (
        ("Clips", str(asked.clips)),
        ("Audio", f"{fixed(asked.audio_s, 1)} s"),
        ("SHA-256 of the clips", asked.clips_sha256),
        (
            "Clips to calibrate with",
            "none given to this run" if asked.calibration_clips is None else str(asked.calibration_clips),
        ),
        ("Longest answer", f"{asked.max_new_tokens} tokens"),
        ("Threads", str(asked.threads)),
        ("Bootstrap draws", f"{asked.bootstrap_draws:,}"),
        *((f"Importance matrix {name}", f"SHA-256 {digest}") for digest, name in matrices.items()),
    )
