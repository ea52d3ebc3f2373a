"""Inputs -> pieces to caption, whole clips or windows of them, and what the model said about each, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol, TypeAlias

from dasheng_edge.runtime.audio import windows
from dasheng_edge.runtime.audio.read import AudioSource, PartReader
from dasheng_edge.runtime.audio.windows import Span
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.errors import NOT_OF_A_CLIP, DashengEdgeError, clip_error
from dasheng_edge.runtime.output.rows import CaptionRow

from .inputs import Input


@dataclass(frozen=True)
class Reading:
    """How inputs are read, and cut into pieces."""

    windows: tuple[float, float] | None = None  # window and hop in seconds; None: windows of clips that are too long
    live: bool = False  # the audio is captioned while it comes
    strict: bool = False
    track: int | str | None = None


@dataclass(frozen=True)
class Questions:
    """What every piece is asked: one prompt, or several by their names; None is the bundle's."""

    prompt: str | None
    system: str | None
    max_new_tokens: int | None
    sampling: Sampling
    named: Mapping[str, str | None] | None = None  # several, in place of the prompt
    changes: bool = False  # whether it is found out, too, where sounds set in


@dataclass(frozen=True)
class Piece:
    """A clip or a window of it; `error` says why it cannot be read, `known` what it was told before."""

    item: Input
    file: int  # its place among the inputs
    audio: AudioSource = b""
    number: int = 0  # of its windows
    span: Span | None = None
    error: DashengEdgeError | None = None
    known: CaptionRow | None = None

    @property
    def last(self) -> bool:
        """Whether the input ends with it."""
        return self.span is None or self.span.last

    @property
    def window(self) -> Span | None:
        """The part of a file that it is; None if it is the whole."""
        return None if self.span is None or (self.span.whole and not self.item.is_part) else self.span

    def row(self, result: Result) -> CaptionRow:
        """What came of it."""
        if isinstance(result, CaptionRow):
            return result
        if isinstance(result, DashengEdgeError):
            return CaptionRow.of_error(self.item.audio, result)
        if isinstance(result, Caption):
            return CaptionRow.of(self.item.audio, self.window, result)
        return CaptionRow.of_answers(self.item.audio, self.window, result)


_Told: TypeAlias = Caption | DashengEdgeError | dict[str, Caption | DashengEdgeError]
Result: TypeAlias = _Told | CaptionRow
Show: TypeAlias = Callable[[Piece, Iterator[str]], None]


class Results(Protocol):
    """Where rows go."""

    def begin(self, item: Input) -> int | None:
        """Which window of an input comes next; None: it is done. What it raises is the input's error."""

    def known(self, item: Input, number: int) -> CaptionRow | None:
        """What a window was told in an earlier run that kept it before those ahead of it."""

    def keep(self, piece: Piece, row: CaptionRow) -> None:
        """What came of a piece, as soon as it is there: `take` is told of it in its turn."""

    def take(self, piece: Piece, row: CaptionRow) -> None:
        """What came of a piece, in the order of pieces; with an error, its input ends."""

    def note(self, text: str) -> None:
        """What people should know."""


def run(
    captioner: Captioner,
    inputs: Iterable[Input],
    asked: tuple[Questions, Reading],
    results: Results,
    *,
    batch: int,
    show: Show | None = None,
) -> None:
    """Ask about inputs, up to `batch` pieces together; one by one, `show` gets each answer's text as it comes.

    Where parts take turns, several are heard even if answers are made one by one, unless they are to be shown.
    A window that fails ends its file.
    """
    questions, reading = asked
    failed = -1  # the last input that did: they come in their order
    going = (piece for piece in _pieces(captioner, inputs, reading, results) if piece.file != failed)
    came: Iterator[tuple[Piece, Result]]
    ahead = captioner.parts.decoder.settings.memory == "low" and show is None and not reading.live
    if batch > 1 or questions.named or questions.changes or ahead:
        came = _together(captioner, going, questions, batch, results.keep)
    else:
        came = _one_by_one(captioner, going, questions, live=reading.live, show=show or _read_through)
    for piece, result in came:
        if piece.file != failed:
            row = piece.row(result)
            if row.error is not None:
                failed = piece.file
            results.take(piece, row)


def _pieces(captioner: Captioner, inputs: Iterable[Input], reading: Reading, results: Results) -> Iterator[Piece]:
    rate_hz = captioner.bundle.manifest.front_end.sample_rate_hz
    with closing(PartReader(sample_rate_hz=rate_hz, strict=reading.strict, track=reading.track)) as parts:
        for file, item in enumerate(inputs):
            yield from _pieces_of(captioner, Piece(item, file), reading, results, parts)


def _pieces_of(
    captioner: Captioner, first: Piece, reading: Reading, results: Results, parts: PartReader
) -> Iterator[Piece]:
    try:
        number = results.begin(first.item)
        if number is not None:
            yield from _cut(captioner, replace(first, number=number), reading, results, parts)
    except Exception as error:  # noqa: BLE001  # whatever a file does, the others go on
        yield replace(first, error=clip_error(first.item.audio, error))


def _cut(captioner: Captioner, first: Piece, reading: Reading, results: Results, parts: PartReader) -> Iterator[Piece]:
    """The whole clip if the model answers well about all of it, else windows; only windows if they were asked for."""
    item, rate_hz = first.item, captioner.bundle.manifest.front_end.sample_rate_hz
    if reading.live:
        yield replace(first, audio=item.read(rate_hz, strict=reading.strict, track=reading.track))
        return
    if item.is_part and item.error is None:
        source = parts.part(item.path, item.offset_s, item.duration_s)
    else:
        source = item.read(rate_hz, strict=reading.strict, track=reading.track)
    whole_s = 0.0 if reading.windows else captioner.bundle.prompt_facts.comfortable_s
    window_s, hop_s = reading.windows or (windows.WINDOW_S, windows.HOP_S)
    spans = windows.spans(source, rate_hz, whole_s=whole_s, window_s=window_s, hop_s=hop_s, skip=first.number)
    for number, span in enumerate(spans, first.number):
        if not reading.windows and number == first.number and not span.whole:
            why = f"{item.audio} is longer than {whole_s:g} s, beyond which this model's answers get worse"
            results.note(f"{why}; it is captioned in windows of {window_s:g} s every {hop_s:g} s (see --window)")
        yield replace(first, number=number, audio=span.audio, span=span, known=results.known(item, number))


def _together(
    captioner: Captioner, going: Iterator[Piece], questions: Questions, batch: int,
    keep: Callable[[Piece, CaptionRow], None],
) -> Iterator[tuple[Piece, Result]]:  # fmt: skip
    """Pieces in their order with what came of them, which `keep` is told at once; `batch` are decoded together."""
    waiting: deque[Piece] = deque()
    asked: dict[int, Piece] = {}  # of them, by their numbers among those that are asked about
    numbers = count()

    def audio() -> Iterator[AudioSource]:
        for piece in going:
            waiting.append(piece)
            if _result(piece) is None:
                asked[next(numbers)] = piece
                yield piece.audio

    def early(number: int, result: _Told) -> None:
        piece = asked.pop(number)
        keep(piece, piece.row(result))

    results: Generator[Result] | Generator[dict[str, Caption | DashengEdgeError]]
    if questions.named:
        results = captioner.ask_each(
            audio(), questions.named, system=questions.system, max_new_tokens=questions.max_new_tokens,
            sampling=questions.sampling, batch=batch, changes=questions.changes, early=early,
        )  # fmt: skip
    else:
        results = captioner.caption_each(
            audio(), questions.prompt, system=questions.system, max_new_tokens=questions.max_new_tokens,
            sampling=questions.sampling, batch=batch, changes=questions.changes, early=early,
        )  # fmt: skip
    with closing(results):
        for number, result in enumerate(results):
            asked.pop(number, None)
            while (before := _result(waiting[0])) is not None:
                yield waiting.popleft(), before
            yield waiting.popleft(), result
    yield from ((piece, before) for piece in waiting if (before := _result(piece)) is not None)


def _result(piece: Piece) -> Result | None:
    """What is known of a piece without asking."""
    return piece.error or piece.known


def _one_by_one(
    captioner: Captioner, going: Iterator[Piece], questions: Questions, *, live: bool, show: Show
) -> Iterator[tuple[Piece, Result]]:
    """As `_together`, one by one; `show` is given each answer's text as it comes, and reads it to its end."""
    for piece in going:
        if piece.known is not None:
            yield piece, piece.known
            continue
        ended: list[Caption] = []
        try:
            show(piece, _text(captioner, piece, questions, live, ended.append))
            result: Result = ended[0]
        except NOT_OF_A_CLIP:
            raise
        except DashengEdgeError as error:
            result = error
        yield piece, result


def _text(
    captioner: Captioner, piece: Piece, questions: Questions, live: bool, end: Callable[[Caption], None]
) -> Iterator[str]:
    """The answer as it comes; what fails is an error of ours, so that it differs from what printing raises."""
    if piece.error is not None:
        raise piece.error
    try:
        answer = captioner.stream(
            piece.audio, questions.prompt, system=questions.system, max_new_tokens=questions.max_new_tokens,
            sampling=questions.sampling, live=live,
        )  # fmt: skip
        yield from answer
        end(answer.finish())
    except Exception as error:  # noqa: BLE001  # whatever a clip does, the others go on
        failed = clip_error(piece.item.audio, error)
    else:
        return
    raise failed


def _read_through(_: Piece, text: Iterator[str]) -> None:
    for _piece in text:
        pass
