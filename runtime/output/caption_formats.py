"""The formats of captions: a class for each, and one table, which command, jobs and servers read alike."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from dasheng_edge.runtime.names import did_you_mean, known_name, printable

from .rows import CaptionRow

if TYPE_CHECKING:
    from dasheng_edge.runtime.subtitles.cue import Cue, Window

SPEECH = "speech"  # the question whose answer is what is said, which subtitles show without brackets


@dataclass(frozen=True)
class CaptionFormat(ABC):
    """How rows become text, of one file or of several."""

    suffix: ClassVar[str]
    errors: ClassVar[bool] = False  # whether it says why a file has no caption
    single_file: bool = True  # whether there is one file only, so that its name need not be said
    style: str = "sdh"  # of subtitles, a row of `STYLES`
    language: str = "en"  # of their text: that of captions, where no other speech is in them

    @property
    def look(self) -> str:
        """What a file depends on beside rows and format."""
        return ""

    @abstractmethod
    def document(self, rows: Iterable[CaptionRow]) -> Iterator[str]:
        """A whole file, piece by piece."""


class LineFormat(CaptionFormat):
    """One with a line for each row, which can be written as they come."""

    def head(self) -> str:
        """The line before the first; empty if there is none."""
        return ""

    @abstractmethod
    def line(self, row: CaptionRow) -> str:
        """A row, without the line's end; empty if the format leaves it out."""

    def document(self, rows: Iterable[CaptionRow]) -> Iterator[str]:
        yield from (f"{line}\n" for line in chain([self.head()], map(self.line, rows)) if line)


class TextFormat(LineFormat):
    """The text, on a line with the file's name and the window's times if there are several.

    What would steer a terminal is escaped, in names and in what the model wrote.
    """

    suffix = ".txt"

    def label(self, audio: str, times: tuple[float, float] | None) -> str:
        """What stands before the text; `times` are those of a window."""
        shown = "" if times is None else f"[{clock(times[0])}-{clock(times[1])}] "
        return ("" if self.single_file else f"{printable(audio)}: ") + shown

    def piece(self, text: str) -> str:
        """A piece of what the model wrote, which may hold line ends and tabs."""
        return printable(text, keep="\n\t")

    def line(self, row: CaptionRow) -> str:
        if row.error is not None:
            return ""
        times = None if row.start_s is None or row.end_s is None else (row.start_s, row.end_s)
        label = self.label(row.audio, times)
        # One line per file or window, so that the output of several can be cut by lines.
        joined = not self.single_file or times is not None or row.answers is not None
        lines = []
        for name, answer in row.texts():
            text = answer.get("text", "")
            asked = f"{printable(name)}: " if name else ""
            lines.append(label + asked + self.piece(" ".join(text.split()) if joined else text))
        return "\n".join(lines)

    def document(self, rows: Iterable[CaptionRow]) -> Iterator[str]:
        yield from (f"{self.line(row)}\n" for row in rows if row.error is None)  # an empty caption is a line, too


class JsonLinesFormat(LineFormat):
    """A JSON object on one line: the file, the window's times, every field of the caption, or its error."""

    suffix, errors = ".jsonl", True

    def line(self, row: CaptionRow) -> str:
        return row.json_line()


class JsonFormat(JsonLinesFormat):
    """In a file, a list of these objects; line by line, as JSON Lines."""

    suffix = ".json"

    def document(self, rows: Iterable[CaptionRow]) -> Iterator[str]:
        comma = "[\n"
        for row in rows:
            yield comma + row.json_line()
            comma = ",\n"
        yield "[]\n" if comma == "[\n" else "\n]\n"


class CsvFormat(LineFormat):
    """A table with a column for each of a few fields, for spreadsheets."""

    suffix, errors = ".csv", True
    columns: ClassVar = ("audio", "start_s", "end_s", "question", "text", "confidence", "reason", "error", "error_type")

    def head(self) -> str:
        return ",".join(self.columns)

    def line(self, row: CaptionRow) -> str:
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        for name, answer in row.texts():
            cells = {"audio": row.audio, "start_s": row.start_s, "end_s": row.end_s, **answer, "question": name}
            table.writerow([_cell(cells.get(column)) for column in self.columns])
        return out.getvalue().removesuffix("\n")


def _cell(value: object) -> object:
    return printable(value, keep="\n\t") if isinstance(value, str) else value


class SubtitleFormat(CaptionFormat):
    """Subtitles of one file: what its windows say, as cues."""

    @property
    def look(self) -> str:
        return self.style

    def document(self, rows: Iterable[CaptionRow]) -> Iterator[str]:
        yield self.written(self.cues(rows))

    def cues(self, rows: Iterable[CaptionRow]) -> list[Cue]:
        """What is shown when."""
        from dasheng_edge.runtime.subtitles.cues import cues

        sounds: list[Window] = []
        speech: list[Window] = []
        for row in rows:
            if row.error is None:
                name, _ = next(row.texts())
                if name != SPEECH:
                    sounds.append(_subtitle_window(row, row.text, row.changes))
                if row.answers and SPEECH in row.answers:
                    speech.append(_subtitle_window(row, row.answers[SPEECH].get("text", ""), row.changes))
        return cues(sounds, style=self.style, speech=speech)

    @abstractmethod
    def written(self, shown: Sequence[Cue]) -> str:
        """Cues as a file."""


class SrtFormat(SubtitleFormat):
    """SubRip, which every player reads."""

    suffix = ".srt"

    def written(self, shown: Sequence[Cue]) -> str:
        from .subtitle_formats import srt

        return srt(shown)


class VttFormat(SubtitleFormat):
    """WebVTT, for browsers."""

    suffix = ".vtt"

    def written(self, shown: Sequence[Cue]) -> str:
        from .subtitle_formats import vtt

        return vtt(shown)


class TtmlFormat(SubtitleFormat):
    """TTML, for broadcast."""

    suffix = ".ttml"

    @property
    def look(self) -> str:
        return self.style if self.language == "en" else f"{self.style} {self.language}"

    def written(self, shown: Sequence[Cue]) -> str:
        from .subtitle_formats import ttml

        return ttml(shown, self.language)


def _subtitle_window(row: CaptionRow, text: str, changes: Sequence[Mapping[str, Any]] = ()) -> Window:
    from dasheng_edge.runtime.subtitles.cue import Change, Window

    start_s = row.start_s or 0.0
    end_s = start_s + row.audio_s if row.end_s is None else row.end_s
    return Window(start_s, end_s, text, tuple(Change(**change) for change in changes))


CAPTION_FORMATS: Mapping[str, type[CaptionFormat]] = {
    "txt": TextFormat, "json": JsonFormat, "jsonl": JsonLinesFormat, "csv": CsvFormat,
    "srt": SrtFormat, "vtt": VttFormat, "ttml": TtmlFormat,
}  # fmt: skip
_OTHER_NAMES = {"text": "txt"}


def format_names(text: str) -> list[str]:
    """The formats that a list of names with commas means, each once, in their order.

    Raises:
        ValueError: one of them is not known.
    """
    known = [*CAPTION_FORMATS, *_OTHER_NAMES]
    names = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        if (name := known_name(word, known)) is None:
            raise ValueError(f"{word!r} is not known; {did_you_mean(word, known)}")
        names.append(_OTHER_NAMES.get(name, name))
    if not names:
        raise ValueError(f"no format is named; expected one of {', '.join(known)}")
    return list(dict.fromkeys(names))


def clock(seconds: float) -> str:
    """A time as "1:05", "1:05.5" or "1:00:05"."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    whole = f"{rest:04.1f}" if rest % 1 else f"{int(rest):02d}"
    return f"{hours}:{minutes:02d}:{whole}" if hours else f"{minutes}:{whole}"
