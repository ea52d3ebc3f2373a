"""The audio of a clip on its way: blocks -> spectrograms -> patches -> audio embeddings, once for all its questions."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.audio.encoder import Feed, Patches, chunk_feeds
from dasheng_edge.runtime.audio.front_end import Features, RunningFeatures
from dasheng_edge.runtime.audio.gate import BLOCK_S, DITHER_DB, is_silent, level_db
from dasheng_edge.runtime.audio.read import AudioSource, AudioStream, ReadAudio, Waveform, describe_audio, read_audio
from dasheng_edge.runtime.errors import AudioTooLongError
from dasheng_edge.runtime.subtitles.changes import changes
from dasheng_edge.runtime.subtitles.cue import Change
from dasheng_edge.runtime.text.decoder import Embeddings

READ_AHEAD_S = 60.0  # of a file that is kept as samples before it is heard: 4 MB


@dataclass(frozen=True)
class HeardAudio:
    """Audio that was encoded before it is asked about, float32 [tokens, llm_dim], and what to call it."""

    embeddings: Embeddings
    seconds: float
    name: str
    encoding_ms: float = 0.0


class ClipAudio:
    """The audio of a clip on its way through the parts of a bundle, and how long each stage took.

    `rows` gives all of it; `groups` gives it bit by bit. With `watch`, `changes` are known afterwards. Not for two
    threads at once.

    Raises:
        AudioError: this is no audio.
    """

    def __init__(
        self, parts: AudioInputParts, source: AudioSource | HeardAudio, *, live: bool = False, watch: bool = False
    ) -> None:
        self.source, self.name = source, describe_audio(source)
        self.rate_hz = parts.front_end.spec.sample_rate_hz
        self._parts, self._live, self._watch = parts, live, watch
        self._log_mels: list[NDArray[np.float32]] = []  # of what was heard, with `watch`, and its patches
        self._patches: list[NDArray[np.float32]] = []
        self._heard, samples = None, 0
        if isinstance(source, HeardAudio):  # there is nothing left to read
            self._heard, samples = source, round(source.seconds * self.rate_hz)
            source = ReadAudio(np.zeros(0, np.float32), 0.0, source.name)
        read_ms = source.reading_ms if isinstance(source, ReadAudio) else 0.0
        self._blocks = _Blocks(read_audio(source, sample_rate_hz=self.rate_hz), self.rate_hz, read_ms, samples=samples)
        self.ms = {"front_end": read_ms, "encoder": 0.0, "projector": 0.0}  # reading the audio is a part of the first
        self.tokens = 0  # rows of audio embeddings
        self.deviation_db = 0.0  # of the spectrogram, from that of the whole clip; see `RunningFeatures`
        self._last = perf_counter()
        self._spectrograms: list[tuple[Features, int]] = []  # of all of the clip, if they were computed ahead
        self._silent = None if self._heard is None else False

    @property
    def samples(self) -> int:
        """How many were read."""
        return self._blocks.samples

    @property
    def read_ms(self) -> float:
        """How long it took to read them."""
        return self._blocks.read_ms

    @property
    def waited_ms(self) -> float:
        """How long ago the last sample came."""
        return 1000.0 * (perf_counter() - self._blocks.ended_s)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the audio."""
        return self._blocks.stream.warnings

    def allow(self, samples: int, too_long: str) -> None:
        """Read no more than so many samples, or those that another question about the clip allows."""
        if samples >= self._blocks.max_samples:
            self._blocks.max_samples, self._blocks.too_long = samples, too_long

    def read_ahead(self) -> None:
        """Read the audio, or the beginning of a long file, in another thread than hears it.

        What may come slowly, such as a pipe, is read to its end: nobody else is to wait for it where it is heard.

        Raises:
            AudioError: it cannot be read, or is longer than is allowed.
        """
        before_ms = self.read_ms
        seconds = READ_AHEAD_S if _comes_at_once(self.source) else math.inf
        self._blocks.read_ahead(seconds * self.rate_hz)
        self.ms["front_end"] += self.read_ms - before_ms

    def silent(self) -> bool:
        """Whether there is nothing in it, as `is_silent` says; reads until something is heard.

        Raises what `read_ahead` raises.
        """
        if self._silent is None:
            self._last = perf_counter()
            self._silent = self._blocks.silent()
            self._lap("front_end")
        return self._silent

    def listen(self) -> None:
        """Compute the spectrograms of what was read ahead, if that was all, in another thread than encodes them.

        Raises:
            DeviceError: ONNX Runtime failed.
        """
        if self._blocks.ended_s and self._heard is None:
            self._last = perf_counter()
            self._spectrograms = list(self._features())

    def feeds(self) -> list[Feed]:
        """What the encoder is given for each chunk; none unless it has listened."""
        spec = self._parts.front_end.spec
        return [feed for chunk, first in self._spectrograms for feed in chunk_feeds(spec, chunk, first)]

    def heard(
        self, embeddings: Embeddings, patches: Patches | None = None, *, encoder_ms: float, projector_ms: float
    ) -> None:
        """The `feeds` were encoded with those of other clips; the times are this one's share."""
        self.ms |= {"encoder": encoder_ms, "projector": projector_ms}
        self.tokens = len(embeddings)
        if patches is not None and self._watch:
            self._log_mels = [features.log_mel for features, _ in self._spectrograms]
            self._patches = [_array(patches)]

    @property
    def changes(self) -> tuple[Change, ...]:
        """Where something sets in, if that was watched and the audio was heard here."""
        if not self._patches or not self._log_mels:
            return ()
        spec = self._parts.front_end.spec
        patch_s = spec.patch_frames * spec.hop_length / self.rate_hz
        log_mel, patches = np.concatenate(self._log_mels, axis=1), np.concatenate(self._patches)
        return changes(log_mel, patches, patch_frames=spec.patch_frames, patch_s=patch_s)

    def rows(self) -> Embeddings:
        """One row per audio token, float32 [tokens, llm_dim].

        Raises:
            AudioError: the audio cannot be read, or is longer than is allowed.
            DeviceError: ONNX Runtime failed.
        """
        return np.concatenate(list(self.groups()))

    def groups(self) -> Iterator[Embeddings]:
        """As `rows`, a group of chunks at a time; with `live`, before the clip has ended."""
        if self._heard is not None:
            self.heard(self._heard.embeddings, encoder_ms=self._heard.encoding_ms, projector_ms=0.0)
            yield self._heard.embeddings
            return
        spec = self._parts.front_end.spec
        self._last = perf_counter()
        feeds = (feed for features, first in self._watched() for feed in chunk_feeds(spec, features, first))
        for group in self._parts.groups(feeds, live=self._live):
            if self._watch:
                self._patches.append(_array(group))
            self._lap("encoder")
            embeddings = self._parts.projector.embeddings(group)
            self._lap("projector")
            self.tokens += len(embeddings)
            yield embeddings
            self._last = perf_counter()
        self._lap("encoder")  # of a last chunk that was too short for another group

    def _watched(self) -> Iterator[tuple[Features, int]]:
        """As `_features`, which are kept if changes are watched."""
        for features, first in self._features():
            if self._watch:
                self._log_mels.append(features.log_mel)
            yield features, first

    def _features(self) -> Iterator[tuple[Features, int]]:
        """Spectrograms chunk by chunk, each with its first patch."""
        if self._spectrograms:
            yield from self._spectrograms
            return
        front_end = self._parts.front_end
        chunks = RunningFeatures(front_end, self._blocks) if self._live else front_end.chunks(self._blocks)
        for features in chunks:
            self._lap("front_end")
            yield features
        if isinstance(chunks, RunningFeatures):
            self.deviation_db = chunks.deviation_db

    def _lap(self, stage: str) -> None:
        """The time since the last lap was spent on this stage."""
        now = perf_counter()
        self.ms[stage] += 1000.0 * (now - self._last)
        self._last = now


def _comes_at_once(source: AudioSource | HeardAudio) -> bool:
    """Whether reading it waits for nothing but the disk."""
    if isinstance(source, (str, os.PathLike)):
        with suppress(OSError):  # it is said when it is read
            return Path(os.fsdecode(source)).is_file()
    parts = source if isinstance(source, tuple) else (source,)
    return any(isinstance(part, (bytes, ReadAudio, np.ndarray)) for part in parts)


def _array(patches: Patches) -> NDArray[np.float32]:
    return patches if isinstance(patches, np.ndarray) else patches.array()


@dataclass
class _Blocks:
    """Hands the blocks of a clip on, counts their samples and measures how long it takes to read them."""

    stream: AudioStream
    rate_hz: int
    read_ms: float
    max_samples: int = 0
    too_long: str = ""  # what to say as soon as there are more
    samples: int = 0
    ended_s: float = 0.0  # when the last block had come, on the clock of `perf_counter`
    ahead: deque[Waveform] = field(default_factory=deque)  # that were read and not handed on

    def read_ahead(self, samples: float) -> None:
        """Keep so many samples, or a few more, for `__iter__`."""
        while self.samples < samples and next(self._kept(), None) is not None:
            pass

    def silent(self) -> bool:
        """Whether nothing is heard; keeps what is read. The first block of most clips tells, without a look at more."""
        size = round(BLOCK_S * self.rate_hz)
        for block in chain(list(self.ahead), self._kept()):
            middle = max(0, (len(block) - size) // 2)
            if level_db(block[middle : middle + size]) >= DITHER_DB:
                return False
        return is_silent(self.ahead[0] if len(self.ahead) == 1 else np.concatenate(self.ahead), self.rate_hz)

    def __iter__(self) -> Iterator[Waveform]:
        while self.ahead:
            yield self.ahead.popleft()
        while (block := self._next()) is not None:
            yield block

    def _kept(self) -> Iterator[Waveform]:
        while (block := self._next()) is not None:
            self.ahead.append(block)
            yield block

    def _next(self) -> Waveform | None:
        start = perf_counter()
        block = next(self.stream, None)
        self.read_ms += 1000.0 * (perf_counter() - start)
        if block is None:
            self.ended_s = self.ended_s or perf_counter()
            return None
        self.samples += len(block)
        if self.samples > self.max_samples:
            raise AudioTooLongError(self.too_long)
        return block
