"""`report.html`: the report in one file that asks for nothing else and runs no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dasheng_edge.quant.compare.pareto import Plane, chosen, ordered, planes
from dasheng_edge.quant.compare.recommend import ENCODER_SNR_DB, rule
from dasheng_edge.quant.compare.record import Report

from . import tables as report_tables
from .plots import Plot, crossing_plot, length_plot, pareto_plot
from .quantities import decibels, figure, megabytes, nats, percent
from .side_by_side import OPEN_CLIPS, OPEN_TEXTS, ClipSayings, Saying, side_by_side
from .style import STYLE
from .tables import Row, Table, crossed, encoders
from .text_difference import difference, visible
from .wording import (
    CROSSING_NOTE,
    GLOSSARY,
    LENGTH_NOTE,
    TASK_NOTE,
    WHY_NOT_NOTE,
    clip_title,
    cost_note,
    differing,
    front_note,
    limits,
    noise_note,
    plot_caption,
    plot_label,
    point_label,
    quoting,
    settings,
    summary,
    title,
    when,
)

# A browser that honours this would not even ask if some text got through unescaped.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(report: Report) -> str:
    """The whole file."""
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{_safe(title(report))}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    subtitle = f"{when(report)} · {report.tool} · {summary(report)}"
    parts = [
        f'<header>\n<h1>{_safe(title(report))}</h1>\n<p class="sub">{_safe(subtitle)}</p>\n</header>\n<main>',
        _recommendation(report),
        _fronts(report),
        *_tables(report),
        _texts(report),
        *_ending(report),
    ]
    return head + "\n".join(part for part in parts if part) + "\n</main>\n</body>\n</html>\n"


def _safe(text: str) -> str:
    """Text of whatever origin, for between tags and within quotes."""
    return escape(visible(text))


def _items(tag: str, lines: Iterable[str]) -> str:
    return f"<{tag}>{''.join(f'<li>{_safe(line)}</li>' for line in lines)}</{tag}>"


def _pairs(kind: str, pairs: Iterable[tuple[str, str]]) -> str:
    return f'<dl class="{kind}">{"".join(f"<dt>{_safe(one)}</dt><dd>{_safe(two)}</dd>" for one, two in pairs)}</dl>'


def _recommendation(report: Report) -> str:
    found = report.recommendation
    name = _safe(found.choice) if found.choice is not None else "None of them"
    return (
        f'<section class="choice">\n<h2>Recommended</h2>\n<p class="name">{name}</p>{_key_facts(report)}\n'
        f"<p>{_safe(found.reason)}</p>\n<details><summary>The rule behind it</summary>"
        f"<p>A candidate is good enough if all of this holds:</p>{_items('ol', rule(report.noise_floor))}</details>\n"
        "</section>"
    )


def _key_facts(report: Report) -> str:
    choice = next((one for number, one in ordered(report) if number == chosen(report)), None)
    if choice is None or choice.both is None:
        return ""
    base, cost = report.reference.cost, choice.cost
    kl, top1 = nats(choice.both.kl_mean), percent(choice.both.same_top1)
    facts = [
        ("Size", f"{megabytes(cost.total_bytes)} MB", f"reference {megabytes(base.total_bytes)} MB"),
        ("Mean KL", kl[0], f"{kl[1]} nats"),
        ("Same top-1", *top1),
        ("Decoding", f"{figure(cost.decode_tokens_per_s)} tok/s", f"reference {figure(base.decode_tokens_per_s)}"),
        ("Work per s of audio", f"{figure(cost.real_time_factor)} s", f"reference {figure(base.real_time_factor)} s"),
    ]
    inner = "".join(
        f"<div><dt>{name}</dt><dd>{_safe(value)}<small>{_safe(aside)}</small></dd></div>"
        for name, value, aside in facts
    )
    return f'<dl class="facts">{inner}</dl>'


def _figure(plot: Plot, caption: str) -> str:
    return f"<figure>{plot.svg}<figcaption>{_safe(caption)}</figcaption></figure>"


def _fronts(report: Report) -> str:
    drawn = planes(report)
    if not drawn:
        return ""
    plots = "\n".join(_front(plane, index) for index, plane in enumerate(drawn, start=1))
    return (
        f'<section>\n<h2>Quality against cost</h2>\n<p class="note">{_safe(front_note(drawn))}</p>\n'
        f'<div class="plots">{plots}</div>\n</section>'
    )


def _front(plane: Plane, index: int) -> str:
    titles = {point.number: visible(point_label(plane, point)) for point in plane.points}
    return _figure(pareto_plot(plane, f"f{index}", titles, visible(plot_label(plane))), plot_caption(plane))


def _section(heading: str, note: str, *parts: str) -> str:
    noted = f'<p class="note">{_safe(note)}</p>\n' if note else ""
    return f"<section>\n<h2>{_safe(heading)}</h2>\n{noted}{''.join(parts)}\n</section>"


def _tables(report: Report) -> list[str]:
    parts = [
        _section("Candidates", "", _table(report_tables.recipes(report), "Candidates")),
        _section(
            "How near each is to the reference", "", _pairs("terms", GLOSSARY),
            _table(report_tables.quality(report), "Nearness to the reference"),
        ),
    ]  # fmt: skip
    if (tasks := report_tables.tasks(report)) is not None:
        parts.append(_section("Task scores", TASK_NOTE, _table(tasks, "Task scores")))
    parts.append(_section("Cost", cost_note(report), _table(report_tables.costs(report), "Cost")))
    if (crossings := report_tables.crossings(report)) is not None:
        plot = crossing_plot(crossed(report), "c", "Mean KL by the encoder alone, the decoder alone, and both.")
        caption = "Numbers are those of the tables."
        parts.append(
            _section("Which part loses what", CROSSING_NOTE, _table(crossings, "Crossings"), _figure(plot, caption))
        )
    if (lengths := report_tables.lengths(report)) is not None:
        parts.append(
            _section("Encoder by length of the clip", LENGTH_NOTE, _table(lengths, "SNR by length"), _lengths(report))
        )
    parts.append(_section("Noise floor", noise_note(report), _table(report_tables.noise(report), "Noise floor")))
    return parts


def _lengths(report: Report) -> str:
    groups = [one for one in encoders(report) if any(part.snr_db is not None for part in one.scores.by_length)]
    if not groups:
        return ""
    plot = length_plot(groups, ENCODER_SNR_DB, "l", "Encoder SNR over the length of clips, as in the table above.")
    return _figure(plot, f"Dashed: {decibels(ENCODER_SNR_DB)} dB, which the rule asks for.")


def _table(table: Table, label: str) -> str:
    # It can be scrolled by keyboard, and is announced, since it may be wider than the page.
    head = "".join(
        f'<th scope="col" class="{_kind(table, index)}">{_safe(name)}</th>' for index, name in enumerate(table.head)
    )
    rows = "\n".join(_row(table, row) for row in table.rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_safe(label)}"><table>\n<thead><tr>{head}</tr>'
        f"</thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _kind(table: Table, index: int) -> str:
    if index >= table.words:
        return "value"
    return ("number", "word name")[index] if index < 2 else "word"


def _row(table: Table, row: Row) -> str:
    cells = []
    tag = {"chosen": " <span class=tag>recommended</span>", "reference": " <span class=tag>reference</span>", "": ""}[
        row.role
    ]
    for index, cell in enumerate(row.cells):
        kind = _kind(table, index)
        aside = f"<small>{_safe(cell.aside)}</small>" if cell.aside else ""
        if kind == "word name":
            cells.append(f'<th scope="row" class="{kind}">{_safe(cell.text)}{tag}</th>')
        elif kind == "number":  # may be many, and breaks between them
            runs = ", ".join(f"<span>{_safe(run)}</span>" for run in cell.text.split(", "))
            cells.append(f'<td class="{kind}">{runs}</td>')
        else:
            cells.append(f'<td class="{kind}">{_safe(cell.text)}{aside}</td>')
    role = f' class="{row.role}"' if row.role else ""
    return f"<tr{role}>{''.join(cells)}</tr>"


def _texts(report: Report) -> str:
    found = side_by_side(report)
    if not found:
        return ""
    total = len(report.candidates)
    rest = found[OPEN_CLIPS:]
    more = f"<details><summary>{len(rest)} more clips</summary>{''.join(_clip(one, total) for one in rest)}</details>"
    return (
        '<section>\n<h2>What they say</h2>\n<p class="note">Clips where most candidates differ come first. '
        "<del>Struck out</del> is what only the reference said, <ins>underlined</ins> what only the candidate "
        f"said.</p>\n{''.join(_clip(one, total) for one in found[:OPEN_CLIPS])}{more if rest else ''}\n</section>"
    )


def _clip(one: ClipSayings, total: int) -> str:
    clip = one.clip
    count = differing(one.differing, total)
    parts = [
        f"<h3>{_safe(clip_title(clip))}</h3>",
        f'<p class="who">{_safe(count[0].upper() + count[1:])}. Asked: {_safe(clip.prompt)}</p>',
    ]
    parts += [_says("Stated with the clip", _plain(text)) for text in clip.references]
    if one.reference is not None:
        agreeing = f", and as it {_who(one.agreeing)}" if one.agreeing else ""
        parts.append(_says(f"Reference{agreeing}", _plain(one.reference), base=True))
    texts = [_says(_who(saying.candidates), _marked(one.reference, saying)) for saying in one.others]
    parts += texts[:OPEN_TEXTS]
    if rest := texts[OPEN_TEXTS:]:
        parts.append(f"<details><summary>{len(rest)} more answers</summary>{''.join(rest)}</details>")
    return f'<article class="clip">{"".join(parts)}</article>\n'


def _says(who: str, said: str, *, base: bool = False) -> str:
    """`said` is escaped already, `who` is not."""
    kind = "says base" if base else "says"
    return f'<div class="{kind}"><div class="who">{_safe(who)}</div><div class="said" dir="auto">{said}</div></div>'


def _who(candidates: Sequence[tuple[int, str]]) -> str:
    return ", ".join(f"{number} {name}" for number, name in candidates)


def _plain(text: str) -> str:
    return _safe(text) if text.strip() else '<span class="who">(nothing)</span>'


def _marked(reference: str | None, saying: Saying) -> str:
    if reference is None or not saying.text.strip():
        return _plain(saying.text)
    tags = {"same": "", "removed": "del", "added": "ins"}
    parts = []
    for piece in difference(reference, saying.text):
        tag, text = tags[piece.kind], _safe(piece.text)
        # The space before a mark stays outside, or it would be underlined or struck out.
        space = text[: len(text) - len(text.lstrip())]
        parts.append(f"{space}<{tag}>{text[len(space) :]}</{tag}>" if tag else text)
    return "".join(parts)


def _ending(report: Report) -> list[str]:
    parts = []
    if rejected := report.recommendation.rejected:
        lines = "".join(f"<li><strong>{_safe(one.name)}</strong>: {_safe(one.why)}</li>" for one in rejected)
        parts.append(_section("Why not the others", WHY_NOT_NOTE, f"<ul>{lines}</ul>"))
    if unsaid := limits(report):
        parts.append(_section("Limits", "", _items("ul", unsaid)))
    parts.append(f'<section class="quote">\n<h2>Read before quoting</h2>{_pairs("pairs", quoting(report))}\n</section>')
    parts.append(_section("Settings", "", _pairs("pairs", settings(report))))
    return parts
