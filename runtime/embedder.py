"""Audio -> embeddings of the encoder: a vector for each 40 ms, and their mean; needs no decoder."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.read import AudioSource, Waveform, read_audio
from dasheng_edge.runtime.bundle.bundle import ENCODER, Bundle
from dasheng_edge.runtime.bundle.manifest import MANIFEST
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.machine.devices import Device
from dasheng_edge.runtime.machine.forks import Home
from dasheng_edge.runtime.machine.memory import memory_errors

from .errors import BundleFileError, CaptionerBusyError
from .tuned import settings_for


@dataclass(frozen=True)
class Embedding:
    """What the encoder made of one clip."""

    frames: NDArray[np.float32]  # [patches, dim]; patch p covers 40 ms from p * 40 ms on
    mean: NDArray[np.float32]  # [dim], over the frames
    audio_s: float


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

        Raises what `Bundle.open` and `AudioParts.open` raise, all of them `DashengEdgeError`.
        """
        options = (options or EngineOptions()).changed(device=device, threads=threads)
        with memory_errors(f"opening {path}", "free memory, or quantize to a smaller recipe"):
            bundle = Bundle.open(path, check_sha256=check_sha256)
            return cls(bundle, AudioParts.open(bundle, settings_for(bundle, options)))

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
        spec = self.bundle.manifest.front_end
        samples = 0  # without padding

        def counted() -> Iterator[Waveform]:
            nonlocal samples
            for block in read_audio(audio, sample_rate_hz=spec.sample_rate_hz):
                samples += len(block)
                yield block

        frames, done = np.empty((0, self.dim), np.float32), 0
        for features, first in parts.front_end.chunks(counted()):
            if not first:
                frames = np.empty((spec.patches_of(features.samples), self.dim), np.float32)
            for chunk in parts.encoder.chunks(features, first):
                if chunk.shape[1] != self.dim:
                    raise BundleFileError(
                        f"{self.bundle.path(ENCODER)} gives vectors of {chunk.shape[1]} numbers, expected {self.dim} "
                        f"as {MANIFEST} says; one of them is of another bundle: export it again"
                    )
                frames[done : done + len(chunk)] = chunk
                done += len(chunk)
        frames = frames[: max(1, spec.patches_of(samples))]
        mean = frames.mean(axis=0, dtype=np.float64).astype(np.float32)  # float32 would lose digits over an hour
        return Embedding(frames, mean, samples / spec.sample_rate_hz)
