"""The formats that captions are printed in: a class for each, and one table."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dasheng_edge.runtime.names import printable, printable_json

if TYPE_CHECKING:
    from dasheng_edge.runtime.audio.windows import Span
    from dasheng_edge.runtime.caption import Caption


@dataclass(frozen=True)
class CaptionFormat(ABC):
    """How captions of files and of windows of them become lines of text."""

    single_file: bool  # whether there is one file only, so that its name need not be said

    @abstractmethod
    def caption(self, file: str, window: Span | None, caption: Caption) -> str:
        """A caption; `window` is None if the whole file was captioned."""

    def error(self, file: str, error: Exception) -> str:  # noqa: ARG002  # a format may leave errors to stderr
        """Why a file has no caption; empty to say it on stderr alone."""
        return ""


class TextFormat(CaptionFormat):
    """The text, on a line with the file's name and the window's times if there are several.

    What would steer a terminal is escaped, in names and in what the model wrote.
    """

    def label(self, file: str, window: Span | None) -> str:
        """What stands before the text."""
        times = "" if window is None else f"[{clock(window.start_s)}-{clock(window.end_s)}] "
        return ("" if self.single_file else f"{printable(file)}: ") + times

    def piece(self, text: str) -> str:
        """A piece of what the model wrote, which may hold line ends and tabs."""
        return printable(text, keep="\n\t")

    def caption(self, file: str, window: Span | None, caption: Caption) -> str:
        # One line per file or window, so that the output of several can be cut by lines.
        text = caption.text if self.single_file and window is None else " ".join(caption.text.split())
        return self.label(file, window) + self.piece(text)


class JsonFormat(CaptionFormat):
    """A JSON object on one line: the file, the window's times, every field of the caption."""

    def caption(self, file: str, window: Span | None, caption: Caption) -> str:
        times = {} if window is None else {"start_s": window.start_s, "end_s": window.end_s}
        timings = {key: round(value, 3) for key, value in dataclasses.asdict(caption.timings).items()}
        speed = round(caption.timings.tokens_per_s, 2)
        fields = {**dataclasses.asdict(caption), "timings": timings, "tokens_per_s": speed}
        return printable_json(json.dumps({"audio": file, **times, **fields}, ensure_ascii=False))

    def error(self, file: str, error: Exception) -> str:
        why = {"audio": file, "error": str(error), "error_type": type(error).__name__}
        return printable_json(json.dumps(why, ensure_ascii=False))


CAPTION_FORMATS: Mapping[str, type[CaptionFormat]] = {"text": TextFormat, "json": JsonFormat}


def clock(seconds: float) -> str:
    """A time as "1:05", "1:05.5" or "1:00:05"."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    whole = f"{rest:04.1f}" if rest % 1 else f"{int(rest):02d}"
    return f"{hours}:{minutes:02d}:{whole}" if hours else f"{minutes}:{whole}"
