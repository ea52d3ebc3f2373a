"""Log-mels of the training scenes, rendered once and kept on disk in shards that appear whole or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.micro.scenes.synthesise import Event
from benchmarks.small.scenes.kinds import KINDS
from benchmarks.small.scenes.scenes import Scene, held_out_clip, make_scene
from benchmarks.small.scenes.sentences import Told
from dasheng_edge.export.variants.spectrograms import LogMel
from dasheng_edge.runtime.atomic_output import replacing

SHARD_CLIPS = 500
TRAINING, WATCHED, EVALUATION = 1_000_000, 2_000_000, 3_000_000  # first seeds
CLIPS_OF_A_RECORDING = 3


@dataclass(frozen=True)
class Clip:
    """What is known about a clip, besides its log-mel."""

    events: tuple[Event, ...]
    told: tuple[Told, ...]


@dataclass(frozen=True)
class Features:
    """Clips in memory. `frames` float16 [sum of frames, 64] in dB; clip i is `offsets[i] : offsets[i + 1]`."""

    clips: tuple[Clip, ...]
    frames: NDArray[np.float16]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of each clip."""
        return np.diff(self.offsets)

    def log_mel(self, index: int) -> NDArray[np.float16]:
        """Log-mel [frames, 64] of one clip."""
        return self.frames[self.offsets[index] : self.offsets[index + 1]]


def held_out_scenes() -> Iterator[Scene]:
    """Every recording that no training hears, in a few clips of it."""
    for name, kind in KINDS.items():
        for source in range(len(kind.held_out)):
            for seed in range(CLIPS_OF_A_RECORDING):
                yield held_out_clip(name, source, seed)


def scenes_from(seed: int) -> Callable[[], Iterator[Scene]]:
    """A shard of scenes, the first of which has that seed."""
    return lambda: (make_scene(one) for one in range(seed, seed + SHARD_CLIPS))


def _shard(path: Path, scenes: Callable[[], Iterator[Scene]]) -> Path:
    """The file, rendered if it is not there."""
    if path.exists():
        return path
    started, to_log_mel, mels, clips = time.monotonic(), LogMel(), list[NDArray[np.float16]](), list[object]()
    for scene in scenes():
        mels.append(to_log_mel(torch.from_numpy(scene.waveform)[None])[0].T.half().numpy())
        clips.append(
            {"events": [asdict(event) for event in scene.events], "told": [asdict(told) for told in scene.told]}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        lengths = np.array([len(mel) for mel in mels])
        np.savez(file, frames=np.concatenate(mels), lengths=lengths, clips=np.array(json.dumps(clips)))
    print(f"rendered {path.name}: {len(mels)} clips in {time.monotonic() - started:.0f} s", flush=True)
    return path


def load(paths: list[Path]) -> Features:
    """Rendered shards in memory."""
    clips: list[Clip] = []
    frames, lengths = [], []
    for path in paths:
        with np.load(path) as shard:
            frames.append(shard["frames"])
            lengths.append(shard["lengths"])
            for known in json.loads(str(shard["clips"])):
                events = tuple(Event(**event) for event in known["events"])
                clips.append(Clip(events, tuple(Told(**told) for told in known["told"])))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return Features(tuple(clips), np.concatenate(frames), offsets)


def scenes(folder: Path, first: int, count: int) -> Features:
    """Scenes from seed `first` on, rendered where they are missing; `count` is a multiple of a shard."""
    starts = range(first, first + count, SHARD_CLIPS)
    return load([_shard(folder / f"scenes-{start}.npz", scenes_from(start)) for start in starts])


def held_out(folder: Path) -> Features:
    """The held-out recordings."""
    return load([_shard(folder / "held-out.npz", held_out_scenes)])
