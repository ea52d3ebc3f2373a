"""Recordings as makers of sounds: a random part, a little faster or slower, repeated where it is short."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from benchmarks.micro.scenes.signals import RATE, Rng, Samples, loudness, ramped, stamp
from benchmarks.micro.scenes.speech import resampled, trimmed
from benchmarks.small.scenes.packages import sounds
from dasheng_edge.runtime.audio.read import read_audio

FASTEST, SLOWEST = 1.14, 0.88


@dataclass(frozen=True)
class Recorded:
    """The recordings of a package whose paths match a pattern; a maker, [n] samples."""

    package: str
    pattern: str

    def __call__(self, rng: Rng, n: int) -> Samples:
        files = sounds(self.package, self.pattern)
        whole = heard(files[int(rng.integers(len(files)))])
        return repeated(rng, resampled(whole, RATE, rng.uniform(SLOWEST, FASTEST)), n)


@lru_cache(maxsize=512)
def heard(path: Path) -> Samples:
    """A recording as float32 [samples] at 16 kHz, without the silence at its ends."""
    return trimmed(np.concatenate(list(read_audio(path))))


def repeated(rng: Rng, sound: Samples, n: int) -> Samples:
    """The loudest of three random parts of a long sound; a short one again and again, with rests, [n]."""
    if len(sound) >= n:
        starts = rng.integers(0, len(sound) - n + 1, 3)
        parts = [sound[start : start + n] for start in starts]
        return ramped(max(parts, key=loudness), 0.01, 0.03)
    out, at = np.zeros(n, np.float32), 0
    rest_s = rng.uniform(0.1, 0.7)
    while at < n:
        stamp(out, at, ramped(sound, 0.002, 0.01) * np.float32(rng.uniform(0.7, 1.0)))
        at += len(sound) + int(rest_s * rng.uniform(0.7, 1.3) * RATE)
    return out
