"""Encoder and projector of fixed shapes in ONNX Runtime: what a program on a board does with them, and how they err."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.encoder import Feed, chunk_feeds
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.audio.onnx_session import onnx_session, run_graph
from dasheng_edge.runtime.bundle.bundle import ENCODER, PROJECTOR
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec

Array = NDArray[np.float32]


class StaticLayout:
    """What graphs of so many frames are given for a clip.

    A shorter chunk is filled up: the last frame is repeated, and `valid_patches` says how much of it counts. Graphs for
    `full_chunks` have no such input, and attend to all that they are given; those of plain Dasheng are always so.
    """

    def __init__(self, spec: FrontEndSpec, frames: int, *, full_chunks: bool = False) -> None:
        self.spec, self.frames, self.patches = spec, frames, frames // spec.patch_frames
        self.tokens = self.patches // spec.tokens_patches  # of a run of the projector
        self.samples = frames * spec.hop_length  # of the longest clip
        self.full_chunks = full_chunks or spec.takes_padding
        self._reach = max(spec.n_fft, spec.acoustic.n_fft if spec.acoustic else 0) // 2  # of the last spectrum

    @property
    def constants(self) -> dict[str, NDArray[np.int64]]:
        """Inputs of the encoder that full chunks leave no choice of."""
        return {name: np.array([self.patches]) for name in self._counts} if self.full_chunks else {}

    @property
    def _counts(self) -> list[str]:
        """Inputs of the encoder that count patches."""
        if self.spec.takes_padding:
            return ["padded_patches"]
        return ["valid_patches", *(["kept_patches"] if self.spec.acoustic else [])]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the other inputs, of all graphs but the projector."""
        bands = {"log_mel": self.spec.n_mels}
        if self.spec.acoustic:
            bands["acoustic_mel"] = self.spec.acoustic.n_mels
        spectra = {name: (1, count, self.frames) for name, count in bands.items()}
        return {"waveform": (1, self.samples + self._reach), **spectra, **dict.fromkeys(self._counts, (1,))}

    def fits(self, features: Features) -> bool:
        """Whether no chunk of a clip has more patches than the graphs take."""
        frames = (int(feed["log_mel"].shape[2]) for feed in chunk_feeds(self.spec, features))
        return all(count // self.spec.patch_frames <= self.patches for count in frames)

    def feeds(self, features: Features) -> Iterator[tuple[Feed, int]]:
        """What the encoder is given for each chunk of a clip, and how many of the patches that it gives count."""
        for feed in chunk_feeds(self.spec, features):
            frames = feed["log_mel"].shape[2]
            filled = {name: self._filled(values) for name, values in feed.items() if name not in self.constants}
            yield filled, frames // self.spec.patch_frames

    def _filled(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        if values.ndim < 3:
            return values
        return np.pad(values[:, :, : self.frames], ((0, 0), (0, 0), (0, max(0, self.frames - values.shape[2]))), "edge")

    def waveform(self, samples: Array) -> Array:
        """A clip float32 [n] -> what the front end is given, float32 [1, samples].

        Behind its end a clip goes on in reverse, as far as its last spectrum reaches, and then there is silence.
        """
        whole = np.pad(samples, (0, self._reach), "reflect")
        return np.pad(whole, (0, self.samples - len(samples)))[None]


class StaticParts:
    """Encoder, and projector if the bundle has one, from a folder."""

    def __init__(self, folder: Path, layout: StaticLayout, threads: int, names: Sequence[str]) -> None:
        self.layout, self._folder = layout, folder
        self._encoder = onnx_session(folder / ENCODER, "cpu", threads)
        self._projector = onnx_session(folder / PROJECTOR, "cpu", threads) if PROJECTOR in names else None
        self._width = self._encoder.get_outputs()[0].shape[2]

    def outputs(self, features: Features) -> Array:
        """The embeddings of a clip, float32 [tokens, llm_dim], or without a projector its patches."""
        patches = self.patches(features)
        return patches if self._projector is None else self.embeddings(patches)

    def patches(self, features: Features) -> Array:
        """The patches of a clip, float32 [patches, dim]."""
        return np.concatenate([self.run(feed)[:count] for feed, count in self.layout.feeds(features)])

    def run(self, feed: Feed) -> Array:
        """What the encoder gives, float32 [patches of its length, dim]."""
        wanted = {"patches": (1, self.layout.patches, self._width)}
        (patches,) = run_graph(self._encoder, self._folder / ENCODER, feed, wanted)
        return np.asarray(patches[0])

    def embeddings(self, patches: Array) -> Array:
        """Patches of a clip -> one row per audio token, float32 [tokens, llm_dim]."""
        assert self._projector is not None
        width = self._projector.get_outputs()[0].shape[2]
        wanted = {"embeddings": (1, self.layout.tokens, width)}
        rows = [
            run_graph(self._projector, self._folder / PROJECTOR, {"patches": run}, wanted)[0][0]
            for run in projector_runs(self.layout, patches)
        ]
        whole = np.concatenate([*rows, np.zeros((0, width), np.float32)])
        return whole[: len(patches) // self.layout.spec.tokens_patches]


def projector_runs(layout: StaticLayout, patches: Array) -> Iterator[Array]:
    """The patches of a clip as a projector of fixed shape takes them, float32 [1, 5n, dim]; the last are repeated."""
    join = layout.spec.tokens_patches
    size, step = len(patches) // join * join, layout.tokens * join
    for start in range(0, size, step):
        run = patches[start : min(start + step, size)]
        yield np.pad(run, ((0, step - len(run)), (0, 0)), "edge")[None]


def random_features(spec: FrontEndSpec, samples: Sequence[int]) -> list[Features]:
    """Spectrograms like those of sounds, of clips of so many samples."""
    generator = np.random.default_rng(0)

    def spectrum(bands: int, mean: float, spread: float, frames: int) -> Array:
        return (mean + spread * generator.standard_normal((bands, frames))).astype(np.float32)

    return [
        Features(
            spectrum(spec.n_mels, -40, 15, spec.frames_of(count)),
            spectrum(spec.acoustic.n_mels, -6, 3, spec.frames_of(count)) if spec.acoustic else None,
            count,
        )
        for count in samples
    ]


def lengths(layout: StaticLayout) -> list[int]:
    """Clips, in samples, that fill the graphs, all but a patch, and to a part where they take less than full chunks."""
    spec, full = layout.spec, layout.samples
    if layout.full_chunks:
        return [full]
    a_patch_less = full - spec.patch_frames * spec.hop_length
    return sorted(
        {min(full, max(spec.shortest_samples, samples)) for samples in (0, full * 2 // 5, a_patch_less, full)}
    )
