"""Audio -> embeddings of the encoder: a vector for each 40 ms, and their mean; needs no decoder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.front_end import Features, FrontEnd, check_front_end
from dasheng_edge.runtime.audio.read import AudioSource, AudioStream, Waveform, read_audio
from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, Bundle
from dasheng_edge.runtime.bundle.manifest import MANIFEST
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.machine.devices import Device
from dasheng_edge.runtime.machine.forks import Home
from dasheng_edge.runtime.machine.memory import memory_errors

from .errors import BundleFileError, CaptionerBusyError
from .parts import on_card
from .tuned import settings_for


@dataclass(frozen=True)
class Embedding:
    """What the encoder made of one clip."""

    frames: NDArray[np.float32]  # [patches, dim]; patch p covers 40 ms from p * 40 ms on
    mean: NDArray[np.float32]  # [dim], over the frames
    audio_s: float
    warnings: tuple[str, ...] = ()  # of what is missing in the audio, or strange about it


@dataclass(frozen=True)
class Heard:
    """What was embedded."""

    audio_s: float
    warnings: tuple[str, ...]


class Embedder:
    """Embeds clips with the encoder of any bundle, one at a time.

    Not for two threads at once: the second one gets `CaptionerBusyError`. Open one embedder per thread, or hold
    a lock of your own.
    """

    def __init__(self, bundle: Bundle, parts: AudioParts) -> None:
        self.bundle = bundle
        self._parts: AudioParts | None = parts
        self._lock = threading.Lock()
        self._home = Home("embedder", parts)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        options: EngineOptions | None = None,
        device: Device | None = None,
        threads: int | None = None,
        check_sha256: bool = True,
    ) -> Embedder:
        """Open a bundle's front end and encoder; arguments as in `Captioner.open`.

        Raises what `Bundle.open`, `on_card`, `check_front_end` and `AudioParts.open` raise, all `DashengEdgeError`.
        """
        options = (options or EngineOptions()).changed(device=device, threads=threads)
        with memory_errors(f"opening {path}", "free memory, or quantize to a smaller recipe"):
            bundle = Bundle.open(path, check_sha256=check_sha256)
            settings = on_card(bundle, replace(settings_for(bundle, options), decoder_device="cpu"))
            check_front_end(bundle.path(FRONT_END), bundle.manifest.front_end)
            return cls(bundle, AudioParts.open(bundle, settings))

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dim(self) -> int:
        """Length of each vector."""
        return self.bundle.manifest.encoder.embed_dim

    @property
    def rate_hz(self) -> float:
        """Frames per second (25)."""
        spec = self.bundle.manifest.front_end
        return spec.sample_rate_hz / (spec.hop_length * spec.patch_frames)

    def close(self) -> None:
        """Free the encoder. Harmless when repeated.

        In a forked child it does nothing.

        Raises:
            CaptionerBusyError: another thread is embedding right now.
        """
        if self._home.here:
            with self._busy():
                self._parts = None

    def embed(self, audio: AudioSource) -> Embedding:
        """Embed one clip, however long; `audio` is what `read_audio` takes.

        There are as many frames as the clip has whole groups of four log-mel frames, the first of them centred on
        its first sample: 25 per second, and one for a clip of 30 ms. The encoder needs a clip of `min_samples`,
        so a shorter one is padded with silence; it still sees the silence, but frames that are nothing else are
        dropped, down to the one that every clip has. The mean is over the frames that are returned.

        Raises:
            AudioError: the audio cannot be read.
            BundleFileError: the encoder is not the one that the manifest describes.
            CaptionerBusyError: the embedder is closed, or busy with another clip.
            ForkedError: this process was forked from the one that opened it.
            DeviceError: ONNX Runtime failed.
        """
        with self._busy():
            if self._parts is None:
                raise CaptionerBusyError("the embedder is closed; open a new one")
            return self._embed(self._parts, audio)

    def embed_to(self, audio: AudioSource, take: Callable[[NDArray[np.float32]], None], spool: IO[bytes]) -> Heard:
        """Embed one clip in memory that does not grow with it; errors as in `embed`.

        `take` is given the frames of `Embedding.frames`, float32 [n, dim], some at a time. `spool` is an empty file,
        open for writing and reading, for spectrograms: 1.5 MB a minute.
        """
        with self._busy():
            if self._parts is None:
                raise CaptionerBusyError("the embedder is closed; open a new one")
            rate_hz = self._parts.front_end.spec.sample_rate_hz
            blocks = _Blocks(read_audio(audio, sample_rate_hz=rate_hz))
            for frames in self._chunks(self._parts, _spooled(self._parts.front_end, blocks, spool), blocks):
                take(frames)
            return Heard(blocks.samples / rate_hz, blocks.blocks.warnings)

    @contextmanager
    def _busy(self) -> Generator[None]:
        """No other thread embeds meanwhile."""
        self._home.check()
        if not self._lock.acquire(blocking=False):
            raise CaptionerBusyError(
                "the embedder is busy with another clip; wait for it, or open one embedder per thread"
            )
        try:
            with memory_errors("embeddings", "free memory, or embed shorter clips"):
                yield
        finally:
            self._lock.release()

    def _embed(self, parts: AudioParts, audio: AudioSource) -> Embedding:
        blocks = _Blocks(read_audio(audio, sample_rate_hz=parts.front_end.spec.sample_rate_hz))
        frames, done = np.empty((0, self.dim), np.float32), 0
        for chunk in self._chunks(parts, parts.front_end.chunks(blocks), blocks):
            if not done:
                frames = np.empty((self._frames_of(blocks.samples), self.dim), np.float32)
            frames[done : done + len(chunk)] = chunk
            done += len(chunk)
        mean = frames.mean(axis=0, dtype=np.float64).astype(np.float32)  # float32 would lose digits over an hour
        audio_s = blocks.samples / parts.front_end.spec.sample_rate_hz
        return Embedding(frames, mean, audio_s, blocks.blocks.warnings)

    def _frames_of(self, samples: int) -> int:
        """How many frames there are but those of mere padding."""
        return max(1, self.bundle.manifest.front_end.patches_of(samples))

    def _chunks(
        self, parts: AudioParts, features: Iterable[tuple[Features, int]], blocks: _Blocks
    ) -> Iterator[NDArray[np.float32]]:
        """Frames chunk by chunk, without those of mere padding; the blocks have all come before the first."""
        left = -1
        for spectra, first in features:
            left = left if first else self._frames_of(blocks.samples)
            for chunk in parts.encoder.chunks(spectra, first):
                if chunk.shape[1] != self.dim:
                    raise BundleFileError(
                        f"{self.bundle.path(ENCODER)} gives vectors of {chunk.shape[1]} numbers, expected {self.dim} "
                        f"as {MANIFEST} says; one of them is of another bundle: export it again"
                    )
                if left:
                    yield chunk[:left]
                left -= min(left, len(chunk))


@dataclass
class _Blocks:
    """Hands the blocks of a clip on, and counts their samples."""

    blocks: AudioStream
    samples: int = 0

    def __iter__(self) -> Iterator[Waveform]:
        for block in self.blocks:
            self.samples += len(block)
            yield block


def _spooled(front_end: FrontEnd, blocks: Iterable[Waveform], spool: IO[bytes]) -> Iterator[tuple[Features, int]]:
    """As `FrontEnd.chunks`, with the spectrograms in a file until the whole clip is known."""
    spec, loudest = front_end.spec, np.float32(-np.inf)
    outputs = chunks = samples = first = 0
    for spectra, samples in front_end.computed(blocks):  # noqa: B007  # the last counts the padding
        for spectrum in spectra:
            np.lib.format.write_array(spool, spectrum, allow_pickle=False)
        loudest, outputs, chunks = max(loudest, spectra[0].max()), len(spectra), chunks + 1
    spool.seek(0)
    floor = loudest - np.float32(spec.top_db)
    for _ in range(chunks):
        log_mel, *others = [np.lib.format.read_array(spool, allow_pickle=False) for _ in range(outputs)]
        yield Features(np.maximum(log_mel, floor), others[0] if others else None, samples), first
        first += log_mel.shape[1] // spec.patch_frames
