"""From log-mel to audio embeddings: the encoder, one chunk at a time, and the projector on its heels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .devices import Device, check_graph, onnx_session, run_graph
from .front_end import FrontEndSpec


class Encoder:
    """`encoder.onnx`: log_mel float32 [1, n_mels, frames <= 1008], valid_patches int64 [1]
    -> patches float32 [1, frames // 4, audio_dim].

    Chunks do not see each other, so they run one after another, and what the graph needs of memory does not
    grow with the clip.
    """

    def __init__(self, path: Path, spec: FrontEndSpec, *, device: Device = "cpu", threads: int = 1) -> None:
        self.spec = spec
        self._session = onnx_session(path, device, threads)
        check_graph(self._session, path, ("log_mel", "valid_patches"), ("patches",))

    def patches(self, log_mel: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
        """Log-mel float32 [n_mels, frames] of a clip of so many samples -> float32 [patches, audio_dim]."""
        return np.concatenate(list(self.chunks(log_mel, samples)))

    def chunks(self, log_mel: NDArray[np.float32], samples: int) -> Iterator[NDArray[np.float32]]:
        """As `patches`, but one chunk after another."""
        spec = self.spec
        valid = spec.valid_patches_of(samples)
        for start, stop in spec.chunks_of(log_mel.shape[1] // spec.patch_frames):
            frames = log_mel[None, :, start * spec.patch_frames : stop * spec.patch_frames]
            attended = min(max(valid - start, 0), stop - start)
            feed: dict[str, NDArray[Any]] = {
                "log_mel": np.ascontiguousarray(frames, np.float32),
                "valid_patches": np.array([attended], np.int64),
            }
            yield run_graph(self._session, feed)[0]


class Projector:
    """`projector.onnx`: patches float32 [1, 5n, audio_dim] -> embeddings float32 [1, n, llm_dim]."""

    def __init__(self, path: Path, spec: FrontEndSpec, *, device: Device = "cpu", threads: int = 1) -> None:
        self.spec = spec
        self._session = onnx_session(path, device, threads)
        check_graph(self._session, path, ("patches",), ("embeddings",))

    def embeddings(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Patches float32 [patches, audio_dim] -> one row per audio token, float32 [tokens, llm_dim].

        Up to 4 trailing patches are dropped, so these must be all of a clip, or one of its `groups`.
        """
        size = len(patches) // self.spec.tokens_patches * self.spec.tokens_patches
        feed = {"patches": np.ascontiguousarray(patches[None, :size], np.float32)}
        return np.ascontiguousarray(run_graph(self._session, feed)[0], np.float32)

    def groups(self, chunks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """The chunks of a clip, float32 [patches, audio_dim], cut anew where an audio token ends.

        252 patches per chunk is no multiple of 5, so a token straddles two chunks. Tokens do not see each
        other. What is left at the end is dropped.
        """
        left: NDArray[np.float32] | None = None
        for chunk in chunks:
            patches = chunk if left is None else np.concatenate([left, chunk])
            size = len(patches) // self.spec.tokens_patches * self.spec.tokens_patches
            left = patches[size:]
            if size:
                yield patches[:size]
