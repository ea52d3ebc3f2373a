"""Moments at which something new is heard, from what the encoder makes of a clip anyway: 25 rows a second.

A sound sets in where the next third of a second is unlike every third of the two seconds before, both to the encoder
(cosine of its patches) and in energy (bands of the spectrogram that get louder than they were). What beats, knocks or
barks on is like what was, so that its first moment stands out. Pure NumPy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .cue import Change

NOW_S, PAST_S = 0.32, 2.0  # what is compared with what
DEAF_S = 0.24  # at both ends of a clip, where there is too little to compare
PLAIN_COSINE, PLAIN_RISE_DB = 0.3, 6.0  # of a plain beginning of a sound, whose strength is 1
MIN_STRENGTH = 0.03  # below are the ripples of one sound
RANGE_DB = 80.0  # below the loudest band of a clip nothing is heard

_Rows = NDArray[np.float32]


def changes(log_mel: _Rows, patches: _Rows, *, patch_frames: int, patch_s: float) -> tuple[Change, ...]:
    """Where sounds set in: times from the start of the clip, `NOW_S` apart at least.

    `log_mel` is the clip's spectrogram, float32 [n_mels, frames] in dB; `patches` what the encoder made of it, float32
    [patches, dim], `patch_s` each.
    """
    count = min(len(patches), log_mel.shape[1] // patch_frames)
    now, past, deaf = (max(1, round(seconds / patch_s)) for seconds in (NOW_S, PAST_S, DEAF_S))
    if count <= 2 * deaf:
        return ()
    bands = np.maximum(log_mel, log_mel.max() - RANGE_DB)[:, : count * patch_frames].T
    bands = bands.reshape(count, patch_frames, -1).mean(1)
    before, after = _sides(np.asarray(patches[:count], np.float64), now)
    novel = 1.0 - _most_alike(_units(before), _units(after), past, deaf)
    before, after = _sides(np.asarray(bands, np.float64), now)
    rise_db = np.maximum(after - _loudest(before, past, deaf), 0.0).mean(1)
    strength = np.sqrt(np.maximum(novel, 0.0) / PLAIN_COSINE * rise_db / PLAIN_RISE_DB)
    strength[:deaf] = strength[-deaf:] = 0.0
    peaks = [
        at
        for at in map(int, np.flatnonzero(strength >= MIN_STRENGTH))
        if strength[at] == _around(strength, at, now).max()
    ]
    return tuple(Change(round(at * patch_s, 3), round(float(strength[at]), 3)) for at in peaks)


def _sides(rows: NDArray[np.float64], size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of up to `size` rows before and after each place between rows, both [rows + 1, dim]."""
    sums = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)])
    at = np.arange(len(sums))
    first, last = np.maximum(at - size, 0), np.minimum(at + size, len(rows))
    before = (sums - sums[first]) / np.maximum(at - first, 1)[:, None]
    after = (sums[last] - sums) / np.maximum(last - at, 1)[:, None]
    return before, after


def _units(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, 1e-9)


def _most_alike(before: NDArray[np.float64], after: NDArray[np.float64], past: int, deaf: int) -> NDArray[np.float64]:
    """How much each row of `after` is like that row of `before` of the last `past` which it is most like."""
    best = np.full(len(after), -1.0)
    for lag in range(min(past + 1, len(after) - deaf)):
        alike = np.einsum("rd,rd->r", after[lag + deaf :], before[deaf : len(before) - lag])
        best[lag + deaf :] = np.maximum(best[lag + deaf :], alike)
    return best


def _loudest(before: NDArray[np.float64], past: int, deaf: int) -> NDArray[np.float64]:
    """The loudest of each band in the last `past` rows."""
    loudest = before.copy()
    for lag in range(1, min(past + 1, len(before) - deaf)):
        loudest[lag + deaf :] = np.maximum(loudest[lag + deaf :], before[deaf : len(before) - lag])
    return loudest


def _around(strength: NDArray[np.float64], at: int, size: int) -> NDArray[np.float64]:
    return strength[max(0, at - size) : at + size + 1]
