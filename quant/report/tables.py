"""The tables of a report as text, for any markup; nothing in them is escaped yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dasheng_edge.quant.compare.pareto import chosen, ordered
from dasheng_edge.quant.compare.record import Candidate, DecoderScores, EncoderScores, Quantiles, Report, TaskScore

from .quantities import (
    NONE,
    clips,
    decibels,
    figure,
    fixed,
    megabytes,
    nats,
    percent,
    perplexity,
    points,
    score_title,
    seconds,
    spans,
)

Role = Literal["reference", "chosen", ""]


@dataclass(frozen=True)
class Cell:
    """A value and, with less weight, its interval."""

    text: str
    aside: str = ""


@dataclass(frozen=True)
class Row:
    """One model: the first cell is its number, the second its name."""

    cells: tuple[Cell, ...]
    role: Role = ""


@dataclass(frozen=True)
class Table:
    """Rows under a head; columns hold numbers but those that `words` counts from the left."""

    head: tuple[str, ...]
    rows: tuple[Row, ...]
    words: int = 2


def _row(number: int, candidate: Candidate, cells: Sequence[Cell], choice: int | None) -> Row:
    """Number 0 is the reference."""
    role: Role = "reference" if number == 0 else "chosen" if number == choice else ""
    return Row((Cell(str(number) if number else "ref"), Cell(candidate.name), *cells), role)


def _models(report: Report) -> tuple[tuple[int, Candidate], ...]:
    return ((0, report.reference), *ordered(report))


def recipes(report: Report) -> Table:
    """What each model is made of, and what it weighs."""
    head = (
        "#",
        "Candidate",
        "Encoder",
        "Decoder",
        "KV cache",
        "Importance matrix",
        "Size, MB",
        "Encoder, bits/weight",
        "Decoder, bits/weight",
    )
    rows = []
    for number, one in _models(report):
        facts, cost = one.recipe, one.cost
        bits = (fixed(cost.encoder_bits_per_weight, 2), fixed(cost.decoder_bits_per_weight, 2))
        cells = (facts.encoder, facts.decoder, facts.kv_type, facts.imatrix or NONE, megabytes(cost.total_bytes), *bits)
        rows.append(_row(number, one, [Cell(text) for text in cells], chosen(report)))
    return Table(head, tuple(rows), words=6)


def quality(report: Report) -> Table:
    """How near each candidate is to the reference."""
    head = (
        "#",
        "Candidate",
        "Mean KL, nats",
        "Median KL",
        "KL p90",
        "KL p99",
        "Same top-1",
        "Perplexity",
        "Same answer",
        "First difference, token",
        "Encoder SNR, dB",
    )
    # The reference has not been compared with itself, but its floor has: with the same answers, by another number of
    # threads, it wavers as much.
    own = Cell(*perplexity(report.noise_floor.decoder.perplexity))
    rows = [_row(0, report.reference, [*[Cell(NONE)] * 5, own, *[Cell(NONE)] * 3], None)]
    for number, one in ordered(report):
        decoder = decoder_cells(one.both)
        encoder = Cell(NONE if one.encoder is None else decibels(one.encoder.snr_db))
        rows.append(_row(number, one, [*decoder, encoder], chosen(report)))
    return Table(head, tuple(rows))


def decoder_cells(scores: DecoderScores | None) -> list[Cell]:
    """KL's mean, median, p90 and p99; same top-1, perplexity, same answer, first difference."""
    if scores is None:
        return [Cell(NONE)] * 8
    return [
        *(Cell(*nats(kl)) for kl in (scores.kl_mean, scores.kl_median, scores.kl_p90, scores.kl_p99)),
        Cell(*percent(scores.same_top1)),
        Cell(*perplexity(scores.perplexity)),
        Cell(*percent(scores.identical)),
        Cell(NONE if scores.first_divergence is None else figure(scores.first_divergence)),
    ]


def tasks(report: Report) -> Table | None:
    """Task scores, with the change against the reference in points; None: there are none."""
    models = _models(report)
    scores: dict[str, list[TaskScore]] = {}
    for _, one in models:
        for name, score in one.task.items():
            scores.setdefault(name, []).append(score)
    if not scores:
        return None
    head = ["#", "Candidate"]
    for name, found in scores.items():
        title = score_title(name)
        head += [f"{title[0].upper()}{title[1:]} ({found[0].better} is better, {_clips(found)})", "Change, points"]
    rows = []
    for number, one in models:
        cells = [cell for name in scores for cell in _score_cells(one.task.get(name))]
        rows.append(_row(number, one, cells, chosen(report)))
    return Table(tuple(head), tuple(rows))


def _clips(scores: Sequence[TaskScore]) -> str:
    """On how many clips a score was taken, which is the same for all models unless some say so."""
    least, most = (end(score.clips for score in scores) for end in (min, max))
    return clips(most) if least == most else f"{least}–{clips(most)}"


def _score_cells(score: TaskScore | None) -> tuple[Cell, Cell]:
    if score is None:
        return Cell(NONE), Cell(NONE)
    value = score.value
    ends = f"[{fixed(value.low, 3)}, {fixed(value.high, 3)}]"
    return Cell(fixed(value.value, 3), ends), Cell(NONE) if score.change is None else Cell(*points(score.change))


def costs(report: Report) -> Table:
    """What each model takes."""
    head = (
        "#",
        "Candidate",
        "Size, MB",
        "Peak memory, MB",
        "Load, ms",
        "Encoder, ms",
        "First token, ms",
        "Prefill, tok/s",
        "Decode, tok/s",
        "Work per s of audio, s",
        "Energy per clip, J",
    )
    rows = []
    for number, one in _models(report):
        cost = one.cost
        cells = [
            Cell(megabytes(cost.total_bytes)),
            Cell(NONE if cost.peak_rss_bytes is None else megabytes(cost.peak_rss_bytes)),
            Cell(figure(cost.load_ms)),
            _quantiles(cost.encoder_ms),
            _quantiles(cost.first_token_ms),
            Cell(figure(cost.prefill_tokens_per_s)),
            Cell(figure(cost.decode_tokens_per_s)),
            Cell(figure(cost.real_time_factor)),
            Cell(NONE if cost.energy_j is None else figure(cost.energy_j)),
        ]
        rows.append(_row(number, one, cells, chosen(report)))
    return Table(head, tuple(rows))


def _quantiles(times: Quantiles) -> Cell:
    return Cell(figure(times.p50), f"p90 {figure(times.p90)}")


def crossed(report: Report) -> tuple[tuple[int, Candidate], ...]:
    """Candidates whose loss was taken apart: by the encoder alone, by the decoder alone."""
    return tuple((number, one) for number, one in ordered(report) if one.both and one.encoder_only and one.decoder_only)


def crossings(report: Report) -> Table | None:
    """Mean KL by the quantized encoder alone, by the decoder alone, by both; None: there is nothing to tell apart."""
    rows = []
    for number, one in crossed(report):
        assert one.encoder_only
        assert one.decoder_only
        assert one.both
        parts = (one.encoder_only, one.decoder_only, one.both)
        rows.append(_row(number, one, [Cell(*nats(part.kl_mean)) for part in parts], chosen(report)))
    head = ("#", "Candidate", "Encoder alone", "Decoder alone", "Both")
    return Table(head, tuple(rows)) if rows else None


@dataclass(frozen=True)
class EncoderGroup:
    """An encoder, and the candidates that have it."""

    name: str
    numbers: tuple[int, ...]
    scores: EncoderScores


def encoders(report: Report) -> tuple[EncoderGroup, ...]:
    """Encoders that differ from the reference's, each once; candidates with other scores have another one."""
    groups: list[EncoderGroup] = []
    for number, one in ordered(report):
        if one.encoder is None:
            continue
        for index, group in enumerate(groups):
            if (group.name, group.scores) == (one.recipe.encoder, one.encoder):
                groups[index] = EncoderGroup(group.name, (*group.numbers, number), group.scores)
                break
        else:
            groups.append(EncoderGroup(one.recipe.encoder, (number,), one.encoder))
    return tuple(groups)


def lengths(report: Report) -> Table | None:
    """SNR of each encoder by length of the clip; None: there is none."""
    rounding = EncoderGroup("rounding alone", (), report.noise_floor.encoder)
    groups = encoders(report)
    if not groups:
        return None
    every = sorted({part.seconds for group in groups for part in group.scores.by_length})
    rows = []
    for group in (*groups, rounding):
        by_length = {part.seconds: decibels(part.snr_db) for part in group.scores.by_length}
        worst = Cell(fixed(group.scores.cosine_worst, 4))
        numbers = spans(group.numbers) or NONE
        cells = [Cell(decibels(group.scores.snr_db)), *(Cell(by_length.get(length, NONE)) for length in every), worst]
        rows.append(Row((Cell(numbers), Cell(group.name), *cells)))
    head = ("#", "Encoder", "All clips", *(f"{seconds(length)}" for length in every), "Worst cosine")
    return Table(head, tuple(rows))


def noise(report: Report) -> Table:
    """What the reference differs by from itself with another number of threads."""
    floor = report.noise_floor
    head = ("Mean KL, nats", "KL p99", "Same top-1", "Same answer", "Encoder SNR, dB", "Worst cosine")
    cells = (
        Cell(*nats(floor.decoder.kl_mean)),
        Cell(*nats(floor.decoder.kl_p99)),
        Cell(*percent(floor.decoder.same_top1)),
        Cell(*percent(floor.decoder.identical)),
        Cell(decibels(floor.encoder.snr_db)),
        Cell(fixed(floor.encoder.cosine_worst, 6)),
    )
    return Table(head, (Row(cells),), words=0)
