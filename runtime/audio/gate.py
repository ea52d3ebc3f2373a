"""Whether there is anything to hear: of a whole clip, and of a room, block after block.

This is no detector of speech, which would drop all that is not a voice.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec

from .front_end import mel_filters
from .read import Waveform

BLOCK_S = 0.05  # of a clip: two and a half periods of mains hum, which must not look like drift
# No 16-bit file can hold less: 1 step is -90 dB, and its dither, which lasts, has -96 to -90 dB. What is recorded with
# 24 bits or as floats may be as quiet as that, but then it rises and falls.
NOTHING_DB, DITHER_DB = -105.0, -90.0
SILENT_DB = -200.0  # level of nothing
RINGING_DB = 30.0  # below an offset: 37 dB were seen in a block of that length
BLOCKS = 64  # whose levels are computed at once, in arrays of 0.4 MB at 16 kHz; those of an hour would take 2 GB
STEADY_DB = 6.0  # blocks of noise differ by less; of sparse flips of the last bit, too

FLOOR_S = 8.0  # what lasts longer is background: longer than most single sounds, shorter than what bores
MIN_LEVEL_DB = -75.0  # the noise of good microphones; less is not heard
START_LEVEL_DB = -60.0  # what is taken for background at first: noise of any microphone in a quiet room
LEVEL_DB = 6.0  # above the floor: steady noise is 1 to 3 dB above its own quietest block
NOVEL_BANDS = 4  # loudest of the mel bands, against the background: a whistle fills two to four
NOVEL_DB = 10.0  # of those: in steady noise, 4 to 6


def level_db(waveform: Waveform) -> float:
    """Level of a stretch of audio, float32 [n], in dBFS: RMS, of which a full-scale square wave has 0; -200 of none.

    Its mean and its drift, a straight line, are left out: they are no sound.
    """
    return float(_levels_db(waveform.astype(np.float64)[None])[0]) if len(waveform) else SILENT_DB


def _levels_db(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """[blocks, n] -> dBFS [blocks]."""
    line = np.linspace(-1.0, 1.0, blocks.shape[1])
    centred = blocks - blocks.mean(axis=1, keepdims=True)
    slope = centred @ line / max(float(line @ line), 1e-9)
    power: NDArray[np.float64] = np.mean((centred - slope[:, None] * line) ** 2, axis=1)
    return 10.0 * np.log10(np.maximum(power, 1e-20))


def is_silent(waveform: Waveform, rate_hz: int) -> bool:
    """Whether a whole clip, float32 [n] with full scale 1, holds nothing: digital zero, an offset, or dither.

    However quiet, a recording in which something can be heard rises and falls, and is not silent.
    """
    size = max(1, min(round(BLOCK_S * rate_hz), len(waveform)))
    middle = len(waveform) // 2
    if level_db(waveform[middle : middle + size]) >= DITHER_DB:  # most clips need no more
        return False
    whole = len(waveform) // size * size
    parts = [waveform[at : min(at + BLOCKS * size, whole)] for at in range(0, whole, BLOCKS * size)]
    parts.append(waveform[-size:])  # the last ones, once more where they fit
    levels = np.concatenate(
        [_levels_db(part.astype(np.float64).reshape(-1, size)) for part in parts if len(part)] or [np.zeros(0)]
    )
    if len(levels) > 3:  # an offset that sets in with the clip rings where it was resampled, which is no sound either
        offset_db = 20.0 * np.log10(max(abs(float(np.mean(waveform))), 1e-10))
        levels[[0, -2, -1]] = np.where(levels[[0, -2, -1]] < offset_db - RINGING_DB, SILENT_DB, levels[[0, -2, -1]])
    heard = levels[levels > NOTHING_DB]
    return not heard.size or bool(heard.max() < DITHER_DB and heard.max() - np.percentile(heard, 10) < STEADY_DB)


class Gate:
    """Opens for what is louder than the background, or differs from it: a sound, and a hum that changes.

    The background is the quietest that each mel band was within the last `FLOOR_S`. So a sound that comes and goes
    never becomes background, and one that lasts does. It costs a spectrogram, and no encoder.
    """

    def __init__(self, spec: FrontEndSpec, *, block_s: float) -> None:
        bins = mel_filters(spec, spec.sample_rate_hz).sum(axis=0)
        window = 0.375 * spec.win_length  # sum of a squared Hann window
        self._white_db = 10.0 * np.log10(np.maximum(bins * window, spec.log_floor))  # mel of white noise of 0 dBFS
        blocks = max(1, round(FLOOR_S / block_s))
        self._levels = deque([START_LEVEL_DB], maxlen=blocks)
        self._bands = deque([START_LEVEL_DB + self._white_db], maxlen=blocks)
        self.novelty_db = 0.0  # of the last block

    @property
    def floor_db(self) -> float:
        """Level of the background, in dBFS."""
        return max(MIN_LEVEL_DB, min(self._levels))

    def opens(self, level_db: float, log_mel: NDArray[np.float32]) -> bool:
        """Whether a block is to be heard, by its level in dBFS and its spectrogram [n_mels, frames] in dB.

        The block counts for the background of the next ones.
        """
        quietest = MIN_LEVEL_DB + self._white_db
        bands = np.maximum(10.0 * np.log10(np.mean(10.0 ** (log_mel.astype(np.float64) / 10.0), axis=1)), quietest)
        excess = np.sort(bands - np.maximum(np.min(self._bands, axis=0), quietest))
        self.novelty_db = float(np.mean(excess[-NOVEL_BANDS:]))
        loud = level_db >= self.floor_db + LEVEL_DB
        self._levels.append(level_db)
        self._bands.append(bands)
        return loud or self.novelty_db >= NOVEL_DB
