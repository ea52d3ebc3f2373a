"""What is said about a file or a window of it, as JSON shows it; the model of all formats, and of a job's ledger."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, InstanceOf

from dasheng_edge.runtime.names import printable_json

if TYPE_CHECKING:
    from dasheng_edge.runtime.caption import Caption
    from dasheng_edge.runtime.errors import DashengEdgeError

_OF_ANSWER = ("text", "tokens", "finish_reason", "confidence", "reason", "error", "error_type")
_MS_DIGITS, _SPEED_DIGITS, _CONFIDENCE_DIGITS = 3, 2, 4


class Timed(Protocol):
    """A part of a file or of what is heard, as `audio.windows.Span`."""

    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...


class CaptionRow(BaseModel):
    """A caption, or the error of a file; it has the keys that it was made with, in the order of the fields.

    Times are seconds in the file. `InstanceOf` takes names of files that are no UTF-8, which `str` alone refuses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    audio: InstanceOf[str]
    start_s: float | None = None  # of a window; a row without times is about the whole file
    end_s: float | None = None
    clock: str | None = None  # when what is heard live began, ISO 8601
    text: InstanceOf[str] = ""
    tokens: tuple[int, ...] = ()
    finish_reason: Literal["stop", "length"] | None = None
    audio_s: float = 0.0
    prompt_tokens: int = 0
    audio_tokens: int = 0
    timings: Mapping[str, int | float] = {}
    warnings: tuple[InstanceOf[str], ...] = ()
    tokens_per_s: float = 0.0
    confidence: float | None = None  # mean natural log-probability of the answer's tokens
    reason: Literal["silence"] | None = None  # why the text is empty
    changes: tuple[Mapping[str, Any], ...] = ()  # where something sets in, at times of the window
    answers: Mapping[str, Mapping[str, Any]] | None = None  # of several questions: text, confidence ... of each
    error: InstanceOf[str] | None = None
    error_type: str | None = None

    @classmethod
    def of(cls, audio: str, window: Timed | None, caption: Caption) -> CaptionRow:
        """The caption of a file, or of a window of it."""
        fields = dataclasses.asdict(caption)
        fields["timings"] = {key: round(value, _MS_DIGITS) for key, value in fields["timings"].items()}
        if fields.get("confidence") is not None:
            fields["confidence"] = round(fields["confidence"], _CONFIDENCE_DIGITS)
        for rare in ("reason", "changes", "answers"):
            if not fields.get(rare):
                fields.pop(rare, None)
        times = {} if window is None else {"start_s": window.start_s, "end_s": window.end_s}
        speed = round(caption.timings.tokens_per_s, _SPEED_DIGITS)
        return cls.model_validate({"audio": audio, **times, **fields, "tokens_per_s": speed})

    @classmethod
    def of_answers(
        cls, audio: str, window: Timed | None, results: Mapping[str, Caption | DashengEdgeError]
    ) -> CaptionRow:
        """The answers to several questions, with the first of them as the caption; an error where all failed."""
        rows = {
            name: cls.of_error(audio, result) if isinstance(result, Exception) else cls.of(audio, window, result)
            for name, result in results.items()
        }
        first = next((row for row in rows.values() if row.error is None), next(iter(rows.values())))
        if first.error is not None:
            return first
        answers = {
            name: {key: value for key, value in row.fields().items() if key in _OF_ANSWER} for name, row in rows.items()
        }
        warnings = dict.fromkeys(warning for row in rows.values() for warning in row.warnings)
        return cls.model_validate({**first.fields(), "warnings": tuple(warnings), "answers": answers})

    @classmethod
    def of_error(cls, audio: str, error: Exception) -> CaptionRow:
        """Why a file has no caption."""
        return cls(audio=audio, error=str(error), error_type=type(error).__name__)

    def texts(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The answers by the names of questions, or the caption by none."""
        yield from self.answers.items() if self.answers else [("", self.fields())]

    def fields(self) -> dict[str, Any]:
        """The keys that it was made with, for JSON."""
        return self.model_dump(exclude_unset=True)

    def json_line(self) -> str:
        """JSON on one line, which does not steer a terminal."""
        return printable_json(json.dumps(self.fields(), ensure_ascii=False))
