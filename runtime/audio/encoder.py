"""From log-mel to audio embeddings: the encoder, one chunk at a time, and the projector on its heels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.bundle.graph_check import Case, check_graph
from dasheng_edge.runtime.bundle.graph_shapes import Shape
from dasheng_edge.runtime.machine.devices import Device

from .front_end import Features
from .onnx_session import onnx_session, run_graph


class Encoder:
    """`encoder.onnx`: log_mel float32 [1, n_mels, frames <= 1008] -> patches float32 [1, frames // 4, audio_dim].

    What else it asks for, all int64 [1] but the spectrogram:

    - valid_patches: how many patches of the chunk may be attended to.
    - Two branches: also acoustic_mel float32 [1, n_acoustic, frames], and kept_patches: how many leading patches
      keep their semantic part.
    - Plain Dasheng: instead padded_patches: how many patches the chunk is filled up to, its own included.

    Chunks do not see each other, so they run one after another, and what the graph needs of memory does not
    grow with the clip.
    """

    def __init__(
        self, path: Path, spec: FrontEndSpec, *, device: Device = "cpu", threads: int = 1, allow_tf32: bool = False
    ) -> None:
        self.spec, self._path = spec, path
        full, patch = spec.chunk_frames, spec.patch_frames
        # The shortest chunk without a key, one that does not fill its last patch, and the longest.
        cases = [_case(spec, patch, 0), _case(spec, full - 1, full // patch - 1), _case(spec, full, full // patch)]
        self.width = check_graph(path, cases)["patches"][2]  # audio_dim
        self._session = onnx_session(path, device, threads, allow_tf32=allow_tf32)

    def patches(self, features: Features) -> NDArray[np.float32]:
        """The spectrograms of a clip -> float32 [patches, audio_dim]."""
        return np.concatenate(list(self.chunks(features)))

    def chunks(self, features: Features, first: int = 0) -> Iterator[NDArray[np.float32]]:
        """As `patches`, but one chunk after another; `first` is where in its clip the first patch lies."""
        for feed in chunk_feeds(self.spec, features, first):
            shape = (1, feed["log_mel"].shape[2] // self.spec.patch_frames, self.width)
            (patches,) = run_graph(self._session, self._path, feed, {"patches": shape})
            yield patches[0]


def _case(spec: FrontEndSpec, frames: int, valid: int) -> Case:
    """What the graph must make of so many frames."""
    feed: dict[str, Shape | int] = {"log_mel": (1, spec.n_mels, frames)}
    if spec.acoustic:
        feed["acoustic_mel"] = (1, spec.acoustic.n_mels, frames)
    if spec.takes_padding:
        feed["padded_patches"] = spec.chunk_patches if spec.pads_last_chunk else frames // spec.patch_frames
    else:
        feed["valid_patches"] = valid
    if spec.acoustic:
        feed["kept_patches"] = valid
    return Case(feed, {"patches": (1, frames // spec.patch_frames, -1)})


def chunk_feeds(spec: FrontEndSpec, features: Features, first: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
    """What the encoder's graph is given for each chunk of a clip, of which the first patches may have gone before."""
    for start, stop in spec.chunks_of(features.log_mel.shape[1] // spec.patch_frames):
        # The frames behind that fill no patch are left to the chunk.
        frames = slice(start * spec.patch_frames, start * spec.patch_frames + spec.chunk_frames)
        feed: dict[str, NDArray[Any]] = {"log_mel": np.ascontiguousarray(features.log_mel[None, :, frames])}
        place, size = first + start, stop - start  # of the chunk in its clip
        if spec.takes_padding:
            padded = spec.chunk_patches if place and spec.pads_last_chunk else size
            feed["padded_patches"] = np.array([padded], np.int64)
        else:
            valid = min(max(spec.valid_patches_of(features.samples) - place, 0), size)
            feed["valid_patches"] = np.array([valid], np.int64)
            if features.acoustic is not None:
                feed["acoustic_mel"] = np.ascontiguousarray(features.acoustic[None, :, frames])
                feed["kept_patches"] = np.array([valid if place else size], np.int64)
        yield feed


class Projector:
    """`projector.onnx`: patches float32 [1, 5n, audio_dim] -> embeddings float32 [1, n, llm_dim]."""

    def __init__(
        self, path: Path, spec: FrontEndSpec, *, device: Device = "cpu", threads: int = 1, allow_tf32: bool = False
    ) -> None:
        self.spec, self._path = spec, path
        join = spec.tokens_patches
        shapes = check_graph(
            path, [Case({"patches": (1, n * join, -1)}, {"embeddings": (1, n, -1)}) for n in (1, spec.chunk_patches)]
        )
        self.audio_width, self.width = shapes["patches"][2], shapes["embeddings"][2]
        self._session = onnx_session(path, device, threads, allow_tf32=allow_tf32)

    def embeddings(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Patches float32 [patches, audio_dim] -> one row per audio token, float32 [tokens, llm_dim].

        Up to 4 trailing patches are dropped, so these must be all of a clip, or one of its `groups`.
        """
        size = len(patches) // self.spec.tokens_patches * self.spec.tokens_patches
        feed = {"patches": np.ascontiguousarray(patches[None, :size], np.float32)}
        shape = (1, size // self.spec.tokens_patches, self.width)
        (embeddings,) = run_graph(self._session, self._path, feed, {"embeddings": shape})
        return np.ascontiguousarray(embeddings[0], np.float32)

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
