"""Where the time of a caption goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from dasheng_edge.runtime.audio.read import Waveform

from .caption import Timings
from .errors import AudioTooLongError


class Stopwatch:
    """Time by stage, in milliseconds; `read_ms` went into reading the audio before."""

    def __init__(self, read_ms: float = 0.0) -> None:
        self._last = perf_counter()
        self._start = self._last - read_ms / 1000
        self.ms: dict[str, float] = {"front_end": read_ms}
        self.deviation_db = 0.0  # of a clip that was encoded while it came, see `RunningFeatures`

    def lap(self, stage: str) -> None:
        """The time since the last lap was spent on this stage."""
        now = perf_counter()
        self.ms[stage] = self.ms.get(stage, 0.0) + 1000.0 * (now - self._last)
        self._last = now

    def total_ms(self) -> float:
        """Since the start."""
        return 1000.0 * (perf_counter() - self._start)

    def timings(self, reading_ms: float, before_ms: float, waited_ms: float, spent_ms: Sequence[float]) -> Timings:
        """After generation: `before_ms` of everything before it, `waited_ms` of that after the last sample."""
        return Timings(
            audio_decode_ms=reading_ms,
            front_end_ms=self.ms["front_end"] - reading_ms,
            encoder_ms=self.ms["encoder"],
            projector_ms=self.ms["projector"],
            prefill_ms=self.ms["prefill"],
            first_token_ms=before_ms + spent_ms[0],
            after_audio_ms=waited_ms + spent_ms[0],
            decode_ms=sum(spent_ms[1:]),
            total_ms=before_ms + sum(spent_ms),
            decode_tokens=len(spent_ms) - 1,
        )


@dataclass
class Meter:
    """Hands audio blocks on, counts their samples and measures how long it takes to make them."""

    blocks: Iterator[Waveform]
    max_samples: int
    too_long: str  # what to say as soon as there are more
    samples: int = 0
    spent_ms: float = 0.0
    ended: float = 0.0  # when the last block had come, on the clock of `perf_counter`

    def __iter__(self) -> Iterator[Waveform]:
        while True:
            start = perf_counter()
            block = next(self.blocks, None)
            self.spent_ms += 1000.0 * (perf_counter() - start)
            if block is None:
                self.ended = perf_counter()
                return
            self.samples += len(block)
            if self.samples > self.max_samples:
                raise AudioTooLongError(self.too_long)
            yield block


def timed_tokens(tokens: Iterator[int], taken: list[int], spent_ms: list[float]) -> Iterator[int]:
    """Hands tokens on; notes each of them and how long it took to make."""
    while True:
        start = perf_counter()
        token = next(tokens, None)
        if token is None:
            return
        spent_ms.append(1000.0 * (perf_counter() - start))
        taken.append(token)
        yield token
