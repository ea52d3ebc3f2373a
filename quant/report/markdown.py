"""`report.md`: the report as GitHub renders it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dasheng_edge.quant.compare.pareto import planes
from dasheng_edge.quant.compare.recommend import rule
from dasheng_edge.quant.compare.record import Report

from . import tables as report_tables
from .side_by_side import OPEN_CLIPS, ClipSayings, Saying, side_by_side
from .tables import Row, Table
from .text_difference import difference, visible
from .wording import (
    CROSSING_NOTE,
    FRONT,
    GLOSSARY,
    LENGTH_NOTE,
    TASK_NOTE,
    WHY_NOT_NOTE,
    clip_title,
    cost_note,
    differing,
    front_names,
    limits,
    noise_note,
    quoting,
    settings,
    summary,
    title,
    when,
)

# What means something to CommonMark or GitHub wherever it stands: an underscore outside of a word, a colon of a URL or
# an emoji, the point of www. What means something at the start of a line only never stands there. Angle brackets and
# ampersands become entities, so that nothing is taken for HTML.
_SPECIAL = re.compile(r"([\\`*\[\]|~$@]|(?<!\w)_|_(?!\w)|:(?=//|\w+:)|(?<=www)\.)")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def document(report: Report) -> str:
    """The whole file."""
    parts = [
        f"# {escaped(title(report))}",
        (
            f"{escaped(when(report))} · {escaped(report.tool)} · {escaped(summary(report))}. With plots: "
            "[report.html](report.html); every figure: [report.json](report.json)."
        ),
        *_recommendation(report),
        *_fronts(report),
        *_tables(report),
        *_texts(report),
        *_ending(report),
    ]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text in one line that Markdown shows as it is."""
    return " ".join(_SPECIAL.sub(r"\\\1", visible(text)).translate(_ENTITIES).split())


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _recommendation(report: Report) -> list[str]:
    found = report.recommendation
    head = f"**Take {escaped(found.choice)}.**" if found.choice else "**Take none of them.**"
    numbered = "\n".join(f"{index}. {escaped(line)}" for index, line in enumerate(rule(report.noise_floor), start=1))
    return [
        "## Recommendation",
        f"{head} {escaped(found.reason)}",
        f"The rule: a candidate is good enough if\n\n{numbered}",
    ]


def _fronts(report: Report) -> list[str]:
    lines = [
        f"{escaped(plane.title)} ({plane.y_better} is better): {escaped(front_names(plane))}"
        for plane in planes(report)
    ]
    if not lines:
        return []
    intro = f"From the cheapest to the best; {FRONT}:"
    return ["## Pareto fronts", intro, _bullets(lines)]


def _tables(report: Report) -> list[str]:
    words = _bullets(f"**{term}**: {escaped(sentence)}" for term, sentence in GLOSSARY)
    parts = ["## Candidates", _table(report_tables.recipes(report))]
    parts += ["## How near each is to the reference", words, _table(report_tables.quality(report))]
    optional = (
        ("Task scores", TASK_NOTE, report_tables.tasks(report)),
        ("Cost", cost_note(report), report_tables.costs(report)),
        ("Which part loses what", CROSSING_NOTE, report_tables.crossings(report)),
        ("Encoder by length of the clip", LENGTH_NOTE, report_tables.lengths(report)),
        ("Noise floor", noise_note(report), report_tables.noise(report)),
    )
    for heading, note, table in optional:
        if table is not None:
            parts += [f"## {heading}", escaped(note), _table(table)]
    return parts


def _table(table: Table) -> str:
    head = f"| {' | '.join(escaped(name) for name in table.head)} |"
    rule_line = "|" + "|".join(" :-- " if index < table.words else " --: " for index in range(len(table.head))) + "|"
    return "\n".join([head, rule_line, *(_row(row) for row in table.rows)])


def _row(row: Row) -> str:
    cells = [f"{escaped(cell.text)} {escaped(cell.aside)}".strip() for cell in row.cells]
    if row.role == "chosen":
        cells[1] = f"**{cells[1]}** (recommended)"
    if row.role == "reference":
        cells[1] = f"_{cells[1]}_ (reference)"
    return f"| {' | '.join(cells)} |"


def _texts(report: Report) -> list[str]:
    found = side_by_side(report)
    if not found:
        return []
    parts = [
        "## What they say",
        (
            "Clips where most candidates differ come first. ~~Struck out~~ is what only the reference said, "
            "<ins>underlined</ins> what only the candidate said."
        ),
        *(_clip(one, report) for one in found[:OPEN_CLIPS]),
    ]
    if rest := found[OPEN_CLIPS:]:
        # Blank lines inside make GitHub read Markdown there.
        parts += [f"<details><summary>{len(rest)} more clips</summary>"]
        parts += [*(_clip(one, report) for one in rest), "</details>"]
    return parts


def _clip(one: ClipSayings, report: Report) -> str:
    clip = one.clip
    lines = [f"Asked: {escaped(clip.prompt)}"]
    lines += [f"Stated: {_quoted(escaped(text))}" for text in clip.references]
    if one.reference is not None:
        lines.append(f"**Reference**: {_quoted(escaped(one.reference))}")
    lines += [f"{_who(saying.candidates)}: {_marked(one.reference, saying)}" for saying in one.others]
    if one.agreeing:
        lines.append(f"As the reference: {_who(one.agreeing)}")
    count = escaped(differing(one.differing, len(report.candidates)))
    return f"### {escaped(clip_title(clip))}\n\n{count[0].upper()}{count[1:]}.\n\n{_bullets(lines)}"


def _who(candidates: Sequence[tuple[int, str]]) -> str:
    return ", ".join(f"{number} {escaped(name)}" for number, name in candidates)


def _quoted(text: str) -> str:
    return text or "(nothing)"


def _marked(reference: str | None, saying: Saying) -> str:
    """A text with its differences; what was removed is struck out."""
    if not saying.text or reference is None:
        return _quoted(escaped(saying.text))
    tags = {"same": "", "removed": "del", "added": "ins"}
    parts = []
    for piece in difference(reference, saying.text):
        tag, text = tags[piece.kind], escaped(piece.text)
        if text:
            parts.append(f"<{tag}>{text}</{tag}>" if tag else text)
    return " ".join(parts)


def _ending(report: Report) -> list[str]:
    why_not = [f"**{escaped(one.name)}**: {escaped(one.why)}" for one in report.recommendation.rejected]
    pairs = {"Read before quoting": quoting(report), "Settings": settings(report)}
    parts = ["## Why not the others", escaped(WHY_NOT_NOTE), _bullets(why_not)] if why_not else []
    if unsaid := limits(report):
        parts += ["## Limits", _bullets(escaped(limit) for limit in unsaid)]
    for heading, facts in pairs.items():
        parts += [f"## {heading}", _bullets(f"**{escaped(name)}**: {escaped(value)}" for name, value in facts)]
    return parts
