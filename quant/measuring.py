"""The measurements of a comparison, each kept in a file of its own so that a killed one goes on where it was.

Two passes: every encoder embeds all clips, then every decoder answers all of them from the embeddings that are asked
for. So one model is in memory at a time, and encoders and decoders can be crossed.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle import DECODER, ENCODER, FRONT_END, PROJECTOR, Bundle, KvType
from dasheng_edge.runtime.decoder import Decoder
from dasheng_edge.runtime.embedder import AudioParts
from dasheng_edge.runtime.encoder import Projector
from dasheng_edge.runtime.prompt import Audio, PromptBuilder

from .clips import Clip
from .metrics import ClipDecoding, SeamSums, TokenMetrics, first_divergence, token_metrics
from .record import EncoderScores, LengthScores

Array = NDArray[np.float32]
Advance = Callable[[int], None]
PROBE_LENGTHS_S = (1, 5, 10, 30, 60)
PROBES = 4  # of each length


@dataclass(frozen=True)
class Sound:
    """Something to embed: a clip, or a stretch of all clips joined."""

    key: str
    read: Callable[[], Array]  # float32 [samples]


@dataclass(frozen=True)
class Answer:
    """What a decoder said about a clip, and how its distributions differ from the reference's."""

    text: str
    tokens: tuple[int, ...]
    decoding: ClipDecoding


def encoder_id(bundle: Bundle, threads: int) -> str:
    """Names an encoder by what its files hold."""
    parts = (FRONT_END, ENCODER, PROJECTOR)
    hashes = [f"{name} {facts.sha256}" for name, facts in bundle.manifest.files.items() if name.startswith(parts)]
    return _short("\n".join(sorted(hashes)) + f"\n{threads}")


def decoder_id(bundle: Bundle, threads: int) -> str:
    """Names a decoder by what its file holds, and how it keeps keys and values."""
    facts, _ = bundle.text_facts()
    return _short(f"{bundle.manifest.files[DECODER].sha256} {facts.kv_type} {threads}")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sounds_of(clips: Sequence[Clip], rate_hz: int) -> list[Sound]:
    """All clips, and probes of each length: stretches of the clips joined one after another, over and over."""
    sounds = [Sound(f"clip-{index}", partial(clip.read, rate_hz)) for index, clip in enumerate(clips)]
    for seconds in PROBE_LENGTHS_S:
        for index in range(PROBES):
            start, samples = index * PROBE_LENGTHS_S[-1] * rate_hz, seconds * rate_hz
            sounds.append(Sound(f"probe-{seconds}-{index}", partial(joined, clips, rate_hz, start, samples)))
    return sounds


def joined(clips: Sequence[Clip], rate_hz: int, start: int, samples: int) -> Array:
    """Samples [start, start + samples) of the clips one after another, from the first again after the last."""
    parts: list[Array] = []
    place = have = 0
    while have < samples:
        for clip in clips:
            waveform = clip.read(rate_hz)
            part = waveform[max(0, start - place) : max(0, start + samples - place)]
            parts.append(part)
            place, have = place + len(waveform), have + len(part)
            if have >= samples:
                break
    return np.concatenate(parts)


def embed_all(
    bundle: Bundle, threads: int, sounds: Sequence[Sound], folder: Path, advance: Advance
) -> Callable[[str], Array]:
    """Embed what is not embedded yet; the result reads embeddings float32 [tokens, llm_dim] by key."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [sound for sound in sounds if not (folder / f"{sound.key}.npy").is_file()]
    if missing:
        audio = AudioParts.open(bundle, device="cpu", threads=threads)
        projector = Projector(bundle.path(PROJECTOR), bundle.manifest.front_end, threads=threads)
        for sound in missing:
            features = audio.front_end.features([sound.read()])
            embeddings = projector.embeddings(audio.encoder.patches(features))
            with _whole(folder / f"{sound.key}.npy") as path, path.open("wb") as file:
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


class Answering:
    """A decoder that is open, for as long as the block runs."""

    def __init__(self, bundle: Bundle, threads: int, clips: Sequence[Clip], max_new_tokens: int) -> None:
        stored, self._facts = bundle.text_facts()
        self._bundle, self._threads = bundle, threads
        self._kv_type: KvType = stored.kv_type
        self._clips, self._limit = clips, max_new_tokens
        self._decoder: Decoder | None = None
        self._prompts: PromptBuilder | None = None

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        if self._decoder is not None:
            self._decoder.close()

    def _opened(self) -> tuple[Decoder, PromptBuilder]:
        """Opened with the first answer that is not kept yet."""
        if self._decoder is None or self._prompts is None:
            path = self._bundle.path(DECODER)
            self._decoder = Decoder.open(path, n_threads=self._threads, kv_type=self._kv_type)
            self._prompts = PromptBuilder(self._decoder.chat_template, self._facts, self._decoder)
        return self._decoder, self._prompts

    def reference(self, embeddings: Callable[[str], Array], folder: Path, advance: Advance) -> ReferenceAnswers:
        """Answer all clips greedily and keep answers and logits."""
        folder.mkdir(parents=True, exist_ok=True)
        tokens, texts = [], []
        for index, clip in enumerate(self._clips):
            path = folder / f"{index}.json"
            if not path.is_file():
                decoder, prompts = self._opened()
                segments = _segments(prompts, clip, embeddings(f"clip-{index}"))
                decoder.prefill(segments, reserve=self._limit)
                answer = tuple(decoder.generate(self._limit))
                with _whole(folder / f"{index}.npy") as part, part.open("wb") as file:
                    np.save(file, decoder.score(segments, answer))
                with _whole(path) as part:
                    part.write_text(json.dumps({"tokens": answer, "text": decoder.detokenize(answer)}), "utf-8")
                advance(1)
            found = json.loads(path.read_text("utf-8"))
            tokens.append(tuple(found["tokens"]))
            texts.append(found["text"].strip())
        return ReferenceAnswers(tuple(tokens), tuple(texts), folder)

    def answers(
        self, embeddings: Callable[[str], Array], reference: ReferenceAnswers, folder: Path, advance: Advance
    ) -> list[Answer]:
        """Answer all clips greedily, and score the reference's answers."""
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        for index, clip in enumerate(self._clips):
            path = folder / f"{index}.json"
            if not path.is_file():
                row = self._answer(clip, embeddings(f"clip-{index}"), reference.tokens[index], reference.logits(index))
                with _whole(path) as part:
                    part.write_text(json.dumps(row), "utf-8")
                advance(1)
            found.append(_answer_of(json.loads(path.read_text("utf-8")), reference.tokens[index]))
        return found

    def _answer(self, clip: Clip, embeddings: Array, wanted: tuple[int, ...], logits: Array) -> Mapping[str, object]:
        decoder, prompts = self._opened()
        segments = _segments(prompts, clip, embeddings)
        got = token_metrics(logits, decoder.score(segments, wanted), wanted)
        decoder.prefill(segments, reserve=self._limit)
        tokens = tuple(decoder.generate(self._limit))
        return {
            "text": decoder.detokenize(tokens).strip(), "tokens": tokens, "kl": got.kl.tolist(),
            "same_top1": got.same_top1.tolist(), "log_prob": got.log_prob.tolist(),
        }  # fmt: skip


def _answer_of(row: Mapping[str, list[float] | str], wanted: tuple[int, ...]) -> Answer:
    tokens = tuple(int(token) for token in row["tokens"])
    metrics = TokenMetrics(np.array(row["kl"]), np.array(row["same_top1"], bool), np.array(row["log_prob"]))
    return Answer(str(row["text"]), tokens, ClipDecoding(metrics, first_divergence(wanted, tokens)))


def _segments(prompts: PromptBuilder, clip: Clip, embeddings: Array) -> list[tuple[int, ...] | Array]:
    return [embeddings if isinstance(segment, Audio) else segment.tokens for segment in prompts.build(clip.prompt)]


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


@contextmanager
def _whole(path: Path) -> Generator[Path]:
    """A temporary name for a file that is there whole or not at all."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
