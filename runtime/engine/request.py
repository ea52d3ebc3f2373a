"""One question about a clip on its way: its prompt, the audio in it, the tokens of the answer, the caption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from time import perf_counter
from typing import cast

import numpy as np
from pydantic import ValidationError

from dasheng_edge.runtime.audio.read import AudioSource, describe_audio
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.caption import Caption, Timings
from dasheng_edge.runtime.errors import AudioTooLongError, PromptError
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.text.answer import Answer
from dasheng_edge.runtime.text.decoder import Decoder, Embeddings
from dasheng_edge.runtime.text.model import Tokens
from dasheng_edge.runtime.text.sampler import phrase_of_loop
from dasheng_edge.runtime.text.sequences import Sequences

from .clip_audio import ClipAudio, HeardAudio

MIN_DEVIATION_DB = 0.1  # below, a warning would say 0.0 dB
MIN_LOOP_TOKENS = 16  # of a cut answer that is said to go round in a loop


@dataclass(frozen=True)
class Request:
    """What is asked about a clip; None means the bundle's default.

    Raises:
        PromptError: something is of another type, or out of range.
    """

    audio: AudioSource | HeardAudio
    prompt: str | None
    system: str | None
    max_new_tokens: int
    sampling: Sampling
    live: bool = False
    ask_silence: bool = False  # about a clip in which there is nothing, too
    changes: bool = False  # whether the caption says where something sets in
    on_text: Callable[[str], None] | None = None  # is told of the text as it comes, in the engine's thread

    @property
    def name(self) -> str:
        """The audio, for messages."""
        return describe_audio(self.audio)

    def __post_init__(self) -> None:
        for name, text in (("prompt", self.prompt), ("system text", self.system)):
            if not isinstance(text, str | None):
                raise PromptError(f"the {name} is of type {type(text).__name__}; expected a string, or None")
        check_count("max_new_tokens", self.max_new_tokens)
        checked_sampling(self.sampling)


def checked_sampling(sampling: object) -> None:
    """Refuse what is no sampling.

    Raises:
        PromptError: it is of another type, or out of range.
    """
    if not isinstance(sampling, Sampling):
        raise PromptError(f"sampling is of type {type(sampling).__name__}; expected Sampling, or None")
    try:
        Sampling.model_validate(sampling.model_dump(warnings=False))  # `model_copy` and its kind check nothing
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

    One at a time: `generate`, then `caption`. Several together: `rows` of each, which are decoded elsewhere, and
    `answered`. Several may have the same `audio`. Not for two threads at once.

    Raises:
        PromptError: the prompt cannot be rendered, or leaves no room for audio.
        AudioError: this is no audio.
    """

    def __init__(self, bundle: Bundle, parts: Parts, request: Request, audio: ClipAudio | None = None) -> None:
        self._parts, self._request, self._prompt_facts = parts, request, bundle.prompt_facts
        start = perf_counter()
        self._prompt = parts.prompts.build(request.prompt, system=request.system)
        self._prompt_ms = 1000.0 * (perf_counter() - start)
        self._audio = audio or ClipAudio(parts.audio, request.audio, live=request.live, watch=request.changes)
        self._max_samples, self._too_long = self._room(bundle)
        self._audio.allow(self._max_samples, self._too_long)
        self._answer = Answer((), request.max_new_tokens, request.sampling)
        self._silent = False
        self._waited_ms: float | None = None  # for the first token since the last sample; None: since all was read

    def _room(self, bundle: Bundle) -> tuple[int, str]:
        """For how many samples the decoder has room, and what is wrong with more."""
        positions = min(bundle.decoder_facts.context_length, self._parts.decoder.context_length)
        taken = self._prompt.text_tokens + self._request.max_new_tokens
        if taken >= positions:
            raise PromptError(
                f"the prompt and {self._request.max_new_tokens} new tokens take {taken} positions of the decoder's "
                f"{positions} and leave none for audio; use a shorter prompt or fewer new tokens"
            )
        max_samples = bundle.manifest.front_end.samples_for_tokens(positions - taken)
        return max_samples, (
            f"{self._audio.name} is longer than {max_samples / self._audio.rate_hz:.1f} s, which is what the decoder's "
            f"{positions} positions hold beside the prompt; cut it into shorter pieces"
        )

    def rows(self, embeddings: Embeddings) -> list[Tokens | Embeddings]:
        """The prompt with the embeddings of all audio, for the decoder.

        Raises:
            AudioTooLongError: there is no room for them.
        """
        if self._audio.samples > self._max_samples:
            raise AudioTooLongError(self._too_long)
        return self._prompt.rows(embeddings)

    def generate(self, sequences: Sequences) -> Iterator[str]:
        """Pieces of the answer as they come, made alone; with `live`, the audio is prefilled while it comes.

        Raises what `ClipAudio.rows` and `Sequences` raise.
        """
        if not isinstance(self._request.audio, HeardAudio):
            self._parts.make_way()
        if not self._request.ask_silence and self._audio.silent():
            self.be_silent()
            return
        answer = self._begun(sequences)
        waited_ms = self._audio.waited_ms
        with closing(sequences.tokens(answer)) as tokens:
            yield from filter(None, self._parts.decoder.text_pieces(tokens))
        self.answered(answer, waited_ms)

    def _begun(self, sequences: Sequences) -> Answer:
        """The answer with its first token."""
        limit, sampling = self._request.max_new_tokens, self._request.sampling
        if self._request.live:
            before, after = self._prompt.around_audio()
            answer, groups = Answer([before], limit, sampling), self._audio.groups()
            if self._parts.decoder.settings.memory == "low":  # all is heard before the decoder has its turn
                groups = iter(list(groups))
            sequences.listen(answer, chain(groups, [after]))
        else:
            answer = Answer(self.rows(self._audio.rows()), limit, sampling)
            sequences.begin([answer])
        return answer

    def be_silent(self) -> None:
        """There is nothing in the clip, and nothing to be asked: `caption` is empty and says so."""
        self._silent = True

    def answered(self, answer: Answer, waited_ms: float | None = None) -> None:
        """What `rows` gave was decoded, with what other requests ask or so long after the last sample."""
        self._answer, self._waited_ms = answer, waited_ms

    def caption(self) -> Caption:
        """The whole caption, once all is generated."""
        answer = self._answer
        ended = self._silent or self._parts.decoder.is_end(answer.tokens[-1])
        return Caption(
            text=self._parts.decoder.detokenize(answer.tokens),
            tokens=tuple(answer.tokens[:-1] if ended else answer.tokens),
            finish_reason="stop" if ended else "length",
            audio_s=self._audio.samples / self._audio.rate_hz,
            prompt_tokens=self._prompt.text_tokens,
            audio_tokens=self._audio.tokens,
            timings=timings_of(self._prompt_ms, [self._audio], answer, self._waited_ms),
            warnings=tuple(self._warnings()),
            confidence=answer.confidence,
            reason="silence" if self._silent else None,
            changes=self._audio.changes if self._request.changes else (),
        )

    def _warnings(self) -> Iterator[str]:
        yield from self._audio.warnings
        if self._silent:
            return
        yield from cut_warnings(self._parts.decoder, self._answer)
        seconds, comfortable_s = self._audio.samples / self._audio.rate_hz, self._prompt_facts.comfortable_s
        if seconds > comfortable_s:
            too_long = too_long_to_hear_well(seconds, comfortable_s)
            yield f"{too_long}: caption windows of it (--window), or cut it into pieces"
        if self._audio.deviation_db >= MIN_DEVIATION_DB:
            louder = "it got louder after parts of it were encoded"
            below = f"quiet bins of those lie up to {self._audio.deviation_db:.1f} dB below those of the whole clip"
            yield f"{louder}: {below}; caption it as a file, without --live, for the exact numbers"


def timings_of(prompt_ms: float, clips: Sequence[ClipAudio], answer: Answer, waited_ms: float | None = None) -> Timings:
    """How long each stage of an answer took, and from the last sample to the first token if that is not all of it."""
    ms = {stage: sum(clip.ms[stage] for clip in clips) for stage in ("front_end", "encoder", "projector")}
    read_ms = sum(clip.read_ms for clip in clips)
    before_ms = prompt_ms + sum(ms.values()) + answer.prefill_ms
    first_ms = before_ms + sum(answer.spent_ms[:1])
    return Timings(
        audio_decode_ms=read_ms,
        front_end_ms=ms["front_end"] - read_ms,
        encoder_ms=ms["encoder"],
        projector_ms=ms["projector"],
        prefill_ms=answer.prefill_ms,
        first_token_ms=first_ms,
        after_audio_ms=first_ms - read_ms if waited_ms is None else waited_ms,
        decode_ms=sum(answer.spent_ms[1:]),
        total_ms=before_ms + sum(answer.spent_ms),
        decode_tokens=len(answer.spent_ms[1:]),
        prefill_rows=answer.prefilled,
    )


def too_long_to_hear_well(seconds: float, comfortable_s: float) -> str:
    """What is to be said of so long a clip."""
    return f"the audio is {seconds:.0f} s long; this model's captions get worse beyond {comfortable_s:.0f} s"


def cut_warnings(decoder: Decoder, answer: Answer) -> Iterator[str]:
    """Why an answer ends although the model had more to say."""
    tokens, limit = answer.tokens, answer.max_new_tokens
    if decoder.is_end(tokens[-1]):
        return
    if size := phrase_of_loop(tokens) or phrase_of_loop(tokens, MIN_LOOP_TOKENS):
        phrase = decoder.detokenize(tokens[-size:]).strip()
        ended = "" if len(tokens) == limit else f", so it was ended after {len(tokens)} tokens"
        yield (
            f"the answer says {phrase!r} over and over{ended}; try no_repeat_ngram_size 4 "
            "(--no-repeat-ngram-size 4), or a repetition penalty of 1.1"
        )
    if len(tokens) == limit:
        yield f"the answer was cut at {limit} tokens; allow more (--max-new-tokens) to get all of it"
