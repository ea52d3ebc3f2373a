"""The measurements of a comparison, each stored in a file of its own, so that a killed comparison goes on where it was.

Two passes: every encoder embeds all clips, then every decoder answers all of them from the embeddings that are asked
for. So one model is in memory at a time, and encoders and decoders can be crossed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dasheng_edge.runtime.atomic_output import replace_text, replacing
from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, PROJECTOR, Bundle
from dasheng_edge.runtime.clips.clips import Clip
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.errors import DashengEdgeError
from dasheng_edge.runtime.machine.identity import installed
from dasheng_edge.runtime.parts import TextParts
from dasheng_edge.runtime.progress import Advance

from .metrics import SeamSums, TokenMetrics, first_divergence, token_metrics
from .record import EncoderScores, LengthScores
from .usable_clips import ClipsFailedError, about, collecting

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
    clip: Clip | None = None


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


def sounds_of(clips: Sequence[Clip], lengths: Sequence[int], rate_hz: int) -> list[Sound]:
    """All clips, and probes of each length: stretches of the clips joined one after another, over and over.

    `lengths` are those of the clips in samples.
    """
    sounds = [Sound(stored_name(clip), partial(clip.read, rate_hz), clip) for clip in clips]
    for seconds in PROBE_LENGTHS_S:
        for index, name in enumerate(probe_names(clips, seconds)):
            start, samples = index * PROBE_LENGTHS_S[-1] * rate_hz, seconds * rate_hz
            sounds.append(Sound(name, partial(joined, clips, lengths, rate_hz, start, samples)))
    return sounds


def stored_name(*clips: Clip) -> str:
    """Of files about a clip, or about several that are joined."""
    return hashlib.sha256("\0".join(clip.id for clip in clips).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def probe_names(clips: Sequence[Clip], seconds: int) -> list[str]:
    """Of the probes of a length, which are other ones where a clip is left out."""
    return [f"probe-{seconds}-{index}-{stored_name(*clips)}" for index in range(PROBES)]


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
            with about(clips[index]):
                waveforms[index] = clips[index].read(rate_hz)
        end = int(ends[index])
        parts.append(waveforms[index][place - end + lengths[index] :][:left])
        place, left = end % int(ends[-1]), left - len(parts[-1])
    return np.concatenate(parts)


def embed_all(
    bundle: Bundle, threads: int, sounds: Sequence[Sound], folder: Path, advance: Advance
) -> Callable[[str], Array]:
    """Embed what is not embedded yet; the result reads embeddings float32 [tokens, llm_dim] by key.

    Raises:
        ClipsFailedError: some clips failed; the others are embedded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [sound for sound in sounds if not _has_array(folder / f"{sound.key}.npy")]
    failed: dict[str, DashengEdgeError] = {}
    if missing:
        audio = AudioInputParts.open(bundle, EngineOptions().changed(threads=threads))
        for sound in missing:
            with collecting(failed):
                with about(sound.clip) if sound.clip else nullcontext():
                    embeddings = audio.embeddings([sound.read()])
                with replacing(folder / f"{sound.key}.npy") as path, path.open("wb") as file:
                    np.save(file, embeddings)
                advance(1)
    if failed:
        raise ClipsFailedError(failed)
    return lambda key: np.load(folder / f"{key}.npy")


@dataclass(frozen=True)
class ReferenceAnswers:
    """The reference's answers to all clips, and where their logits are."""

    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    folder: Path

    def logits(self, clip: Clip) -> Array:
        """float32 [tokens, vocab] of a clip."""
        logits: Array = np.load(self.folder / f"{stored_name(clip)}.npy")
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
            self._text = TextParts.open(
                self._bundle, EngineOptions(adaptive_threads=False).changed(threads=self._threads)
            )
        return self._text

    def reference(self, embeddings: Callable[[str], Array], folder: Path, advance: Advance) -> ReferenceAnswers:
        """Answer all clips greedily and keep answers and logits.

        Raises:
            ClipsFailedError: some clips failed; the others are answered.
            DecoderError, PromptError: the decoder cannot be opened, or what all clips are asked cannot be rendered.
        """
        rows = self._of_all(partial(self._reference, embeddings, folder), folder, advance)
        return ReferenceAnswers(tuple(row.tokens for row in rows), tuple(row.text.strip() for row in rows), folder)

    def answers(
        self, embeddings: Callable[[str], Array], reference: ReferenceAnswers, folder: Path, advance: Advance
    ) -> list[Answer]:
        """Answer all clips greedily, and score the reference's answers; errors as in `reference`."""
        wanted = dict(zip((clip.id for clip in self._clips), reference.tokens, strict=True))
        return self._of_all(partial(self._answer, embeddings, reference, wanted, folder), folder, advance)

    def _of_all(self, answer: Callable[[Clip], tuple[_Row, bool]], folder: Path, advance: Advance) -> list[_Row]:
        """What `answer` says of each clip, and whether that had to be measured."""
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[_Row] = []
        failed: dict[str, DashengEdgeError] = {}
        for clip in self._clips:
            with collecting(failed):
                row, measured = answer(clip)
                rows.append(row)
                advance(int(measured))
        if failed:
            raise ClipsFailedError(failed)
        return rows

    def _reference(self, embeddings: Callable[[str], Array], folder: Path, clip: Clip) -> tuple[_StoredAnswer, bool]:
        path, logits = folder / f"{stored_name(clip)}.json", folder / f"{stored_name(clip)}.npy"
        stored = _read(path, _StoredAnswer)
        if stored is not None and _has_array(logits):
            return stored, False
        text, sound = self._opened(), embeddings(stored_name(clip))
        decoder = text.decoder
        with about(clip):
            segments = text.prompts.build(clip.prompt).rows(sound)
            decoder.prefill(segments, reserve=self._limit)
            answer = tuple(decoder.generate(self._limit))
            scored = decoder.score(segments, answer)
            stored = _StoredAnswer(tokens=answer, text=decoder.detokenize(answer))
        with replacing(logits) as part, part.open("wb") as file:
            np.save(file, scored)
        replace_text(path, stored.model_dump_json())
        return stored, True

    def _answer(
        self, embeddings: Callable[[str], Array], reference: ReferenceAnswers,
        tokens_of: Mapping[str, tuple[int, ...]], folder: Path, clip: Clip,
    ) -> tuple[Answer, bool]:  # fmt: skip
        path, wanted = folder / f"{stored_name(clip)}.json", tokens_of[clip.id]
        stored = _read(path, Answer)
        if stored is not None and len(stored.kl) == len(wanted):
            return stored, False
        text, sound, logits = self._opened(), embeddings(stored_name(clip)), reference.logits(clip)
        decoder = text.decoder
        with about(clip):
            segments = text.prompts.build(clip.prompt).rows(sound)
            got = token_metrics(logits, decoder.score(segments, wanted), wanted)
            decoder.prefill(segments, reserve=self._limit)
            tokens = tuple(decoder.generate(self._limit))
            answer = Answer(
                tokens=tokens, text=decoder.detokenize(tokens).strip(), kl=tuple(got.kl.tolist()),
                same_top1=tuple(got.same_top1.tolist()), log_prob=tuple(got.log_prob.tolist()),
            )  # fmt: skip
        replace_text(path, answer.model_dump_json())
        return answer, True


def encoder_scores(
    clips: Sequence[Clip], reference: Callable[[str], Array], got: Callable[[str], Array]
) -> EncoderScores:
    """Embeddings against the reference's, over all clips and by length."""
    whole = SeamSums()
    for name in map(stored_name, clips):
        whole.add(reference(name), got(name))
    by_length = []
    for seconds in PROBE_LENGTHS_S:
        sums = SeamSums()
        for name in probe_names(clips, seconds):
            sums.add(reference(name), got(name))
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
