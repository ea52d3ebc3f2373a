"""One request on its way: audio -> front end -> encoder -> projector -> rows of the prompt -> decoder -> text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast

import numpy as np
from pydantic import ValidationError

from dasheng_edge.runtime.audio.encoder import Feed, chunk_feeds
from dasheng_edge.runtime.audio.front_end import Features, RunningFeatures
from dasheng_edge.runtime.audio.read import AudioSource, AudioStream, ReadAudio, Waveform, describe_audio, read_audio
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.text.decoder import Embeddings
from dasheng_edge.runtime.text.model import Tokens
from dasheng_edge.runtime.text.sampler import phrase_of_loop
from dasheng_edge.runtime.text.sequences import Answer

from .caption import Caption, Timings
from .errors import AudioTooLongError, PromptError
from .parts import Parts

MIN_DEVIATION_DB = 0.1  # below, a warning would say 0.0 dB
READ_AHEAD_S = 60.0  # of audio that is kept as samples before it is heard: 4 MB
MIN_LOOP_TOKENS = 16  # of a cut answer that is said to go round in a loop


@dataclass(frozen=True)
class Request:
    """What is asked about a clip; None means the bundle's default.

    Raises:
        PromptError: something is of another type, or out of range.
    """

    audio: AudioSource
    prompt: str | None
    system: str | None
    max_new_tokens: int
    sampling: Sampling
    live: bool = False

    @property
    def name(self) -> str:
        """The audio, for messages."""
        return describe_audio(self.audio)

    def __post_init__(self) -> None:
        for name, text in (("prompt", self.prompt), ("system text", self.system)):
            if not isinstance(text, str | None):
                raise PromptError(f"the {name} is of type {type(text).__name__}; expected a string, or None")
        check_count("max_new_tokens", self.max_new_tokens)
        if not isinstance(self.sampling, Sampling):
            raise PromptError(f"sampling is of type {type(self.sampling).__name__}; expected Sampling, or None")
        try:
            Sampling.model_validate(self.sampling.model_dump(warnings=False))  # `model_copy` and its kind check nothing
        except ValidationError as error:
            first = error.errors()[0]
            where = first["loc"][0] if first["loc"] else "sampling"
            raise PromptError(f"{where} of sampling is {first['input']!r}: {first['msg']}") from error


def asked(
    bundle: Bundle,
    prompt: str | None,
    system: str | None,
    max_new_tokens: int | None,
    sampling: Sampling | None,
) -> Request:
    """What is asked about any audio, with the bundle's own limit and sampling where none are given.

    Raises:
        PromptError: something is of another type, or out of range.
    """
    facts = bundle.prompt_facts
    limit = facts.max_new_tokens if max_new_tokens is None else max_new_tokens
    return Request(b"", prompt, system, limit, facts.sampling if sampling is None else sampling)


def check_count(name: str, value: object, most: int | None = None) -> None:
    """Refuse what is no whole number from 1 to `most`.

    Raises:
        PromptError: it is none.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not 1 <= cast("int", value) <= (most or cast("int", value)):
        expected = "at least 1" if most is None else f"1 to {most}"
        raise PromptError(f"{name} is {value!r}; expected {expected}{'' if whole else ', as a whole number'}")


class RunningRequest:
    """A request on its way through the parts of a bundle, and how long each stage took.

    One at a time: `prefill`, `generate` and `caption`, in this order. Several together: `rows` of each, which are
    decoded elsewhere, and `answered`. Not for two threads at once.

    Raises:
        PromptError: the prompt cannot be rendered, or leaves no room for audio.
    """

    def __init__(self, bundle: Bundle, parts: Parts, request: Request) -> None:
        self.name = request.name
        self._parts, self._request, self._front_end = parts, request, bundle.manifest.front_end
        self._decoder_facts, self._prompt_facts = bundle.decoder_facts, bundle.prompt_facts
        read_ms = request.audio.reading_ms if isinstance(request.audio, ReadAudio) else 0.0
        self._ms = {"front_end": read_ms}  # by stage; reading the audio is a part of the first
        self._last = perf_counter()
        self._prompt = parts.prompts.build(request.prompt, system=request.system)
        self._lap("prompt")
        self._audio = self._audio_blocks(read_ms)
        self._spectrograms: list[tuple[Features, int]] = []  # of all of the clip, if they were computed ahead
        self._audio_tokens = 0
        self._deviation_db = 0.0  # of the spectrogram, from that of the whole clip; see `RunningFeatures`
        self._before_ms = self._waited_ms = 0.0  # before the first token: since the call, and since the last sample
        self._tokens: list[int] = []  # the last may be one that ends the answer
        self._token_ms: list[float] = []
        self._confidence: float | None = None

    def _lap(self, stage: str) -> None:
        """The time since the last lap was spent on this stage."""
        now = perf_counter()
        self._ms[stage] = self._ms.get(stage, 0.0) + 1000.0 * (now - self._last)
        self._last = now

    def _audio_blocks(self, read_ms: float) -> _AudioBlocks:
        """The audio, which is refused as soon as it is longer than the decoder has room for."""
        audio, rate_hz = self._request.audio, self._front_end.sample_rate_hz
        positions = min(self._decoder_facts.context_length, self._parts.decoder.context_length)
        taken = self._prompt.text_tokens + self._request.max_new_tokens
        if taken >= positions:
            raise PromptError(
                f"the prompt and {self._request.max_new_tokens} new tokens take {taken} positions of the decoder's "
                f"{positions} and leave none for audio; use a shorter prompt or fewer new tokens"
            )
        max_samples = self._front_end.samples_for_tokens(positions - taken)
        too_long = (
            f"{self.name} is longer than {max_samples / rate_hz:.1f} s, which is what the decoder's "
            f"{positions} positions hold beside the prompt; cut it into shorter pieces"
        )
        return _AudioBlocks(read_audio(audio, sample_rate_hz=rate_hz), max_samples, too_long, read_ms)

    def _features(self) -> Iterator[tuple[Features, int]]:
        """Spectrograms chunk by chunk, each with its first patch; with `live`, before the clip has ended."""
        if self._spectrograms:
            yield from self._spectrograms
            return
        front_end = self._parts.audio.front_end
        chunks = RunningFeatures(front_end, self._audio) if self._request.live else front_end.chunks(self._audio)
        for features in chunks:
            self._lap("front_end")
            yield features
        if isinstance(chunks, RunningFeatures):
            self._deviation_db = chunks.deviation_db

    def _embeddings(self) -> Iterator[Embeddings]:
        """One row per audio token, float32 [tokens, llm_dim], a group of chunks at a time."""
        encoder, projector = self._parts.audio.encoder, self._parts.audio.projector
        spec, live = self._front_end, self._request.live
        feeds = (feed for features, first in self._features() for feed in chunk_feeds(spec, features, first))
        for group in projector.groups(encoder.stream(feeds, most=1 if live else None)):
            self._lap("encoder")
            embeddings = projector.embeddings(group)
            self._lap("projector")
            self._audio_tokens += len(embeddings)
            yield embeddings
        self._lap("encoder")  # of a last chunk that was too short for another group

    def read_ahead(self) -> None:
        """Read the audio, or the beginning of long audio, in another thread than hears it.

        Raises:
            AudioError: it cannot be read, or is longer than the context has room for.
        """
        before_ms = self._audio.read_ms
        self._audio.read_ahead(int(READ_AHEAD_S * self._front_end.sample_rate_hz))
        self._ms["front_end"] += self._audio.read_ms - before_ms

    def listen(self) -> None:
        """Compute the spectrograms of what was read ahead, if that was all, in another thread than encodes them.

        Raises:
            DeviceError: ONNX Runtime failed.
        """
        if self._audio.ended_s:
            self._last = perf_counter()
            self._spectrograms = list(self._features())

    def rows(self) -> list[Tokens | Embeddings]:
        """The prompt with the embeddings of all audio, for the decoder.

        Raises:
            AudioError: the audio cannot be read, or is longer than the context has room for.
            DeviceError: ONNX Runtime failed.
        """
        self._last = perf_counter()
        return self._prompt.rows(np.concatenate(list(self._embeddings())))

    def feeds(self) -> list[Feed]:
        """What the encoder is given for each chunk; none unless the request has listened."""
        spec = self._front_end
        return [feed for chunk, first in self._spectrograms for feed in chunk_feeds(spec, chunk, first)]

    def heard(self, embeddings: Embeddings, *, encoder_ms: float, projector_ms: float) -> list[Tokens | Embeddings]:
        """As `rows`, where the `feeds` were encoded with those of other requests; the times are this one's share."""
        self._ms |= {"encoder": encoder_ms, "projector": projector_ms}
        self._audio_tokens = len(embeddings)
        return self._prompt.rows(embeddings)

    def prefill(self) -> None:
        """Bring prompt and audio into the decoder; with `live`, chunk by chunk while the audio comes.

        Raises what `rows` and `Decoder.prefill` raise.
        """
        decoder, reserve = self._parts.decoder, self._request.max_new_tokens
        if self._request.live:
            before, after = self._prompt.around_audio()
            decoder.begin(before, reserve=reserve + len(after))
            self._lap("prefill")
            for embeddings in self._embeddings():
                decoder.append(embeddings, reserve=reserve + len(after))
                self._lap("prefill")
            decoder.append(after, reserve=reserve)
        else:
            decoder.prefill(self.rows(), reserve=reserve)
        self._lap("prefill")
        self._before_ms = sum(self._ms.values())
        self._waited_ms = 1000.0 * (perf_counter() - self._audio.ended_s)

    def generate(self) -> Iterator[str]:
        """Pieces of the answer as they come.

        Raises what `Decoder.generate` raises.
        """
        decoder, request = self._parts.decoder, self._request
        tokens = self._timed(decoder.generate(request.max_new_tokens, request.sampling))
        yield from filter(None, decoder.text_pieces(tokens))

    def _timed(self, tokens: Iterator[int]) -> Iterator[int]:
        while True:
            start = perf_counter()
            token = next(tokens, None)
            if token is None:
                return
            self._token_ms.append(1000.0 * (perf_counter() - start))
            self._tokens.append(token)
            self._confidence = self._parts.decoder.confidence
            yield token

    def answered(self, answer: Answer) -> Caption:
        """The caption of rows that were decoded with those of other requests."""
        self._ms["prefill"] = answer.prefill_ms
        self._before_ms = sum(self._ms.values())
        self._waited_ms = self._before_ms - self._audio.read_ms
        self._tokens, self._token_ms = list(answer.tokens), list(answer.spent_ms)
        self._confidence = answer.confidence
        return self.caption()

    def caption(self) -> Caption:
        """The whole caption, once all is generated."""
        ended = self._parts.decoder.is_end(self._tokens[-1])
        ms, read_ms, token_ms = self._ms, self._audio.read_ms, self._token_ms
        timings = Timings(
            audio_decode_ms=read_ms,
            front_end_ms=ms["front_end"] - read_ms,
            encoder_ms=ms["encoder"],
            projector_ms=ms["projector"],
            prefill_ms=ms["prefill"],
            first_token_ms=self._before_ms + token_ms[0],
            after_audio_ms=self._waited_ms + token_ms[0],
            decode_ms=sum(token_ms[1:]),
            total_ms=self._before_ms + sum(token_ms),
            decode_tokens=len(token_ms) - 1,
        )
        return Caption(
            text=self._parts.decoder.detokenize(self._tokens),
            tokens=tuple(self._tokens[:-1] if ended else self._tokens),
            finish_reason="stop" if ended else "length",
            audio_s=self._audio.samples / self._front_end.sample_rate_hz,
            prompt_tokens=self._prompt.text_tokens,
            audio_tokens=self._audio_tokens,
            timings=timings,
            warnings=tuple(self._warnings()),
            confidence=self._confidence,
        )

    def _warnings(self) -> Iterator[str]:
        yield from self._audio.blocks.warnings
        yield from self._cut_warnings()
        seconds, comfortable_s = self._audio.samples / self._front_end.sample_rate_hz, self._prompt_facts.comfortable_s
        if seconds > comfortable_s:
            length = f"the audio is {seconds:.0f} s long"
            worse = f"this model's captions get worse beyond {comfortable_s:.0f} s"
            yield f"{length}; {worse}: caption windows of it (--window), or cut it into pieces"
        if self._deviation_db >= MIN_DEVIATION_DB:
            louder = "it got louder after parts of it were encoded"
            below = f"quiet bins of those lie up to {self._deviation_db:.1f} dB below those of the whole clip"
            yield f"{louder}: {below}; caption it as a file, without --live, for the exact numbers"

    def _cut_warnings(self) -> Iterator[str]:
        """Why the answer ends although the model had more to say."""
        tokens, limit = self._tokens, self._request.max_new_tokens
        if self._parts.decoder.is_end(tokens[-1]):
            return
        if size := phrase_of_loop(tokens) or phrase_of_loop(tokens, MIN_LOOP_TOKENS):
            phrase = self._parts.decoder.detokenize(tokens[-size:]).strip()
            ended = "" if len(tokens) == limit else f", so it was ended after {len(tokens)} tokens"
            yield (
                f"the answer says {phrase!r} over and over{ended}; try no_repeat_ngram_size 4 "
                "(--no-repeat-ngram-size 4), or a repetition penalty of 1.1"
            )
        if len(tokens) == limit:
            yield f"the answer was cut at {limit} tokens; allow more (--max-new-tokens) to get all of it"


@dataclass
class _AudioBlocks:
    """Hands the blocks of a clip on, counts their samples and measures how long it takes to read them."""

    blocks: AudioStream
    max_samples: int
    too_long: str  # what to say as soon as there are more
    read_ms: float
    samples: int = 0
    ended_s: float = 0.0  # when the last block had come, on the clock of `perf_counter`
    ahead: deque[Waveform] = field(default_factory=deque)  # that were read and not handed on

    def read_ahead(self, samples: int) -> None:
        """Keep so many samples, or a few more, for `__iter__`."""
        while self.samples < samples and (block := self._next()) is not None:
            self.ahead.append(block)

    def __iter__(self) -> Iterator[Waveform]:
        while self.ahead:
            yield self.ahead.popleft()
        while (block := self._next()) is not None:
            yield block

    def _next(self) -> Waveform | None:
        start = perf_counter()
        block = next(self.blocks, None)
        self.read_ms += 1000.0 * (perf_counter() - start)
        if block is None:
            self.ended_s = self.ended_s or perf_counter()
            return None
        self.samples += len(block)
        if self.samples > self.max_samples:
            raise AudioTooLongError(self.too_long)
        return block
