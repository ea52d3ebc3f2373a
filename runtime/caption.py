"""The result of captioning: the text, why it ended, and how long each stage took."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from dasheng_edge.runtime.machine.forks import Home
from dasheng_edge.runtime.subtitles.cue import Change
from dasheng_edge.runtime.text.model import Tokens

from .errors import CaptionerBusyError


@dataclass(frozen=True)
class Timings:
    """Wall-clock time of one caption by stage, in milliseconds."""

    audio_decode_ms: float  # with resampling
    front_end_ms: float
    encoder_ms: float
    projector_ms: float
    prefill_ms: float
    first_token_ms: float  # from the call to the first token, all of the above included
    after_audio_ms: float  # from the last sample to the first token
    decode_ms: float  # from the first token to the last
    total_ms: float
    decode_tokens: int  # that were generated in `decode_ms`: all but the first
    prefill_rows: int = 0  # of the prompt that were decoded in `prefill_ms`: not those that were there

    @property
    def tokens_per_s(self) -> float:
        """Speed of generation; 0 if only one token was generated."""
        return 1000.0 * self.decode_tokens / self.decode_ms if self.decode_tokens else 0.0


@dataclass(frozen=True)
class Caption:
    """What the model said about one clip."""

    text: str
    tokens: Tokens  # without the token that ended generation
    # The model ended by itself, or was cut: at `max_new_tokens`, or where it repeated itself; then `warnings` say so.
    finish_reason: Literal["stop", "length"]
    audio_s: float
    prompt_tokens: int  # text tokens of the prompt
    audio_tokens: int  # rows of audio embeddings in the prompt
    timings: Timings
    warnings: tuple[str, ...] = ()
    # Mean natural logarithm of the probabilities that the model gave to its tokens and to the one that ended them: 0 is
    # certain, -1 is 37 % a token. As the model itself sees it, before temperature and penalties. None where tokens are
    # chosen on a GPU, which keeps the probabilities.
    confidence: float | None = None
    reason: Literal["silence"] | None = None  # why the text is empty: there is nothing in the clip, so none was asked
    changes: tuple[Change, ...] = ()  # where something sets in, at times of the clip, if that was asked for


_Result = TypeVar("_Result")


class TextStream(Iterator[str], Generic[_Result]):
    """Pieces of an answer as they are generated.

    Work starts with the first piece. The captioner is busy until the stream is exhausted, closed or dropped.
    """

    def __init__(self, run: Generator[str, None, _Result]) -> None:
        self._run = run
        self._result: _Result | None = None
        self._home = Home("caption stream")

    def __next__(self) -> str:
        self._home.check()
        try:
            return next(self._run)
        except StopIteration as stop:
            self._result = self._result or stop.value
            raise

    def finish(self) -> _Result:
        """Read the rest and return the whole answer.

        Raises:
            CaptionerBusyError: the stream or its captioner was closed, or an error ended it, before its end.
        """
        for _ in self:
            pass
        if self._result is None:
            raise CaptionerBusyError("the stream was ended before the caption was complete; start a new one")
        return self._result

    def close(self) -> None:
        """Stop early and free the captioner; harmless when repeated."""
        self._run.close()

    @property
    def _whole(self) -> _Result:
        if self._result is None:
            raise RuntimeError("the caption is complete only after the stream was read to its end")
        return self._result


class CaptionStream(TextStream[Caption]):
    """Pieces of a caption as they are generated; once exhausted, `caption` holds all of it."""

    @property
    def caption(self) -> Caption:
        """The whole caption.

        Raises:
            RuntimeError: the stream was not read to its end.
        """
        return self._whole
