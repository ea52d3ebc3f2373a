"""Log-mels of the training clips, rendered once by several processes and kept on disk.

A set is cut into shards of a few hundred clips; a shard is one `.npz` that appears whole or not at all, so a
killed run continues where it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.micro.scenes.spoken_digits import DigitClip, make_espeak_digits, make_real_digits
from benchmarks.micro.scenes.synthesise import make_scene
from benchmarks.places import DATA
from dasheng_edge.export.variants.spectrograms import LogMel
from dasheng_edge.runtime.atomic_output import replacing

SHARD_CLIPS = 500
FSDD = DATA / "fsdd"
TRAINING_SPEAKERS = ("george", "jackson", "lucas")
HELD_OUT_SPEAKERS = ("yweweler",)  # in no training step of any part

Kind = str  # of a set: "scenes", "espeak", "real" or "unheard"


@dataclass(frozen=True)
class Clip:
    """What is known about a clip, besides its log-mel.

    `events` are (kind, start_s, end_s); `digits` is "" for scenes and "4 0 7" for digit clips.
    """

    captions: tuple[str, ...]
    labels: str
    language: str
    events: tuple[tuple[str, float, float], ...]
    digits: str = ""


@dataclass(frozen=True)
class Features:
    """A set of clips in memory. `frames` float16 [sum of frames, 64] in dB; clip i is `offsets[i] : offsets[i + 1]`."""

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


def scene_clip(seed: int) -> tuple[Clip, NDArray[np.float32]]:
    """Scene `seed` and its waveform."""
    scene = make_scene(seed)
    events = tuple((event.kind, event.start_s, event.end_s) for event in scene.events)
    return Clip(scene.captions, scene.labels, scene.language, events), scene.waveform


def digit_clip(clip: DigitClip) -> tuple[Clip, NDArray[np.float32]]:
    """A digit clip as the base model sees it: somebody speaks English."""
    somebody = "a woman" if clip.source == "espeak" and "+f" in clip.speaker else "a man"
    captions = tuple(
        text.format(somebody)
        for text in ("{} speaks English", "the sound of {} speaking English", "{} talks in English")
    )
    length_s = len(clip.waveform) / 16000
    return Clip(captions, "speech", "English", (("speech", 0.0, length_s),), clip.digits), clip.waveform


def espeak_clip(seed: int) -> tuple[Clip, NDArray[np.float32]]:
    """Digits by a synthetic voice."""
    return digit_clip(make_espeak_digits(seed))


def real_clip(seed: int) -> tuple[Clip, NDArray[np.float32]]:
    """Digits out of recordings of the training speakers."""
    return digit_clip(make_real_digits(seed, FSDD, TRAINING_SPEAKERS, augment=True))


def unheard_clip(seed: int) -> tuple[Clip, NDArray[np.float32]]:
    """Digits out of recordings of the speakers that no training step hears; for monitoring."""
    return digit_clip(make_real_digits(seed, FSDD, HELD_OUT_SPEAKERS))


MAKERS: dict[Kind, Callable[[int], tuple[Clip, NDArray[np.float32]]]] = {
    "scenes": scene_clip,
    "espeak": espeak_clip,
    "real": real_clip,
    "unheard": unheard_clip,
}


def render_shard(job: tuple[Kind, int, int, str]) -> float:
    """Renders `count` clips of a kind from seed `first` into one file; returns the CPU seconds it took."""
    kind, first, count, target = job
    started = time.process_time()
    torch.set_num_threads(1)
    to_log_mel = LogMel()
    clips, mels = [], []
    for seed in range(first, first + count):
        clip, waveform = MAKERS[kind](seed)
        clips.append(asdict(clip))
        mels.append(to_log_mel(torch.from_numpy(waveform)[None])[0].T.half().numpy())
    lengths = np.array([len(mel) for mel in mels])
    with replacing(Path(target)) as part, part.open("wb") as file:
        np.savez(file, frames=np.concatenate(mels), lengths=lengths, clips=np.array(json.dumps(clips)))
    return time.process_time() - started


def render(folder: Path, sets: Sequence[tuple[Kind, int, int]], processes: int = 2) -> float:
    """Renders what is missing of the sets (kind, first seed, count); returns CPU seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (kind, seed, min(SHARD_CLIPS, first + count - seed), str(shard_path(folder, kind, seed)))
        for kind, first, count in sets
        for seed in range(first, first + count, SHARD_CLIPS)
    ]
    jobs = [job for job in jobs if not Path(job[3]).exists()]
    if not jobs:
        return 0.0
    cpu_s = 0.0
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, seconds in enumerate(pool.imap_unordered(render_shard, jobs), start=1):
            cpu_s += seconds
            print(f"rendered shard {done}/{len(jobs)}, {cpu_s:.0f} CPU s", flush=True)
    return cpu_s


def shard_path(folder: Path, kind: Kind, seed: int) -> Path:
    """File of the shard that starts at `seed`."""
    return folder / f"{kind}-{seed}.npz"


def load(folder: Path, kind: Kind, first: int, count: int) -> Features:
    """Reads a rendered set into memory."""
    clips: list[Clip] = []
    frames, lengths = [], []
    for seed in range(first, first + count, SHARD_CLIPS):
        with np.load(shard_path(folder, kind, seed)) as shard:
            frames.append(shard["frames"])
            lengths.append(shard["lengths"])
            for fields in json.loads(str(shard["clips"])):
                events = tuple((what, start, end) for what, start, end in fields["events"])
                words = fields["labels"], fields["language"]
                clips.append(Clip(tuple(fields["captions"]), *words, events, fields["digits"]))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return Features(tuple(clips), np.concatenate(frames), offsets)
