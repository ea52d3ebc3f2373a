"""The way of one request: audio -> front end -> encoder -> projector -> rows of the decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.read import AudioSource, ReadAudio, Waveform, describe_audio, read_audio
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.text.decoder import Embeddings
from dasheng_edge.runtime.text.prompt import Segment, Text

from .caption import Caption, Timings
from .errors import AudioTooLongError, PromptError
from .parts import Parts

LEAST_DEVIATION_DB = 0.1  # that is worth a warning: less is 0.0 in it


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


@dataclass(frozen=True)
class Request:
    """What is asked about a clip; None means the bundle's default."""

    audio: AudioSource
    prompt: str | None
    system: str | None
    max_new_tokens: int
    sampling: Sampling
    live: bool = False

    @property
    def read_ms(self) -> float:
        """What reading the audio took before the request was made."""
        return self.audio.reading_ms if isinstance(self.audio, ReadAudio) else 0.0


class Stitch:
    """What becomes of a clip between the parts of a bundle; not for two threads at once."""

    def __init__(self, bundle: Bundle, parts: Parts) -> None:
        self.bundle, self.parts = bundle, parts
        decoder = bundle.decoder_facts
        self.context_length = min(decoder.context_length, parts.decoder.context_length)
        self._rate_hz = bundle.manifest.front_end.sample_rate_hz

    def prefill(self, request: Request, segments: tuple[Segment, ...], meter: Meter, watch: Stopwatch) -> int:
        """Bring prompt and audio into the decoder; how many rows are audio."""
        decoder = self.parts.decoder
        if not request.live:
            embeddings = np.concatenate(list(self.embedded(meter, watch)))
            rows = [segment.tokens if isinstance(segment, Text) else embeddings for segment in segments]
            decoder.prefill(rows, reserve=request.max_new_tokens)
            watch.lap("prefill")
            return len(embeddings)
        place = next(index for index, segment in enumerate(segments) if not isinstance(segment, Text))
        before, after = (
            tuple(token for segment in part if isinstance(segment, Text) for token in segment.tokens)
            for part in (segments[:place], segments[place + 1 :])
        )
        audio_tokens = 0
        decoder.begin(before, reserve=request.max_new_tokens + len(after))
        watch.lap("prefill")
        for embeddings in self.embedded(meter, watch, live=True):
            decoder.append(embeddings, reserve=request.max_new_tokens + len(after))
            watch.lap("prefill")
            audio_tokens += len(embeddings)
        decoder.append(after, reserve=request.max_new_tokens)
        watch.lap("prefill")
        return audio_tokens

    def meter(self, request: Request, segments: tuple[Segment, ...]) -> Meter:
        """The audio, which is refused as soon as it turns out to be longer than the context has room for."""
        taken = text_tokens(segments) + request.max_new_tokens
        room = self.context_length - taken
        if room < 1:
            raise PromptError(
                f"the prompt and {request.max_new_tokens} new tokens take {taken} positions of the decoder's "
                f"{self.context_length} and leave none for audio; use a shorter prompt or fewer new tokens"
            )
        limit = self.bundle.manifest.front_end.samples_for_tokens(room)
        too_long = (
            f"{describe_audio(request.audio)} is longer than {limit / self._rate_hz:.1f} s, which is what "
            f"the decoder's {self.context_length} positions hold beside the prompt; cut it into shorter pieces"
        )
        return Meter(read_audio(request.audio, sample_rate_hz=self._rate_hz), limit, too_long, spent_ms=request.read_ms)

    def embedded(self, meter: Meter, watch: Stopwatch, *, live: bool = False) -> Iterator[Embeddings]:
        """The audio -> one row per audio token, float32 [tokens, llm_dim], a group of chunks at a time."""
        projector = self.parts.audio.projector
        for group in projector.groups(self._chunks(meter, watch, live=live)):
            watch.lap("encoder")
            embeddings = projector.embeddings(group)
            watch.lap("projector")
            yield embeddings
        watch.lap("encoder")  # of a last chunk that was too short for another group

    def _chunks(self, meter: Meter, watch: Stopwatch, *, live: bool) -> Iterator[NDArray[np.float32]]:
        """Patches, float32 [patches, audio_dim], chunk by chunk; `live` does not wait for the end of the clip."""
        audio = self.parts.audio
        running = audio.front_end.running(meter) if live else None
        for features, first in audio.front_end.chunks(meter) if running is None else running:
            watch.lap("front_end")
            yield from audio.encoder.chunks(features, first)
        if running is not None:
            watch.deviation_db = running.deviation_db

    def _warnings(self, meter: Meter, deviation_db: float) -> tuple[str, ...]:
        seconds, comfortable_s = meter.samples / self._rate_hz, self.bundle.prompt_facts.comfortable_s
        warnings = []
        if seconds > comfortable_s:
            length = f"the audio is {seconds:.0f} s long"
            worse = f"this model's captions get worse beyond {comfortable_s:.0f} s"
            warnings.append(f"{length}; {worse}: caption windows of it (--window), or cut it into pieces")
        if deviation_db >= LEAST_DEVIATION_DB:
            louder = "it got louder after parts of it were encoded"
            below = f"quiet bins of those lie up to {deviation_db:.1f} dB below those of the whole clip"
            warnings.append(f"{louder}: {below}; caption it as a file, without --live, for the exact numbers")
        return tuple(warnings)

    def result(
        self,
        text: str,
        tokens: Sequence[int],
        counts: tuple[int, int],
        meter: Meter,
        timings: Timings,
        deviation_db: float = 0.0,
    ) -> Caption:
        """A caption of tokens, of which the last may be one that ends; `counts` are text and audio rows."""
        ended = self.parts.decoder.is_end(tokens[-1])
        return Caption(
            text=text,
            tokens=tuple(tokens[:-1] if ended else tokens),
            finish_reason="stop" if ended else "length",
            audio_s=meter.samples / self._rate_hz,
            prompt_tokens=counts[0],
            audio_tokens=counts[1],
            timings=timings,
            warnings=self._warnings(meter, deviation_db),
        )


def text_tokens(segments: tuple[Segment, ...]) -> int:
    """How many tokens of a prompt are text."""
    return sum(len(segment.tokens) for segment in segments if isinstance(segment, Text))
