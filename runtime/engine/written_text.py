"""The text of an answer as its tokens come, up to where it is to stop."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol


class Pieces(Protocol):
    """What is needed of a tokenizer."""

    def piece(self, token: int) -> bytes:
        """The bytes of a token; they may end inside a character."""
        ...


class WrittenText:
    """Gives text as soon as it is certain: characters that are complete, and do not begin a text that stops it."""

    def __init__(self, model: Pieces, stop: Sequence[str] = ()) -> None:
        self._model, self._stop = model, tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._written = ""
        self._given = 0  # characters of it
        self._ends: list[int] = []  # of each token, in characters
        self.stopped = False

    @property
    def text(self) -> str:
        """All that was given."""
        return self._written[: self._given]

    @property
    def complete(self) -> int:
        """How many tokens were given to their end, or to where the text stops."""
        if self.stopped:
            return sum(1 for start in [0, *self._ends[:-1]] if start < self._given)
        return sum(1 for end in self._ends if end <= self._given)

    def add(self, token: int) -> str:
        """What is certain now; nothing once it has `stopped`."""
        return "" if self.stopped else self._take(self._decoder.decode(self._model.piece(token)), token=True)

    def finish(self) -> str:
        """There are no more tokens: the rest. Bytes that make no character become U+FFFD."""
        return "" if self.stopped else self._take(self._decoder.decode(b"", final=True), token=False)

    def _take(self, piece: str, *, token: bool) -> str:
        self._written += piece
        if token:
            self._ends.append(len(self._written))
        else:
            self._ends[-1:] = [len(self._written)] * bool(self._ends)
        # No text that stops it begins in what was given.
        places = [place for stop in self._stop if (place := self._written.find(stop, self._given)) >= 0]
        end = min(places, default=len(self._written) - (self._held() if token else 0))
        self.stopped = bool(places)
        given, self._given = self._given, end
        return self._written[given:end]

    def _held(self) -> int:
        """How many characters at the end may be the beginning of a text that stops it."""
        most = max(map(len, self._stop), default=0) - 1
        for length in range(min(most, len(self._written) - self._given), 0, -1):
            if any(stop.startswith(self._written[-length:]) for stop in self._stop):
                return length
        return 0
