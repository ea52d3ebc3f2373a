"""Where audio comes from while it is heard, in small pieces; what time it is comes from outside, for tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np

from dasheng_edge.runtime.audio.read import AudioSource, Waveform, read_audio

RATE_HZ = 16_000  # that every front end takes
PIECE_S = 0.1  # that are handed on at a time: captions and a level are late by no more


class Clock(Protocol):
    """Time, in seconds from any beginning."""

    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The time of this machine."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class Piece:
    """Audio, float32 [n] at 16 kHz with full scale 1; before it, `lost_s` seconds are missing.

    `ends`: nothing follows for now, as its device is gone.
    """

    samples: Waveform
    lost_s: float = 0.0
    ends: bool = False


NOTHING = Piece(np.zeros(0, np.float32))


class Source(Protocol):
    """Audio as it comes."""

    @property
    def name(self) -> str:
        """What to call it."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """The audio, until it ends; each as soon as it is there, and an empty one now and then while there is none.

        Raises:
            AudioError: it cannot be had.
        """
        ...

    def behind_s(self) -> float:
        """How much of it waits to be taken."""
        ...


class FileSource:
    """A file, at the speed of time if there is a clock, else as fast as it is taken."""

    def __init__(self, audio: AudioSource, rate_hz: int, clock: Clock | None = None) -> None:
        self._stream, self._rate_hz, self._clock = read_audio(audio, sample_rate_hz=rate_hz), rate_hz, clock
        self._began, self._taken = 0.0, 0
        self._first = next(self._stream, None)  # what is no audio is refused before anything is done with it

    @property
    def name(self) -> str:
        """The file."""
        return self._stream.name

    def pieces(self) -> Iterator[Piece]:
        """See `Source`."""
        size = round(PIECE_S * self._rate_hz)
        self._began = self._clock.now() if self._clock else 0.0
        first, self._first = self._first, None
        for block in chain([] if first is None else [first], self._stream):
            for start in range(0, len(block), size):
                samples = block[start : start + size]
                self._taken += len(samples)
                if self._clock and (behind_s := self._behind_s(self._clock)) < 0:
                    self._clock.sleep(-behind_s)
                yield Piece(samples)

    def behind_s(self) -> float:
        """See `Source`."""
        return max(0.0, self._behind_s(self._clock)) if self._clock else 0.0

    def _behind_s(self, clock: Clock) -> float:
        return clock.now() - self._began - self._taken / self._rate_hz
