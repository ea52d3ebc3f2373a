"""Long audio in windows: each is captioned for itself, so that memory stays flat and answers stay good."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from dasheng_edge.runtime.errors import AudioError

from .read import AudioSource, AudioStream, ReadAudio, describe_audio, read_audio

WINDOW_S, HOP_S = 30.0, 15.0
MIN_HOP_S = 0.5  # a shorter one is a mistake
MAX_WINDOW_S = 86_400.0  # a day: longer than any decoder hears, and 5.5 GB of samples


@dataclass(frozen=True)
class Span:
    """A part of a clip, at the times of its file (see `AudioStream.start_s`); `audio` is what the captioner takes."""

    start_s: float
    end_s: float
    audio: ReadAudio
    whole: bool  # whether it is the whole clip
    last: bool = True  # whether the clip ends with it


def check_windows(window_s: float, hop_s: float) -> None:
    """Refuse windows that leave gaps or do not move on.

    Raises:
        AudioError: they do.
    """
    if not MIN_HOP_S <= hop_s <= window_s <= MAX_WINDOW_S:  # written so that NaN is refused, too
        raise AudioError(
            f"the window is {window_s:g} s and moves on by {hop_s:g} s; expected a hop of at least {MIN_HOP_S:g} s and "
            f"no longer than the window, and a window of at most {MAX_WINDOW_S:.0f} s"
        )


def spans(
    audio: AudioSource,
    rate_hz: int,
    *,
    whole_s: float = 0.0,
    window_s: float = WINDOW_S,
    hop_s: float = HOP_S,
    skip: int = 0,
) -> Iterator[Span]:
    """The whole clip, if it is at most `whole_s` (and a day) long, or else windows of `window_s` every `hop_s`.

    The last window ends with the clip, and may be shorter. No more of the clip is in memory than `whole_s`, or one
    window, and what `read_audio` reads at a time. What it warns of goes with the next window, and with the last
    what is known at the end. The first `skip` windows are read and left out.

    Raises:
        AudioError: the audio cannot be read, or the windows make no sense.
    """
    check_windows(window_s, hop_s)
    whole_s = min(whole_s, MAX_WINDOW_S)
    source = _Buffer(read_audio(audio, sample_rate_hz=rate_hz), rate_hz, describe_audio(audio))
    if whole_s > 0:
        source.fill(int(whole_s * rate_hz) + 1)
        if len(source.samples) <= whole_s * rate_hz:
            yield source.span(len(source.samples), whole=True)
            return
    window, hop = round(window_s * rate_hz), round(hop_s * rate_hz)
    while True:
        source.fill(window + 1)  # one more says whether this is the last
        ended = len(source.samples) <= window
        if skip > 0:
            skip -= 1
        else:
            whole = ended and not source.start
            yield source.span(min(window, len(source.samples)), whole=whole, last=ended)
        if ended:
            return
        source.drop(hop)


class _Buffer:
    """The samples of a clip from `start` on, as far as they were read."""

    def __init__(self, stream: AudioStream, rate_hz: int, name: str) -> None:
        self._stream, self._rate_hz, self._name = stream, rate_hz, name
        self._warned = 0  # how many of the warnings went with a span
        self.samples = np.zeros(0, np.float32)
        self.start = 0
        self._reading_ms = 0.0  # since the last span

    def fill(self, count: int) -> None:
        """Read on until there are so many samples, or the clip ends."""
        start = perf_counter()
        parts, length = [self.samples], len(self.samples)
        while length < count and (block := next(self._stream, None)) is not None:
            parts.append(block)
            length += len(block)
        self.samples = np.concatenate(parts)
        self._reading_ms += 1000.0 * (perf_counter() - start)

    def span(self, count: int, *, whole: bool, last: bool = True) -> Span:
        warnings = self._stream.warnings[self._warned :]
        self._warned += len(warnings)
        start_s, end_s = (self._stream.start_s + at / self._rate_hz for at in (self.start, self.start + count))
        read = ReadAudio(self.samples[:count].copy(), self._reading_ms, self._name, warnings, start_s)
        self._reading_ms = 0.0
        return Span(start_s, end_s, read, whole, last)

    def drop(self, count: int) -> None:
        self.samples = self.samples[count:].copy()
        self.start += count
