"""From log-mel to audio embeddings: the encoder, a few chunks at a time, and the projector on its heels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice, repeat
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.bundle.graph_check import Case, check_graph, max_uses
from dasheng_edge.runtime.bundle.graph_shapes import Shape
from dasheng_edge.runtime.machine.devices import Device
from dasheng_edge.runtime.machine.turns import Lent, Turns

from .front_end import Features
from .onnx_session import OnDevice, onnx_session, run_graph, run_on_device

Feed: TypeAlias = dict[str, NDArray[Any]]  # what the encoder's graph is given for one chunk, by name
Patches: TypeAlias = NDArray[np.float32] | OnDevice  # [patches, audio_dim]

# Chunks that share a run, where the graph keeps them apart. On two cores, the fp32 encoder of the 0.6B takes 244, 236,
# 241 and 256 ms for each chunk of 10 s in runs of 1, 2, 4 and 8, and 52, 49, 46 and 45 ms for those of 2 s.
CHUNKS: Mapping[Device, int] = {"cpu": 1, "cuda": 8}
# Shapes of runs on a GPU, where a new one costs 50 ms (memory is taken, kernels are chosen and loaded) and one that is
# filled up next to nothing, since it waits for the launch of its kernels: one chunk of a quarter, a half, three
# quarters or all of its length; 2, 3, 4, 6 or 8 of half of it or all.
_LENGTHS, _LENGTHS_TOGETHER, _COUNTED = 4, 2, 4


class Encoder:
    """`encoder.onnx`: log_mel float32 [chunks, n_mels, frames <= 1008] -> patches float32 [chunks, frames // 4, dim].

    What else it asks for, all int64 [chunks] but the spectrogram:

    - valid_patches: how many patches of the chunk may be attended to.
    - Two branches: also acoustic_mel float32 [chunks, n_acoustic, frames], and kept_patches: how many leading patches
      keep their semantic part.
    - Plain Dasheng: instead padded_patches, int64 [1]: how many patches each chunk is filled up to, its own included.

    Chunks do not see each other, so they may come from several clips. What a run needs of memory does not grow with the
    clip: it takes `max_chunks` at most. That is 1 where the graph takes no more, or would let chunks that share a run
    change each other's numbers, as int8 does. May be called from several threads at once.

    Where chunks share runs and the graph has a mask, they are filled up so that all runs have one of `shapes`; else
    these are examples.
    """

    def __init__(  # noqa: PLR0913  # how a session is opened
        self,
        path: Path,
        spec: FrontEndSpec,
        *,
        device: Device = "cpu",
        threads: int = 1,
        allow_tf32: bool = False,
        packed: bool = True,
        turns: Turns | None = None,
        chunks: int | None = None,
    ) -> None:
        self.spec, self._path = spec, path
        full, patch = spec.chunk_frames, spec.patch_frames
        # The shortest chunk without a key, one that does not fill its last patch, and the longest.
        cases = [_case(spec, patch, 0), _case(spec, full - 1, full // patch - 1), _case(spec, full, full // patch)]
        chunks = CHUNKS[device] if chunks is None else chunks
        several = _case(spec, full, full // patch, chunks) if chunks > 1 else None
        self.max_chunks, _, self.width = check_graph(path, cases, several).shapes["patches"]
        self.stays = device != "cpu" and self._few_shapes  # whether `clips` leaves patches on the device
        self._session = Lent(
            lambda: onnx_session(path, device, threads, allow_tf32=allow_tf32, packed=packed), turns, "audio"
        )
        self._session()

    @property
    def _few_shapes(self) -> bool:
        return self.max_chunks > 1 and not self.spec.takes_padding

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Chunks and frames of runs, the largest first."""
        several = [count for count in range(2, self.max_chunks + 1) if count == self._rounded(count, 1)[0]]
        full = self.spec.chunk_frames
        shapes = {self._rounded(1, full * part // _LENGTHS) for part in range(1, _LENGTHS + 1)}
        shapes |= {self._rounded(count, full // part) for count in several for part in range(1, _LENGTHS_TOGETHER + 1)}
        return sorted(shapes, reverse=True)

    def _rounded(self, chunks: int, frames: int) -> tuple[int, int]:
        """What a run is filled up to."""
        if not self._few_shapes:
            return chunks, frames
        lengths = _LENGTHS if chunks == 1 else _LENGTHS_TOGETHER
        step = -(-self.spec.chunk_patches // lengths) * self.spec.patch_frames
        filled = min(-(-frames // step) * step, self.spec.chunk_frames)
        return chunks if chunks <= _COUNTED else min(chunks + chunks % 2, self.max_chunks), filled

    def patches(self, features: Features) -> NDArray[np.float32]:
        """The spectrograms of a clip -> float32 [patches, audio_dim]."""
        return np.concatenate(list(self.chunks(features)))

    def chunks(self, features: Features, first: int = 0) -> Iterator[NDArray[np.float32]]:
        """As `patches`, but one chunk after another; `first` is where in its clip the first patch lies."""
        return self.stream(chunk_feeds(self.spec, features, first))

    def stream(self, feeds: Iterable[Feed], most: int | None = None) -> Iterator[NDArray[np.float32]]:
        """As `together`, for `most` chunks at a time, by default as many as share a run."""
        feeds = iter(feeds)
        while some := list(islice(feeds, most or self.max_chunks)):
            yield from self.together(some)

    def together(self, feeds: Sequence[Feed]) -> list[NDArray[np.float32]]:
        """What `chunk_feeds` makes of chunks, of several clips or one -> patches float32 [patches, audio_dim] of each.

        Up to `max_chunks` share a run. The shorter ones are filled up with frames that they do not attend to, where the
        graph has a mask; else all of a run have one length. Their numbers differ from those of a chunk alone by less
        than 1e-6 of their RMS in float32.

        Raises:
            DeviceError: ONNX Runtime failed, or what came out is not finite.
            BundleFileError: the graph gave another number of patches than the counting law.
        """
        patches: dict[int, NDArray[np.float32]] = {}
        for places in self._runs(feeds):
            patches |= zip(places, self._run([feeds[place] for place in places]), strict=True)
        return [patches[place] for place in range(len(feeds))]

    def clips(self, clips: Sequence[Sequence[Feed]]) -> list[Patches]:
        """The patches of each clip, for `Projector.embeddings`: what `chunk_feeds` makes of all its chunks.

        On a GPU they stay there: in a run, a clip's chunks lie behind each other, and all but its last are full. So
        its patches are rows without a gap, unless it has more chunks than share a run.

        Raises what `together` raises.
        """
        found: dict[int, Patches] = {}
        together: list[int] = []  # places of clips
        for place, feeds in enumerate(clips):
            if not self.stays or len(feeds) > self.max_chunks:
                continue
            if sum(len(clips[other]) for other in together) + len(feeds) > self.max_chunks:
                found |= self._left_there(clips, together)
                together = []
            together.append(place)
        if together:
            found |= self._left_there(clips, together)
        others = [place for place in range(len(clips)) if place not in found]
        patches = iter(self.together([feed for place in others for feed in clips[place]]))
        found |= {place: np.concatenate(list(islice(patches, len(clips[place])))) for place in others}
        return [found[place] for place in range(len(clips))]

    def _left_there(self, clips: Sequence[Sequence[Feed]], places: Sequence[int]) -> dict[int, Patches]:
        """The patches of clips that share a run, by their places."""
        feeds = [feed for place in places for feed in clips[place]]
        joined, shape = self._joined(feeds, max(map(_frames, feeds)))
        whole, chunk, found = run_on_device(self._session(), self._path, joined, shape), 0, dict[int, Patches]()
        for place in places:
            rows = sum(_frames(feed) // self.spec.patch_frames for feed in clips[place])
            found[place] = replace(whole, first=chunk * shape[1], rows=rows)
            chunk += len(clips[place])
        return found

    def _runs(self, feeds: Sequence[Feed]) -> Iterator[list[int]]:
        """Places of the chunks of each run, the longest first."""
        run: list[int] = []
        for place in sorted(range(len(feeds)), key=lambda place: -_frames(feeds[place])):
            if run and (len(run) == self.max_chunks or not self._fits(feeds[run[0]], feeds[place])):
                yield run
                run = []
            run.append(place)
        if run:
            yield run

    def _fits(self, longest: Feed, other: Feed) -> bool:
        """Whether a chunk may share a run: where there is a mask, a shorter one is filled up."""
        if not self.spec.takes_padding:
            return True
        return _frames(other) == _frames(longest) and bool(other["padded_patches"] == longest["padded_patches"])

    def _run(self, feeds: Sequence[Feed]) -> list[NDArray[np.float32]]:
        joined, shape = self._joined(feeds, _frames(feeds[0]))
        (patches,) = run_graph(self._session(), self._path, joined, {"patches": shape})
        return [one[: _frames(feed) // self.spec.patch_frames] for one, feed in zip(patches, feeds, strict=False)]

    def _joined(self, feeds: Sequence[Feed], longest: int) -> tuple[Feed, Shape]:
        """What the graph is given for chunks of so many frames at most, and the shape of what it gives."""
        chunks, frames = self._rounded(len(feeds), longest)
        filled = [*feeds, *repeat(feeds[-1], chunks - len(feeds))]
        joined = {name: _joined([feed[name] for feed in filled], frames) for name in feeds[0]}
        if self.spec.takes_padding:
            joined["padded_patches"] = feeds[0]["padded_patches"]
        return joined, (chunks, frames // self.spec.patch_frames, self.width)


def _frames(feed: Feed) -> int:
    return int(feed["log_mel"].shape[2])


def _joined(inputs: Sequence[NDArray[Any]], frames: int) -> NDArray[Any]:
    """One input of several chunks; the last frame of a spectrogram is repeated up to so many."""
    if inputs[0].ndim > 1 and any(one.shape[2] != frames for one in inputs):
        inputs = [np.pad(one, ((0, 0), (0, 0), (0, frames - one.shape[2])), mode="edge") for one in inputs]
    return inputs[0] if len(inputs) == 1 else np.concatenate(inputs)


def _case(spec: FrontEndSpec, frames: int, valid: int, chunks: int = 1) -> Case:
    """What the graph must make of so many frames."""
    feed: dict[str, Shape | NDArray[np.int64]] = {"log_mel": (chunks, spec.n_mels, frames)}
    keys, patches = np.full(chunks, valid, np.int64), frames // spec.patch_frames
    computed = spec.chunk_patches if spec.pads_last_chunk else patches
    if spec.acoustic:
        feed["acoustic_mel"] = (chunks, spec.acoustic.n_mels, frames)
    if spec.takes_padding:
        feed["padded_patches"] = np.array([computed], np.int64)
    else:
        feed["valid_patches"] = keys
    if spec.acoustic:
        feed["kept_patches"] = keys
    return Case(feed, {"patches": (chunks, patches, -1)}, max_uses(computed))


def chunk_feeds(spec: FrontEndSpec, features: Features, first: int = 0) -> Iterator[Feed]:
    """What the encoder's graph is given for each chunk of a clip, of which the first patches may have gone before."""
    for start, stop in spec.chunks_of(features.log_mel.shape[1] // spec.patch_frames):
        # The frames behind that fill no patch are left to the chunk.
        frames = slice(start * spec.patch_frames, start * spec.patch_frames + spec.chunk_frames)
        feed: Feed = {"log_mel": np.ascontiguousarray(features.log_mel[None, :, frames])}
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
    """`projector.onnx`: patches float32 [1, 5n, audio_dim] -> embeddings float32 [1, n, llm_dim].

    May be called from several threads at once.
    """

    def __init__(  # noqa: PLR0913  # as above
        self,
        path: Path,
        spec: FrontEndSpec,
        *,
        device: Device = "cpu",
        threads: int = 1,
        allow_tf32: bool = False,
        packed: bool = True,
        turns: Turns | None = None,
    ) -> None:
        self.spec, self._path = spec, path
        join = spec.tokens_patches
        shapes, separable = check_graph(
            path,
            [
                Case({"patches": (1, n * join, -1)}, {"embeddings": (1, n, -1)}, max_uses(n * join))
                for n in (1, spec.chunk_patches)
            ],
        )
        whole = spec.chunk_patches // join * join
        # Patches of several clips in a run; 0: each clip has a run of its own.
        self._max_patches = CHUNKS[device] * whole if separable and CHUNKS[device] > 1 else 0
        # Where they share runs, patches are filled up to a multiple, as chunks of the encoder are.
        self._multiple = whole if self._max_patches else join
        self.audio_width, self.width = shapes["patches"][2], shapes["embeddings"][2]
        self._session = Lent(
            lambda: onnx_session(path, device, threads, allow_tf32=allow_tf32, packed=packed), turns, "audio"
        )
        self._session()

    @property
    def sizes(self) -> list[int]:
        """Patches of runs, the largest first."""
        whole = self.spec.chunk_patches // self.spec.tokens_patches * self.spec.tokens_patches
        return [count * whole for count in range(max(1, self._max_patches // whole), 0, -1)]

    def embeddings(self, patches: Patches) -> NDArray[np.float32]:
        """Patches [patches, audio_dim] -> one row per audio token, float32 [tokens, llm_dim].

        Up to 4 trailing patches are dropped, so these must be all of a clip, or one of its `groups`.
        """
        join = self.spec.tokens_patches
        size = (patches.rows if isinstance(patches, OnDevice) else len(patches)) // join * join
        filled = -(-size // self._multiple) * self._multiple
        given: NDArray[np.float32] | OnDevice
        if isinstance(patches, OnDevice):
            filled = filled if filled <= patches.held else size  # with whatever lies behind: rows do not see each other
            given = replace(patches, rows=filled)
        else:
            given = np.ascontiguousarray(patches[None, :size], np.float32)
            if filled > size:
                given = np.pad(given, ((0, 0), (0, filled - size), (0, 0)), mode="edge")
        (embeddings,) = run_graph(
            self._session(), self._path, {"patches": given}, {"embeddings": (1, filled // join, self.width)}
        )
        return np.ascontiguousarray(embeddings[0, : size // join], np.float32)

    def together(self, clips: Sequence[Patches]) -> list[NDArray[np.float32]]:
        """As `embeddings`, for the patches of several clips, which share runs where that does not change the numbers.

        Those that were left on the device have runs of their own, since they do not lie behind each other.

        Raises what `embeddings` raises.
        """
        join = self.spec.tokens_patches
        runs: list[list[Patches]] = []
        room = 0  # for patches in the last run
        for patches in clips:
            if isinstance(patches, OnDevice):
                runs.append([patches])
                room = 0
                continue
            whole = patches[: len(patches) // join * join]
            if len(whole) <= room:
                runs[-1].append(whole)
            else:
                runs.append([whole])
                room = self._max_patches
            room -= len(whole)
        return [part for run in runs for part in self._parts(run)]

    def _parts(self, run: Sequence[Patches]) -> list[NDArray[np.float32]]:
        """The embeddings of the clips of one run."""
        arrays = [patches for patches in run if isinstance(patches, np.ndarray)]
        if len(arrays) < 2:
            return [self.embeddings(run[0])]
        ends = accumulate(len(patches) // self.spec.tokens_patches for patches in arrays)
        return np.split(self.embeddings(np.concatenate(arrays)), list(ends)[:-1])

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
