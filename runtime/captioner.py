"""The stitch: audio -> front end -> encoder -> projector -> decoder -> `Caption`."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Literal

import numpy as np

from .audio import AudioSource, Waveform, describe_audio, read_audio
from .bundle import DECODER, PROJECTOR, Bundle, Sampling
from .decoder import Decoder, Embeddings
from .devices import Device, checked_device, checked_threads
from .embedder import AudioParts
from .encoder import Projector
from .errors import AudioTooLongError, CaptionerBusyError, PromptError
from .prefix_cache import PrefixCache, cache_folder, prefix_model
from .prompt import PromptBuilder, Segment, Text
from .text_model import Tokens


@dataclass(frozen=True)
class Timings:
    """Wall-clock time of one caption by stage, in milliseconds."""

    audio_decode_ms: float  # with resampling
    front_end_ms: float
    encoder_ms: float
    projector_ms: float
    prefill_ms: float
    first_token_ms: float  # from the call to the first token, all of the above included
    decode_ms: float  # from the first token to the last
    total_ms: float
    decode_tokens: int  # that were generated in `decode_ms`: all but the first

    @property
    def tokens_per_s(self) -> float:
        """Speed of generation; 0 where only one token was generated."""
        return 1000.0 * self.decode_tokens / self.decode_ms if self.decode_tokens else 0.0


@dataclass(frozen=True)
class Caption:
    """What the model said about one clip."""

    text: str
    tokens: Tokens  # without the token that ended generation
    finish_reason: Literal["stop", "length"]  # the model ended by itself, or `max_new_tokens` was reached
    audio_s: float
    prompt_tokens: int  # text tokens of the prompt
    audio_tokens: int  # rows of audio embeddings in the prompt
    timings: Timings
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parts:
    """The opened sessions of a bundle."""

    audio: AudioParts
    projector: Projector
    decoder: Decoder
    prompts: PromptBuilder

    @classmethod
    def open(cls, bundle: Bundle, *, device: Device, threads: int | None) -> Parts:
        """Open all parts on one device.

        Raises `BundleKindError` where the bundle has no decoder, and what `onnx_session`, `Decoder.open` and
        `PromptBuilder` raise.
        """
        device, threads, (stored, facts) = checked_device(device), checked_threads(threads), bundle.text_facts()
        audio = AudioParts.open(bundle, device=device, threads=threads)
        spec = bundle.manifest.front_end
        projector = Projector(bundle.graph(PROJECTOR, device), spec, device=device, threads=threads)
        decoder = Decoder.open(bundle.path(DECODER), n_threads=threads, device=device, kv_type=stored.kv_type)
        prompts = PromptBuilder(decoder.chat_template, facts, decoder)
        return cls(audio, projector, decoder, prompts)


class _Stopwatch:
    """Time by stage, in milliseconds."""

    def __init__(self) -> None:
        self._start = self._last = perf_counter()
        self.ms: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """The time since the last lap was spent on this stage."""
        now = perf_counter()
        self.ms[stage] = self.ms.get(stage, 0.0) + 1000.0 * (now - self._last)
        self._last = now

    def total_ms(self) -> float:
        """Since the start."""
        return 1000.0 * (perf_counter() - self._start)


@dataclass
class _Meter:
    """Hands audio blocks on, counts their samples and measures how long it takes to make them."""

    blocks: Iterator[Waveform]
    max_samples: int
    too_long: str  # what to say as soon as there are more
    samples: int = 0
    spent_ms: float = 0.0

    def __iter__(self) -> Iterator[Waveform]:
        while True:
            start = perf_counter()
            block = next(self.blocks, None)
            self.spent_ms += 1000.0 * (perf_counter() - start)
            if block is None:
                return
            self.samples += len(block)
            if self.samples > self.max_samples:
                raise AudioTooLongError(self.too_long)
            yield block


def _timed(tokens: Iterator[int], taken: list[int], spent_ms: list[float]) -> Iterator[int]:
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
class _Request:
    audio: AudioSource
    prompt: str | None
    system: str | None
    max_new_tokens: int
    sampling: Sampling


class CaptionStream(Iterator[str]):
    """Pieces of a caption as they are generated; once exhausted, `caption` holds the whole.

    Work starts with the first piece. The captioner is busy until the stream is exhausted, closed or dropped.
    """

    def __init__(self, run: Generator[str, None, Caption]) -> None:
        self._run = run
        self._caption: Caption | None = None

    def __next__(self) -> str:
        try:
            return next(self._run)
        except StopIteration as stop:
            self._caption = self._caption or stop.value
            raise

    def finish(self) -> Caption:
        """Read the rest and return the whole caption.

        Raises:
            CaptionerBusyError: the stream or its captioner was closed, or an error ended it, before its end.
        """
        for _ in self:
            pass
        if self._caption is None:
            raise CaptionerBusyError("the stream was ended before the caption was complete; start a new one")
        return self._caption

    def close(self) -> None:
        """Stop early and free the captioner; harmless when repeated."""
        self._run.close()

    @property
    def caption(self) -> Caption:
        """The whole caption.

        Raises:
            RuntimeError: the stream was not read to its end.
        """
        if self._caption is None:
            raise RuntimeError("the caption is complete only after the stream was read to its end")
        return self._caption


class Captioner:
    """Captions clips with one bundle, one at a time.

    Not for two threads at once: the second one gets `CaptionerBusyError` instead of a mixed-up caption.
    Open one captioner per thread, or hold a lock of your own.
    """

    def __init__(self, bundle: Bundle, parts: Parts) -> None:
        self.bundle = bundle
        self.parts = parts
        decoder, _ = bundle.text_facts()
        self.context_length = min(decoder.context_length, parts.decoder.context_length)
        self._rate_hz = bundle.manifest.front_end.sample_rate_hz
        self._lock = threading.Lock()
        self._streams: weakref.WeakSet[CaptionStream] = weakref.WeakSet()
        self._closed = False

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: Device = "cpu",
        threads: int | None = None,
        check_sha256: bool = True,
    ) -> Captioner:
        """Open a bundle; `threads` None means one for each usable core.

        `check_sha256=False` saves reading every file once more; sizes are checked in any case.
        Raises what `Bundle.open` and `Parts.open` raise, all of them `DashengEdgeError`.
        """
        bundle = Bundle.open(path, check_sha256=check_sha256)
        parts = Parts.open(bundle, device=device, threads=threads)
        parts.decoder.prefixes = PrefixCache(cache_folder(), prefix_model(bundle, device))
        return cls(bundle, parts)

    def __enter__(self) -> Captioner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder; a stream that was not read to its end is closed. Harmless when repeated.

        Raises:
            CaptionerBusyError: another thread is captioning.
        """
        busy = "cannot close the captioner while another thread is captioning"
        try:
            for stream in list(self._streams):
                stream.close()
        except (ValueError, RuntimeError):  # "generator already executing", "set changed size during iteration"
            raise CaptionerBusyError(busy) from None
        if not self._lock.acquire(blocking=False):  # a caption that began since
            raise CaptionerBusyError(busy)
        try:
            self._closed = True
            self.parts.decoder.close()
        finally:
            self._lock.release()

    def caption(
        self,
        audio: AudioSource,
        prompt: str | None = None,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> Caption:
        """Caption one clip; arguments and errors as in `stream`."""
        stream = self.stream(audio, prompt, system=system, max_new_tokens=max_new_tokens, sampling=sampling)
        return stream.finish()

    def stream(
        self,
        audio: AudioSource,
        prompt: str | None = None,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> CaptionStream:
        """Caption one clip piece by piece. None means the bundle's default, and `system=""` no system turn.

        `audio` is a path, bytes, a binary file object or `(array, sample_rate)`; see `read_audio`.

        Raises (here or with the first piece):
            AudioError: the audio cannot be read, or is longer than the context has room for.
            PromptError: the prompt cannot be rendered, or leaves no room for audio.
            CaptionerBusyError: the captioner is closed, or another caption is under way.
            DecoderError, DeviceError: llama.cpp or ONNX Runtime failed.
        """
        _, facts = self.bundle.text_facts()
        limit = facts.max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise PromptError(f"max_new_tokens is {limit}; expected at least 1")
        stream = CaptionStream(self._run(_Request(audio, prompt, system, limit, sampling or facts.sampling)))
        self._streams.add(stream)
        return stream

    def _run(self, request: _Request) -> Generator[str, None, Caption]:
        if not self._lock.acquire(blocking=False):
            raise CaptionerBusyError(
                "the captioner is busy with another caption; finish or close that one first, "
                "or open one captioner per thread"
            )
        try:
            if self._closed:
                raise CaptionerBusyError("the captioner is closed; open a new one")
            return (yield from self._caption(request))
        finally:
            self._lock.release()

    def _caption(self, request: _Request) -> Generator[str, None, Caption]:
        parts, watch = self.parts, _Stopwatch()
        segments = parts.prompts.build(request.prompt, system=request.system)
        watch.lap("prompt")
        meter = self._meter(request, segments)
        embeddings = self._embed(meter, watch)
        rows = [segment.tokens if isinstance(segment, Text) else embeddings for segment in segments]
        parts.decoder.prefill(rows, reserve=request.max_new_tokens)
        watch.lap("prefill")
        before_ms = watch.total_ms()
        tokens: list[int] = []
        spent_ms: list[float] = []
        pieces: list[str] = []
        generated = parts.decoder.generate(request.max_new_tokens, request.sampling)
        for piece in parts.decoder.text_pieces(_timed(generated, tokens, spent_ms)):
            if piece:
                pieces.append(piece)
                yield piece
        ended = parts.decoder.is_end(tokens[-1])
        return Caption(
            text="".join(pieces),
            tokens=tuple(tokens[:-1] if ended else tokens),
            finish_reason="stop" if ended else "length",
            audio_s=meter.samples / self._rate_hz,
            prompt_tokens=_text_tokens(segments),
            audio_tokens=len(embeddings),
            timings=Timings(
                audio_decode_ms=meter.spent_ms,
                front_end_ms=watch.ms["front_end"] - meter.spent_ms,
                encoder_ms=watch.ms["encoder"],
                projector_ms=watch.ms["projector"],
                prefill_ms=watch.ms["prefill"],
                first_token_ms=before_ms + spent_ms[0],
                decode_ms=sum(spent_ms[1:]),
                total_ms=before_ms + sum(spent_ms),
                decode_tokens=len(spent_ms) - 1,
            ),
            warnings=self._warnings(meter),
        )

    def _meter(self, request: _Request, segments: tuple[Segment, ...]) -> _Meter:
        """The audio, which is refused as soon as it turns out to be longer than the context has room for."""
        taken = _text_tokens(segments) + request.max_new_tokens
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
        return _Meter(read_audio(request.audio, sample_rate_hz=self._rate_hz), limit, too_long)

    def _embed(self, meter: _Meter, watch: _Stopwatch) -> Embeddings:
        """The audio -> one row per audio token, float32 [tokens, llm_dim]."""
        features = self.parts.audio.front_end.features(meter)
        watch.lap("front_end")
        encoder, projector = self.parts.audio.encoder, self.parts.projector
        rows = []
        for group in projector.groups(encoder.chunks(features)):
            watch.lap("encoder")
            rows.append(projector.embeddings(group))
            watch.lap("projector")
        watch.lap("encoder")  # of a last chunk that was too short for another group
        return np.concatenate(rows)

    def _warnings(self, meter: _Meter) -> tuple[str, ...]:
        seconds, comfortable_s = meter.samples / self._rate_hz, self.bundle.text_facts()[1].comfortable_s
        if seconds <= comfortable_s:
            return ()
        length = f"the audio is {seconds:.0f} s long"
        return (f"{length}; this model's captions get worse beyond {comfortable_s:.0f} s: cut it into pieces",)


def _text_tokens(segments: tuple[Segment, ...]) -> int:
    return sum(len(segment.tokens) for segment in segments if isinstance(segment, Text))
