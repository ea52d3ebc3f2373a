"""From samples to log-mel frames; how many there are is counted by `runtime.bundle.front_end_spec`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.bundle.graph_check import Case, check_graph
from dasheng_edge.runtime.bundle.graph_shapes import Shape

from .onnx_session import onnx_session, run_graph


@dataclass(frozen=True)
class Features:
    """What the encoder sees of a clip."""

    log_mel: NDArray[np.float32]  # [n_mels, frames], in dB
    acoustic: NDArray[np.float32] | None  # [n_acoustic, frames], in nepers, where the encoder has that branch
    samples: int  # of the clip, after short ones were padded


class FrontEnd:
    """`front_end.onnx`: waveform float32 [1, samples] at 16 kHz -> log_mel [1, n_mels, frames], in dB.

    Where the encoder has an acoustic branch, there is a second output: acoustic_mel [1, n_acoustic, frames].

    The graph runs on one chunk of the encoder after another, so that its memory does not grow with the clip, and the
    result is that of one run over the whole clip. Two things need care:

    - A frame sees half a window on either side of its centre (of the longer one, where there are two), and the
      graph reflects the waveform at its ends. So each chunk, or part of one, gets context on both sides and the
      frames computed from reflections are dropped.
    - The graph raises the log-mel where it lies more than top_db below the loudest bin of *its chunk*. Since
      max(max(x, chunk - top_db), clip - top_db) = max(x, clip - top_db) for chunk <= clip, raising once more
      by the loudest bin of the clip gives the clip's result. A dropped frame may be louder than all true
      ones, though, and then `chunk <= clip` fails: such a chunk is cut elsewhere.
    """

    CUTS = 24  # places to try; each lies one hop further out
    PART_FRAMES = 250  # at least: ONNX Runtime's STFT takes one thread, so a chunk is cut into parts for several

    def __init__(self, path: Path, spec: FrontEndSpec, *, threads: int = 1) -> None:
        self.spec, self._path = spec, path
        n_fft = max(spec.n_fft, spec.acoustic.n_fft) if spec.acoustic else spec.n_fft
        self.edge_frames = -(-n_fft // (2 * spec.hop_length))  # frames that a reflection reaches: 2, or 4 of 1024
        longest = (spec.chunk_frames + 3 * (self.edge_frames + self.CUTS)) * spec.hop_length
        lengths = (spec.shortest_samples, longest)
        check_graph(path, [Case({"waveform": (1, size)}, self._shapes(size)) for size in lengths])
        self._session = onnx_session(path, "cpu", 1)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)  # starts threads when they are needed

    def _shapes(self, samples: int) -> dict[str, Shape]:
        """What the graph gives for so many samples, by the counting law."""
        spec, frames = self.spec, self.spec.frames_of(samples)
        acoustic = {"acoustic_mel": (1, spec.acoustic.n_mels, frames)} if spec.acoustic else {}
        return {"log_mel": (1, spec.n_mels, frames), **acoustic}

    def features(self, blocks: Iterable[NDArray[np.float32]]) -> Features:
        """Waveform blocks float32 [n] of one clip -> its spectrograms.

        A clip that is too short for a token is padded with silence at its end.

        Raises:
            DeviceError: ONNX Runtime failed, or what came out is not finite.
            BundleFileError: the graph gave another number of frames than the counting law.
        """
        chunks = [features for features, _ in self.chunks(blocks)]
        acoustic = [chunk.acoustic for chunk in chunks if chunk.acoustic is not None]
        return Features(
            np.concatenate([chunk.log_mel for chunk in chunks], axis=1),
            np.concatenate(acoustic, axis=1) if acoustic else None,
            chunks[0].samples,
        )

    def chunks(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[tuple[Features, int]]:
        """As `features`, but chunk by chunk, each with its first patch, once the whole clip is known.

        A chunk is let go of when the next is asked for, so what comes of them takes the place of the spectrograms.

        Raises what `features` raises.
        """
        parts = deque(self.computed(blocks))
        floor = max(log_mel.max() for (log_mel, *_), _ in parts) - np.float32(self.spec.top_db)
        first, samples = 0, parts[-1][1]
        while parts:
            (log_mel, *others), _ = parts.popleft()
            yield Features(np.maximum(log_mel, floor), others[0] if others else None, samples), first
            first += log_mel.shape[1] // self.spec.patch_frames

    def computed(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[tuple[list[NDArray[np.float32]], int]]:
        """What the graph returns, [bands, frames] of each output, for a chunk as soon as its waveform has come.

        With each goes how many samples have come so far, at the end those of the padding included.
        """
        spec, context = self.spec, self.edge_frames + self.CUTS
        hop, size = spec.hop_length, spec.chunk_frames
        waveform, samples = np.zeros(0, np.float32), 0  # from frame `start` on
        start = done = 0  # frames cut off in front, frames computed
        for block in blocks:
            waveform = np.concatenate([waveform, block])
            samples += len(block)
            while len(waveform) >= (done - start + size + context) * hop:
                yield self.frames(waveform, done - start, size), samples
                done += size
                keep = max(0, done - context)
                waveform = waveform[(keep - start) * hop :]
                start = keep
        padded = spec.padded_samples_of(samples)
        waveform = np.pad(waveform, (0, padded - samples))
        yield self.frames(waveform, done - start, spec.frames_of(padded) - done), padded

    def frames(self, waveform: NDArray[np.float32], first: int, count: int) -> list[NDArray[np.float32]]:
        """Frames [first, first + count) of a stretch of the clip, one array for each output of the graph.

        The stretch starts on a frame's centre.
        """
        parts = min(self._threads, count // self.PART_FRAMES)
        if parts < 2:
            return self._part(waveform, first, count)
        edges = [first + count * index // parts for index in range(parts + 1)]
        sizes = [stop - start for start, stop in pairwise(edges)]
        compute = partial(self._part, waveform)
        try:
            outputs = self._pool.map(compute, edges, sizes)
        except RuntimeError:  # the interpreter is ending, and starts no more work
            outputs = map(compute, edges, sizes)
        return [np.concatenate(output, axis=1) for output in zip(*outputs, strict=True)]

    def _part(self, waveform: NDArray[np.float32], first: int, count: int) -> list[NDArray[np.float32]]:
        hop = self.spec.hop_length
        results: list[NDArray[np.float32]] = []
        begin = 0
        for cut in range(self.edge_frames, self.edge_frames + self.CUTS):
            begin = max(0, first - cut)
            end = min(len(waveform), (first + count - 1 + cut) * hop)
            feed = {"waveform": waveform[None, begin * hop : end]}
            results = run_graph(self._session, self._path, feed, self._shapes(end - begin * hop))
            log_mel = results[0]
            true = self.edge_frames if begin else 0
            last = log_mel.shape[-1] - (0 if end == len(waveform) else self.edge_frames)
            kept = log_mel[0, :, first - begin : first - begin + count]
            raised = kept.min() < log_mel.max() - self.spec.top_db + 1e-3  # dB, more than float32 rounds
            if not raised or log_mel.max() <= log_mel[0, :, true:last].max():
                break
        return [result[0, :, first - begin : first - begin + count] for result in results]


class RunningFeatures(Iterator[tuple[Features, int]]):
    """Features chunk by chunk while a clip comes, each with its first patch.

    Of the whole clip, the log-mel is raised where it lies more than top_db below the loudest bin. What comes later is
    not known yet, so here it is the loudest bin so far: where the clip gets louder by d dB afterwards, quiet bins lie
    up to d dB lower than in the whole clip. `deviation_db` is the most that happened, 0 where the numbers are the same.
    """

    def __init__(self, front_end: FrontEnd, blocks: Iterable[NDArray[np.float32]]) -> None:
        self.deviation_db = 0.0
        self._spec = front_end.spec
        self._parts = front_end.computed(blocks)
        self._loudest = -np.inf
        self._lowest = np.inf
        self._patches = 0

    def __next__(self) -> tuple[Features, int]:
        (log_mel, *others), samples = next(self._parts)
        self._loudest = max(self._loudest, float(log_mel.max()))
        floor = self._loudest - self._spec.top_db
        self.deviation_db = max(self.deviation_db, floor - self._lowest)
        limited = np.maximum(log_mel, np.float32(floor))
        self._lowest = min(self._lowest, float(limited.min()))
        first, self._patches = self._patches, self._patches + log_mel.shape[1] // self._spec.patch_frames
        return Features(limited, others[0] if others else None, samples), first
