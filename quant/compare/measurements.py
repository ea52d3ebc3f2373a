"""The measurements of a comparison, each stored in a file of its own, so that a killed comparison goes on where it was.

Two passes: every encoder embeds all clips, then every decoder answers all of them from the embeddings that are asked
for. So one model is in memory at a time, and encoders and decoders can be crossed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dasheng_edge.runtime.atomic_output import replace_text, replacing
from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.audio.clips import Clip, ClipSet
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, PROJECTOR, Bundle
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import AudioTooLongError, DashengEdgeError, DecoderError, PromptError, clip_error
from dasheng_edge.runtime.machine.identity import installed
from dasheng_edge.runtime.parts import TextParts
from dasheng_edge.runtime.progress import Advance, no_advance

from .metrics import SeamSums, TokenMetrics, first_divergence, token_metrics
from .record import EncoderScores, LengthScores

Array = NDArray[np.float32]
_Row = TypeVar("_Row", bound="_StoredAnswer")
PROBE_LENGTHS_S = (1, 5, 10, 30, 60)
PROBES = 4  # of each length
LIBRARIES = ("dasheng-edge", "onnxruntime", "onnxruntime-gpu", "llama-cpp-python")  # what computes
# Of a bundle's text facts, what decides no greedy answer of a given length.
_NOT_ASKED = {"notes", "comfortable_s", "sampling", "max_new_tokens"}


@dataclass(frozen=True)
class Sound:
    """Something to embed: a clip, or a stretch of all clips joined."""

    key: str
    read: Callable[[], Array]  # float32 [samples]


def encoder_id(bundle: Bundle, threads: int) -> str:
    """Names an encoder by what its files hold, how audio is cut for it, and what computes it."""
    parts = (FRONT_END, ENCODER, PROJECTOR)
    hashes = [f"{name} {facts.sha256}" for name, facts in bundle.manifest.files.items() if name.startswith(parts)]
    return key_of(*sorted(hashes), bundle.manifest.front_end.model_dump_json(), str(threads))


def decoder_id(bundle: Bundle, threads: int) -> str:
    """Names a decoder by what its file holds, how it keeps keys and values, what it is asked, and what computes it."""
    stored, facts = bundle.decoder_facts, bundle.prompt_facts
    asked = facts.model_dump_json(exclude=_NOT_ASKED)
    return key_of(bundle.manifest.files[DECODER].sha256, stored.kv_type, asked, str(threads))


def key_of(*facts: str) -> str:
    """A short name for something that depends on these, and on what computes: an upgrade measures anew."""
    versions = (f"{name} {version}" for name, version in installed(LIBRARIES).items())
    return hashlib.sha256("\n".join((*facts, *versions)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Usable:
    """Clips that every candidate can answer, their lengths, and why others are left out."""

    clips: ClipSet
    samples: tuple[int, ...]
    left_out: tuple[str, ...]  # a sentence for each clip
    warnings: tuple[str, ...] = ()  # about others


def usable_clips(bundle: Bundle, clips: ClipSet, max_new_tokens: int, advance: Advance = no_advance) -> Usable:
    """Clips that can be read and leave the decoder room for an answer; each is read once, a block at a time.

    Raises:
        DashengEdgeError: there is none, for the reason of the first, an AudioError mostly; or one ends them all.
    """
    known: list[tuple[Clip, int]] = []
    errors: list[DashengEdgeError] = []
    said: list[str] = []
    text = TextParts.open(bundle, EngineOptions(weights="mapped"))
    try:
        for clip in clips.clips:
            try:
                known.append((clip, _samples(bundle, text, clip, max_new_tokens, said.append)))
            except Exception as error:  # noqa: BLE001  # whatever a clip does, the others go on
                errors.append(_left_out(clip, error))
            advance(1)
    finally:
        text.decoder.close()
    if not known:
        raise errors[0]
    kept = ClipSet(clips.name, tuple(clip for clip, _ in known))
    return Usable(kept, tuple(samples for _, samples in known), tuple(map(str, errors)), tuple(said))


def _left_out(clip: Clip, error: Exception) -> DashengEdgeError:
    """Why a clip is left out; an error that all clips have is raised again."""
    if isinstance(error, PromptError) and clip.prompt is not None:
        return PromptError(f"clip {clip.id}: {error}")
    return clip_error(f"clip {clip.id}", error)


def _samples(bundle: Bundle, text: TextParts, clip: Clip, max_new_tokens: int, warn: Callable[[str], object]) -> int:
    """Samples of a clip.

    Raises:
        AudioError: it cannot be read, or leaves the decoder no room for an answer; the message names the clip.
        PromptError: its prompt cannot be rendered.
    """
    spec, stored = bundle.manifest.front_end, bundle.decoder_facts
    room = stored.context_length - max_new_tokens - text.prompts.build(clip.prompt).text_tokens
    samples = sum(len(block) for block in clip.blocks(spec.sample_rate_hz, warn))
    tokens = spec.tokens_of(spec.padded_samples_of(samples))
    if tokens > room:
        raise AudioTooLongError(
            f"clip {clip.id} has {samples / spec.sample_rate_hz:.1f} s, which are {tokens} audio tokens; with "
            f"{max_new_tokens} new tokens and the prompt at most {max(room, 0)} fit the decoder's context of "
            f"{stored.context_length}: cut the clip, or pass a smaller --max-new-tokens"
        )
    return samples


def sounds_of(clips: Sequence[Clip], lengths: Sequence[int], rate_hz: int) -> list[Sound]:
    """All clips, and probes of each length: stretches of the clips joined one after another, over and over.

    `lengths` are those of the clips in samples.
    """
    sounds = [Sound(f"clip-{index}", partial(clip.read, rate_hz)) for index, clip in enumerate(clips)]
    for seconds in PROBE_LENGTHS_S:
        for index in range(PROBES):
            start, samples = index * PROBE_LENGTHS_S[-1] * rate_hz, seconds * rate_hz
            sounds.append(Sound(f"probe-{seconds}-{index}", partial(joined, clips, lengths, rate_hz, start, samples)))
    return sounds


def joined(clips: Sequence[Clip], lengths: Sequence[int], rate_hz: int, start: int, samples: int) -> Array:
    """Samples [start, start + samples) of the clips one after another, from the first again after the last.

    Only clips that are heard are read, and each once.
    """
    ends = np.cumsum(lengths)
    waveforms: dict[int, Array] = {}
    parts: list[Array] = []
    place, left = start % int(ends[-1]), samples
    while left > 0:
        index = int(np.searchsorted(ends, place, side="right"))
        if index not in waveforms:
            waveforms[index] = clips[index].read(rate_hz)
        end = int(ends[index])
        parts.append(waveforms[index][place - end + lengths[index] :][:left])
        place, left = end % int(ends[-1]), left - len(parts[-1])
    return np.concatenate(parts)


def embed_all(
    bundle: Bundle, threads: int, sounds: Sequence[Sound], folder: Path, advance: Advance
) -> Callable[[str], Array]:
    """Embed what is not embedded yet; the result reads embeddings float32 [tokens, llm_dim] by key."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [sound for sound in sounds if not _has_array(folder / f"{sound.key}.npy")]
    if missing:
        audio = AudioInputParts.open(bundle, EngineOptions().changed(threads=threads))
        for sound in missing:
            embeddings = audio.embeddings([sound.read()])
            with replacing(folder / f"{sound.key}.npy") as path, path.open("wb") as file:
                np.save(file, embeddings)
            advance(1)
    return lambda key: np.load(folder / f"{key}.npy")


@dataclass(frozen=True)
class ReferenceAnswers:
    """The reference's answers to all clips, and where their logits are."""

    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    folder: Path

    def logits(self, index: int) -> Array:
        """float32 [tokens, vocab] of a clip."""
        logits: Array = np.load(self.folder / f"{index}.npy")
        return logits


class _StoredAnswer(BaseModel):
    """An answer as it is stored in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[int, ...]
    text: str


class Answer(_StoredAnswer):
    """A candidate's answer, and how its distributions differ from the reference's at each token of its answer."""

    kl: tuple[float, ...]
    same_top1: tuple[bool, ...]
    log_prob: tuple[float, ...]

    def decoding(self, wanted: Sequence[int]) -> tuple[TokenMetrics, int | None]:
        """Its scores, and the index of the first token that is not the one of the reference's answer, if any."""
        metrics = TokenMetrics(np.array(self.kl), np.array(self.same_top1, bool), np.array(self.log_prob))
        return metrics, first_divergence(wanted, self.tokens)


class Answering:
    """A decoder that is open, for as long as the block runs."""

    def __init__(self, bundle: Bundle, threads: int, clips: Sequence[Clip], max_new_tokens: int) -> None:
        self._bundle, self._threads = bundle, threads
        self._clips, self._limit = clips, max_new_tokens
        self._text: TextParts | None = None

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        if self._text is not None:
            self._text.decoder.close()

    def _opened(self) -> TextParts:
        """Opened with the first answer that is not stored yet."""
        if self._text is None:
            self._text = TextParts.open(self._bundle, EngineOptions().changed(threads=self._threads))
        return self._text

    def reference(self, embeddings: Callable[[str], Array], folder: Path, advance: Advance) -> ReferenceAnswers:
        """Answer all clips greedily and keep answers and logits.

        Raises:
            DecoderError, PromptError: the decoder cannot be opened, or fails on a clip, which the message names.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tokens, texts = [], []
        for index, clip in enumerate(self._clips):
            path, logits = folder / f"{index}.json", folder / f"{index}.npy"
            stored = _read(path, _StoredAnswer)
            if stored is None or not _has_array(logits):
                text = self._opened()
                decoder = text.decoder
                with _about(clip):
                    segments = text.prompts.build(clip.prompt).rows(embeddings(f"clip-{index}"))
                    decoder.prefill(segments, reserve=self._limit)
                    answer = tuple(decoder.generate(self._limit))
                    scored = decoder.score(segments, answer)
                with replacing(logits) as part, part.open("wb") as file:
                    np.save(file, scored)
                stored = _StoredAnswer(tokens=answer, text=decoder.detokenize(answer))
                replace_text(path, stored.model_dump_json())
                advance(1)
            tokens.append(stored.tokens)
            texts.append(stored.text.strip())
        return ReferenceAnswers(tuple(tokens), tuple(texts), folder)

    def answers(
        self, embeddings: Callable[[str], Array], reference: ReferenceAnswers, folder: Path, advance: Advance
    ) -> list[Answer]:
        """Answer all clips greedily, and score the reference's answers; errors as in `reference`."""
        folder.mkdir(parents=True, exist_ok=True)
        answers = []
        for index, clip in enumerate(self._clips):
            path, wanted = folder / f"{index}.json", reference.tokens[index]
            row = _read(path, Answer)
            if row is None or len(row.kl) != len(wanted):
                row = self._answer(clip, embeddings(f"clip-{index}"), wanted, reference.logits(index))
                replace_text(path, row.model_dump_json())
                advance(1)
            answers.append(row)
        return answers

    def _answer(self, clip: Clip, embeddings: Array, wanted: tuple[int, ...], logits: Array) -> Answer:
        text = self._opened()
        decoder = text.decoder
        with _about(clip):
            segments = text.prompts.build(clip.prompt).rows(embeddings)
            got = token_metrics(logits, decoder.score(segments, wanted), wanted)
            decoder.prefill(segments, reserve=self._limit)
            tokens = tuple(decoder.generate(self._limit))
        return Answer(
            tokens=tokens, text=decoder.detokenize(tokens).strip(), kl=tuple(got.kl.tolist()),
            same_top1=tuple(got.same_top1.tolist()), log_prob=tuple(got.log_prob.tolist()),
        )  # fmt: skip


@contextmanager
def _about(clip: Clip) -> Generator[None]:
    """Errors of the decoder and of the prompt name the clip."""
    try:
        yield
    except (DecoderError, PromptError) as error:
        raise type(error)(f"clip {clip.id}: {error}") from error


def encoder_scores(clips: int, reference: Callable[[str], Array], got: Callable[[str], Array]) -> EncoderScores:
    """Embeddings against the reference's, over all clips and by length."""
    whole = SeamSums()
    for index in range(clips):
        whole.add(reference(f"clip-{index}"), got(f"clip-{index}"))
    by_length = []
    for seconds in PROBE_LENGTHS_S:
        sums = SeamSums()
        for index in range(PROBES):
            sums.add(reference(f"probe-{seconds}-{index}"), got(f"probe-{seconds}-{index}"))
        by_length.append(LengthScores(seconds=seconds, **sums.scores().model_dump()))
    return EncoderScores(**whole.scores().model_dump(), by_length=tuple(by_length))


def _read(path: Path, kind: type[_Row]) -> _Row | None:
    """What a file holds; None if it is missing or damaged, as after a crash of the machine."""
    try:
        return kind.model_validate(json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _has_array(path: Path) -> bool:
    """Whether a file holds a whole array; its numbers are not read."""
    try:
        np.load(path, mmap_mode="r")
    except (FileNotFoundError, EOFError, ValueError):
        return False
    return True
