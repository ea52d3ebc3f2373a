"""From log-mel to audio embeddings: the encoder, one chunk at a time, and the projector over all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .devices import Device, check_graph, onnx_session
from .front_end import FrontEndSpec


class Encoder:
    """`encoder.onnx`: log_mel float32 [1, n_mels, frames <= 1008], valid_patches int64 [1]
    -> patches float32 [1, frames // 4, audio_dim].

    Chunks do not see each other, so they run one after another and memory stays flat for any length.
    """

    def __init__(self, path: Path, spec: FrontEndSpec, *, device: Device = "cpu", threads: int = 1) -> None:
        self.spec = spec
        self._session = onnx_session(path, device, threads)
        check_graph(self._session, path, ("log_mel", "valid_patches"), ("patches",))

    def patches(self, log_mel: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
        """Log-mel float32 [n_mels, frames] of a clip of so many samples -> float32 [patches, audio_dim]."""
        spec = self.spec
        valid = spec.valid_patches_of(samples)
        chunks = []
        for start, stop in spec.chunks_of(log_mel.shape[1] // spec.patch_frames):
            frames = log_mel[None, :, start * spec.patch_frames : stop * spec.patch_frames]
            attended = min(max(valid - start, 0), stop - start)
            feed = {
                "log_mel": np.ascontiguousarray(frames, np.float32),
                "valid_patches": np.array([attended], np.int64),
            }
            chunks.append(self._session.run(["patches"], feed)[0][0])
        return np.concatenate(chunks)


class Projector:
    """`projector.onnx`: patches float32 [1, 5n, audio_dim] -> embeddings float32 [1, n, llm_dim]."""

    def __init__(self, path: Path, spec: FrontEndSpec, *, device: Device = "cpu", threads: int = 1) -> None:
        self.spec = spec
        self._session = onnx_session(path, device, threads)
        check_graph(self._session, path, ("patches",), ("embeddings",))

    def embeddings(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Patches float32 [patches, audio_dim] -> one row per audio token, float32 [tokens, llm_dim].

        They must be those of the whole clip: 252 patches per chunk is no multiple of 5, so a token
        straddles two chunks. Up to 4 trailing patches are dropped.
        """
        size = len(patches) // self.spec.tokens_patches * self.spec.tokens_patches
        feed = {"patches": np.ascontiguousarray(patches[None, :size], np.float32)}
        (embeddings,) = self._session.run(["embeddings"], feed)
        return np.ascontiguousarray(embeddings[0], np.float32)
