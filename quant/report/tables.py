"""The tables of a report as text, for any markup; nothing in them is escaped yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from dasheng_edge.quant.compare.pareto import chosen, ordered
from dasheng_edge.quant.compare.record import Candidate, DecoderScores, EncoderScores, Quantiles, Report, TaskScore

from .quantities import (
    NONE,
    clips,
    decibels,
    decimals,
    figure,
    fixed,
    megabytes,
    nats,
    percent,
    points,
    seconds,
    spans,
)
from .wording import capital, score_title

Role = Literal["reference", "chosen", ""]


class Cell(NamedTuple):
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


Value = str | tuple[str, str] | None  # None was not measured
Columns = Mapping[str, Callable[[Candidate], Value]]  # by their heads


def _cell(value: Value) -> Cell:
    return Cell(NONE) if value is None else Cell(value) if isinstance(value, str) else Cell(*value)


def _table(report: Report, columns: Columns, *, words: int = 2, models: Sequence[tuple[int, Candidate]] = ()) -> Table:
    """A row for each model, number 0 being the reference; all of them unless some are given."""
    choice, rows = chosen(report), []
    for number, model in models or ((0, report.reference), *ordered(report)):
        role: Role = "reference" if number == 0 else "chosen" if number == choice else ""
        cells = [_cell(value(model)) for value in columns.values()]
        rows.append(Row((Cell(str(number) if number else "ref"), Cell(model.name), *cells), role))
    return Table(("#", "Candidate", *columns), tuple(rows), words)


def recipes(report: Report) -> Table:
    """What each model is made of, and what it weighs."""
    columns: Columns = {
        "Encoder": lambda model: model.recipe.encoder,
        "Decoder": lambda model: model.recipe.decoder,
        "KV cache": lambda model: model.recipe.kv_type,
        "Importance matrix": lambda model: model.recipe.imatrix or None,
        "Size, MB": lambda model: megabytes(model.cost.total_bytes),
        "Encoder, bits/weight": lambda model: fixed(model.cost.encoder_bits_per_weight, 2),
        "Decoder, bits/weight": lambda model: fixed(model.cost.decoder_bits_per_weight, 2),
    }
    return _table(report, columns, words=6)


def quality(report: Report) -> Table:
    """How near each candidate is to the reference."""

    def scored(measure: Callable[[DecoderScores], Value]) -> Callable[[Candidate], Value]:
        return lambda model: measure(model.both) if model.both else None

    def wavering(model: Candidate) -> Value:
        # The reference has not been compared with itself, but its floor has: with the same answers, by another number
        # of threads, it wavers as much.
        scores = report.noise_floor.decoder if model is report.reference else model.both
        return decimals(scores.perplexity) if scores else None

    columns: Columns = {
        "Mean KL, nats": scored(lambda scores: nats(scores.kl_mean)),
        "Median KL": scored(lambda scores: nats(scores.kl_median)),
        "KL p90": scored(lambda scores: nats(scores.kl_p90)),
        "KL p99": scored(lambda scores: nats(scores.kl_p99)),
        "Same top-1": scored(lambda scores: percent(scores.same_top1)),
        "Perplexity": wavering,
        "Same answer": scored(lambda scores: percent(scores.identical)),
        "First difference, token": scored(
            lambda scores: None if scores.first_divergence is None else figure(scores.first_divergence)
        ),
        "Encoder SNR, dB": lambda model: decibels(model.encoder.snr_db) if model.encoder else None,
    }
    return _table(report, columns)


def tasks(report: Report) -> Table | None:
    """Task scores, with the change against the reference in points; None: there are none."""
    scores: dict[str, list[TaskScore]] = {}
    for model in (report.reference, *report.candidates):
        for name, score in model.task.items():
            scores.setdefault(name, []).append(score)
    if not scores:
        return None
    columns: dict[str, Callable[[Candidate], Value]] = {}
    for name, every in scores.items():
        title = score_title(name)
        columns[f"{capital(title)} ({every[0].better} is better, {_clips(every)})"] = partial(_score, name)
        columns[f"Change of {title}, points"] = partial(_change, name)
    return _table(report, columns)


def _score(name: str, model: Candidate) -> Value:
    return decimals(score.value) if (score := model.task.get(name)) else None


def _change(name: str, model: Candidate) -> Value:
    return points(score.change) if (score := model.task.get(name)) and score.change else None


def _clips(scores: Sequence[TaskScore]) -> str:
    """On how many clips a score was taken, which is the same for all models unless some say so."""
    least, most = (end(score.clips for score in scores) for end in (min, max))
    return clips(most) if least == most else f"{least}–{clips(most)}"


def costs(report: Report) -> Table:
    """What each model takes."""

    def quantiles(times: Quantiles) -> Value:
        return figure(times.p50), f"p90 {figure(times.p90)}"

    columns: Columns = {
        "Size, MB": lambda model: megabytes(model.cost.total_bytes),
        "Peak memory, MB": lambda model: (
            None if model.cost.peak_rss_bytes is None else megabytes(model.cost.peak_rss_bytes)
        ),
        "Load, ms": lambda model: figure(model.cost.load_ms),
        "Encoder, ms": lambda model: quantiles(model.cost.encoder_ms),
        "First token, ms": lambda model: quantiles(model.cost.first_token_ms),
        "Prefill, tok/s": lambda model: figure(model.cost.prefill_tokens_per_s),
        "Decode, tok/s": lambda model: figure(model.cost.decode_tokens_per_s),
        "Work per s of audio, s": lambda model: figure(model.cost.real_time_factor),
        "Energy per clip, J": lambda model: None if model.cost.energy_j is None else figure(model.cost.energy_j),
    }
    return _table(report, columns)


def crossed(report: Report) -> tuple[tuple[int, Candidate], ...]:
    """Candidates whose loss was taken apart: by the encoder alone, by the decoder alone."""
    return tuple(
        (number, model) for number, model in ordered(report) if model.both and model.encoder_only and model.decoder_only
    )


def crossings(report: Report) -> Table | None:
    """Mean KL by the quantized encoder alone, by the decoder alone, by both; None: there is nothing to tell apart."""

    def mean(scores: DecoderScores | None) -> Value:
        return nats(scores.kl_mean) if scores else None

    columns: Columns = {
        "Encoder alone": lambda model: mean(model.encoder_only),
        "Decoder alone": lambda model: mean(model.decoder_only),
        "Both": lambda model: mean(model.both),
    }
    models = crossed(report)
    return _table(report, columns, models=models) if models else None


@dataclass(frozen=True)
class EncoderGroup:
    """An encoder, and the candidates that have it."""

    name: str
    numbers: tuple[int, ...]
    scores: EncoderScores


def encoders(report: Report, *, exact: bool = True) -> tuple[EncoderGroup, ...]:
    """Encoders of candidates, each once; candidates with other scores have another one.

    Without `exact`, those that differ from the reference's.
    """
    groups: list[tuple[str, EncoderScores, list[int]]] = []
    for number, model in ordered(report):
        if model.encoder is None or not (exact or any(part.snr_db is not None for part in model.encoder.by_length)):
            continue
        same = [numbers for name, scores, numbers in groups if (name, scores) == (model.recipe.encoder, model.encoder)]
        if same:
            same[0].append(number)
        else:
            groups.append((model.recipe.encoder, model.encoder, [number]))
    return tuple(EncoderGroup(name, tuple(numbers), scores) for name, scores, numbers in groups)


def lengths(report: Report) -> Table | None:
    """SNR of each encoder by length of the clip; None: there is none."""
    groups = encoders(report)
    if not groups:
        return None
    every = sorted({part.seconds for group in groups for part in group.scores.by_length})
    rows = []
    for group in (*groups, EncoderGroup("rounding alone", (), report.noise_floor.encoder)):
        by_length = {part.seconds: decibels(part.snr_db) for part in group.scores.by_length}
        snrs = [decibels(group.scores.snr_db), *(by_length.get(length, NONE) for length in every)]
        values = (spans(group.numbers) or NONE, group.name, *snrs, fixed(group.scores.cosine_worst, 4))
        rows.append(Row(tuple(map(Cell, values))))
    return Table(("#", "Encoder", "All clips", *map(seconds, every), "Worst cosine"), tuple(rows))


def noise(report: Report) -> Table:
    """What the reference differs by from itself with another number of threads."""
    decoder, encoder = report.noise_floor.decoder, report.noise_floor.encoder
    columns: dict[str, Value] = {
        "Mean KL, nats": nats(decoder.kl_mean),
        "KL p99": nats(decoder.kl_p99),
        "Same top-1": percent(decoder.same_top1),
        "Same answer": percent(decoder.identical),
        "Encoder SNR, dB": decibels(encoder.snr_db),
        "Worst cosine": fixed(encoder.cosine_worst, 6),
    }
    return Table(tuple(columns), (Row(tuple(map(_cell, columns.values()))),), words=0)
