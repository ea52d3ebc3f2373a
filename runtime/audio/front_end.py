"""From samples to log-mel frames; how many there are is counted by `runtime.bundle.front_end_spec`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec
from dasheng_edge.runtime.bundle.graph_check import FIX, Case, check_graph
from dasheng_edge.runtime.bundle.graph_shapes import Shape
from dasheng_edge.runtime.deviation import max_difference
from dasheng_edge.runtime.errors import BundleFileError, DeviceError
from dasheng_edge.runtime.machine.governor import governor

from .onnx_session import onnx_session, run_graph

MAX_APART = 0.01  # dB or nepers, of a front end and its graph, which both compute in float64: 1e-6 is seen


@dataclass(frozen=True)
class Features:
    """What the encoder sees of a clip."""

    log_mel: NDArray[np.float32]  # [n_mels, frames], in dB
    acoustic: NDArray[np.float32] | None  # [n_acoustic, frames], in nepers, where the encoder has that branch
    samples: int  # of the clip, after short ones were padded


def mel_filters(spec: FrontEndSpec | AcousticSpec, sample_rate_hz: int) -> NDArray[np.float64]:
    """Triangular filters on the HTK mel scale, without normalisation: float64 [n_fft // 2 + 1, n_mels].

    mel(f) = 2595 log10(1 + f / 700) (The HTK Book, section 5.6).
    """
    bins_hz = np.linspace(0, sample_rate_hz / 2, spec.n_fft // 2 + 1)
    low, high = 2595.0 * np.log10(1.0 + np.array([spec.f_min_hz, spec.f_max_hz]) / 700.0)
    edges_hz = 700.0 * (10.0 ** (np.linspace(low, high, spec.n_mels + 2) / 2595.0) - 1.0)
    width_hz = np.diff(edges_hz)
    slope = edges_hz[None, :] - bins_hz[:, None]  # [bins, n_mels + 2]
    filters: NDArray[np.float64] = np.minimum(-slope[:, :-2] / width_hz[:-1], slope[:, 2:] / width_hz[1:]).clip(min=0)
    return filters


class _Spectrum:
    """One of the spectrograms, in float64 as in the graph: quiet bins of a loud frame would be noise in float32."""

    FRAMES = 120  # at a time, so that what is computed of them stays in a core's cache
    # NumPy's OpenBLAS multiplies larger matrices in threads of its own, on all cores, and they wait in loops.
    PRODUCTS = 1 << 18

    def __init__(self, spec: FrontEndSpec | AcousticSpec, front_end: FrontEndSpec) -> None:
        self._spec, self._hop = spec, front_end.hop_length
        self.half = spec.n_fft // 2  # what a frame sees on either side of its centre
        # Hann; a window shorter than the transform is centred in it.
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.win_length) / spec.win_length)
        left = (spec.n_fft - spec.win_length) // 2
        self._window = np.pad(hann, (left, spec.n_fft - spec.win_length - left))
        self._filters = mel_filters(spec, front_end.sample_rate_hz)
        self._rows = max(1, self.PRODUCTS // self._filters.size)

    def frames(self, waveform: NDArray[np.float32], first: int, count: int) -> NDArray[np.float32]:
        """Frames [first, first + count) of a stretch that starts on a frame's centre: float32 [bands, count].

        They see half a window around them. Where the stretch ends before, it is reflected, as at the ends of a clip.
        """
        begin, end = first * self._hop - self.half, (first + count - 1) * self._hop + self.half
        start = max(0, begin - 1)  # one more, since a reflection leaves out the last sample
        seen = waveform[start:end].astype(np.float64)
        padded = np.pad(seen, (max(0, -begin), max(0, end - len(waveform))), mode="reflect")[max(0, begin - start) :]
        spectra = np.empty((self._filters.shape[1], count), np.float32)
        framed = np.lib.stride_tricks.sliding_window_view(padded, 2 * self.half)[:: self._hop]
        for place in range(0, count, self.FRAMES):
            spectra[:, place : place + self.FRAMES] = self._bands(framed[place : place + self.FRAMES]).T
        return spectra

    def _bands(self, framed: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64 [frames, n_fft] -> [frames, bands], in dB of power or in nepers of magnitude."""
        spectrum = np.fft.rfft(framed * self._window)
        power = spectrum.real**2 + spectrum.imag**2
        nepers = isinstance(self._spec, AcousticSpec)
        heard = np.sqrt(power) if nepers else power
        bands = np.empty((len(heard), self._filters.shape[1]))
        for row in range(0, len(heard), self._rows):
            np.matmul(heard[row : row + self._rows], self._filters, out=bands[row : row + self._rows])
        audible = np.maximum(bands, self._spec.log_floor)
        return np.log(audible) if nepers else 10.0 * np.log10(audible)


class FrontEnd:
    """Waveform float32 [samples] at 16 kHz -> log-mel [n_mels, frames], in dB, on the CPU.

    Where the encoder has an acoustic branch, there is a second spectrogram [n_acoustic, frames], in nepers.

    It computes what `front_end.onnx` does in a third of the time: 10 s of audio take 4 ms of one core, by ONNX Runtime
    12. It works on one chunk of the encoder after another, so
    that its memory does not grow with the clip, and the result is that of the whole clip: a frame sees half a window on
    either side of its centre, and the limit of `top_db` is applied when the loudest bin of the clip is known.

    May be called from several threads at once. A chunk that is alone is shared by `threads`; those of several callers
    have a thread each, the caller's: more would wait for each other, since NumPy's calls are short and Python runs
    between them. Clips of 30 s from two callers, pools of 16 threads on two cores: 12 ms a clip shared, 7 ms apart.
    """

    PART_FRAMES = 250  # at least: for less, a thread is not worth its start

    def __init__(self, spec: FrontEndSpec, *, threads: int = 1) -> None:
        self.spec = spec
        self._spectra = [_Spectrum(one, spec) for one in (spec, spec.acoustic) if one is not None]
        self.edge_frames = -(-max(one.half for one in self._spectra) // spec.hop_length)  # that a frame sees: 2, or 4
        self._parts = max(1, min(threads, spec.chunk_frames // self.PART_FRAMES))  # that a chunk is cut into
        self._pool = ThreadPoolExecutor(self._parts)  # starts threads when they are needed
        self._lock, self._callers = threading.Lock(), 0  # whose chunks are computed at present

    def features(self, blocks: Iterable[NDArray[np.float32]]) -> Features:
        """Waveform blocks float32 [n] of one clip -> its spectrograms.

        A clip that is too short for a token is padded with silence at its end.

        Raises:
            DeviceError: what comes out is not finite, since a sample is not.
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
        """Each spectrogram, [bands, frames], of a chunk as soon as its waveform has come, without the limit of top_db.

        With each goes how many samples have come so far, at the end those of the padding included.
        """
        spec, context = self.spec, self.edge_frames + 1
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
        """Frames [first, first + count) of a stretch of the clip, of each spectrogram.

        The stretch starts on a frame's centre.
        """
        with self._share() as share:
            parts = min(share, count // self.PART_FRAMES)
            if parts < 2:
                return self._part(waveform, first, count)
            return self._in_parts(waveform, first, count, parts)

    @contextmanager
    def _share(self) -> Generator[int]:
        """How many parts a caller's chunk is cut into: one where another caller's is computed, too."""
        with self._lock:
            self._callers += 1
            share = self._parts if self._callers == 1 else 1
        try:
            yield share
        finally:
            with self._lock:
                self._callers -= 1

    def _in_parts(self, waveform: NDArray[np.float32], first: int, count: int, parts: int) -> list[NDArray[np.float32]]:
        edges = [first + count * index // parts for index in range(parts + 1)]
        sizes = [stop - start for start, stop in pairwise(edges)]
        compute = partial(self._part, waveform)
        try:
            outputs = self._pool.map(compute, edges, sizes)
        except RuntimeError:  # the interpreter is ending, and starts no more work
            outputs = map(compute, edges, sizes)
        return [np.concatenate(output, axis=1) for output in zip(*outputs, strict=True)]

    def _part(self, waveform: NDArray[np.float32], first: int, count: int) -> list[NDArray[np.float32]]:
        with governor().beside(1), np.errstate(all="ignore"):
            results = [spectrum.frames(waveform, first, count) for spectrum in self._spectra]
        if not all(np.isfinite(result).all() for result in results):
            raise DeviceError(
                "the spectrogram has NaN or infinity, so a sample has, or is beyond all measure; expected samples from "
                "-1 to 1: scale them, or look for what made them"
            )
        return results


class FrontEndGraph:
    """`front_end.onnx`: waveform float32 [1, samples] -> the spectrograms, [1, bands, frames], limited by top_db.

    It is for programs without a `FrontEnd`; here, to be compared with it. Its memory grows with the clip.
    """

    def __init__(self, path: Path, spec: FrontEndSpec) -> None:
        self.spec, self._path = spec, path
        lengths = (spec.shortest_samples, spec.chunk_samples)
        check_graph(path, [Case({"waveform": (1, size)}, self._shapes(size)) for size in lengths])
        self._session = onnx_session(path, "cpu", 1)

    def features(self, waveform: NDArray[np.float32]) -> Features:
        """All samples of a clip, float32 [n], which is padded where it is short -> its spectrograms.

        Raises what `run_graph` raises.
        """
        samples = self.spec.padded_samples_of(len(waveform))
        feed = {"waveform": np.pad(waveform, (0, samples - len(waveform)))[None]}
        log_mel, *others = run_graph(self._session, self._path, feed, self._shapes(samples))
        return Features(log_mel[0], others[0][0] if others else None, samples)

    def _shapes(self, samples: int) -> dict[str, Shape]:
        """What the graph gives for so many samples, by the counting law."""
        spec, frames = self.spec, self.spec.frames_of(samples)
        acoustic = {"acoustic_mel": (1, spec.acoustic.n_mels, frames)} if spec.acoustic else {}
        return {"log_mel": (1, spec.n_mels, frames), **acoustic}


def check_front_end(path: Path, spec: FrontEndSpec) -> None:
    """Hold what a manifest states against the bundle's graph, on noise with silence behind it, and on silence.

    Captions are made without the graph, so nothing else would show that a manifest, which no checksum covers, states
    other numbers than the encoder was trained with. It takes 4 ms.

    Raises:
        BundleFileError: the graph gives something else, or is none that a bundle may hold.
        DashengEdgeError: what else `onnx_session` and `run_graph` raise.
    """
    graph, front_end = FrontEndGraph(path, spec), FrontEnd(spec)
    silence = np.zeros(spec.shortest_samples, np.float32)
    loud = silence.copy()
    loud[: len(loud) // 2] = np.random.default_rng(0).uniform(-1, 1, len(loud) // 2)
    for waveform in (loud, silence):  # the limits are top_db in the one, log_floor in the other
        got, wanted = front_end.features([waveform]), graph.features(waveform)
        apart = max_difference(got.log_mel, wanted.log_mel)
        if got.acoustic is not None and wanted.acoustic is not None:
            apart = max(apart, max_difference(got.acoustic, wanted.acoustic))
        if not apart <= MAX_APART:
            raise BundleFileError(
                f"{path} computes another spectrogram than the front_end of its manifest describes: it is {apart:.3g} "
                f"apart, expected at most {MAX_APART}; {FIX}"
            )


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
