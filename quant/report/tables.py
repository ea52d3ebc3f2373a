"""The tables of a report as text, for any markup; nothing in them is escaped yet. Templates say which columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from dasheng_edge.quant.compare.pareto import chosen, ordered
from dasheng_edge.quant.compare.record import Candidate, EncoderScores, Report, TaskScore

from .quantities import NONE, clips, decibels, decimals, fixed, points, seconds, spans
from .wording import capital, score_title, task_scores

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


@dataclass(frozen=True)
class Column:
    """Shows of each model what lies at `path`: names of fields with points between; None was not measured."""

    head: str
    path: str
    written: Callable[[Any], str | tuple[str, str]] = str
    reference: object = None  # stands in the reference's row, if that has nothing at `path`

    def cell(self, model: object, *, reference: bool = False) -> Cell:
        value = model
        for name in self.path.split("."):
            if value is not None:
                value = value.get(name) if isinstance(value, dict) else getattr(value, name)
        if value is None and reference:
            value = self.reference
        text = NONE if value in (None, "") else self.written(value)
        return Cell(text) if isinstance(text, str) else Cell(*text)


def of_models(
    report: Report, columns: Sequence[Column], words: int = 2, models: Sequence[tuple[int, Candidate]] = ()
) -> Table:
    """A row for each model, number 0 being the reference; all of them unless some are given."""
    choice, rows = chosen(report), []
    for number, model in models or ((0, report.reference), *ordered(report)):
        role: Role = "reference" if number == 0 else "chosen" if number == choice else ""
        cells = [column.cell(model, reference=number == 0) for column in columns]
        rows.append(Row((Cell(str(number) if number else "ref"), Cell(model.name), *cells), role))
    return Table(("#", "Candidate", *(column.head for column in columns)), tuple(rows), words)


def of_one(figures: object, columns: Sequence[Column]) -> Table:
    """A single row, without number and name."""
    row = Row(tuple(column.cell(figures) for column in columns))
    return Table(tuple(column.head for column in columns), (row,), words=0)


def task_columns(report: Report) -> list[Column]:
    """Each task score, and its change against the reference in points."""
    columns = []
    for name, every in task_scores(report).items():
        title = score_title(name)
        head = f"{capital(title)} ({every[0].better} is better, {_clips(every)})"
        columns.append(Column(head, f"task.{name}.value", decimals))
        columns.append(Column(f"Change of {title}, points", f"task.{name}.change", points))
    return columns


def _clips(scores: Sequence[TaskScore]) -> str:
    """On how many clips a score was taken, which is the same for all models unless some say so."""
    least, most = (end(score.clips for score in scores) for end in (min, max))
    return clips(most) if least == most else f"{least}–{clips(most)}"


def crossed(report: Report) -> tuple[tuple[int, Candidate], ...]:
    """Candidates whose loss was taken apart: by the encoder alone, by the decoder alone."""
    return tuple(
        (number, model) for number, model in ordered(report) if model.both and model.encoder_only and model.decoder_only
    )


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
    groups: dict[tuple[str, EncoderScores], list[int]] = {}
    for number, model in ordered(report):
        if model.encoder and (exact or any(part.snr_db is not None for part in model.encoder.by_length)):
            groups.setdefault((model.recipe.encoder, model.encoder), []).append(number)
    return tuple(EncoderGroup(name, tuple(numbers), scores) for (name, scores), numbers in groups.items())


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
