"""Where a sound is heard: distance, a synthetic room, the microphone's response and background noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft

from benchmarks.micro.scenes.signals import NYQUIST, RATE, Gain, Rng, Samples, coloured, db, decay, noise


@dataclass(frozen=True)
class Place:
    """A listening position.

    `t60_s`: reverberation time; `wet`: reverberant over direct amplitude; `cut_hz`: low pass of the air.
    """

    t60_s: float
    wet: float
    cut_hz: float = 2 * NYQUIST


def near(rng: Rng) -> Place:
    """Close by, in the open or in a small room."""
    return Place(rng.uniform(0.1, 0.4), rng.uniform(0.0, 0.35))


def far(rng: Rng) -> Place:
    """Clearly in the distance: dull, and more echo than direct sound."""
    return Place(rng.uniform(0.7, 1.1), rng.uniform(1.2, 1.8), rng.uniform(2_000, 3_000))


def response(rng: Rng, place: Place) -> Samples:
    """Impulse response: the direct sound, then noise that decays exponentially (Moorer 1979)."""
    size = int(place.t60_s * 0.7 * RATE)  # down to -42 dB
    tail = noise(rng, size) * decay(size, place.t60_s)
    tail[: int(rng.uniform(0.002, 0.008) * RATE)] = 0.0
    tail *= np.float32(place.wet) / (np.sqrt(np.sum(np.square(tail))) + np.float32(1e-9))
    tail[0] = 1.0
    return tail


def tone_control(rng: Rng, cut_hz: float) -> Gain:
    """A microphone's gentle response, +- 4 dB over the band, times a two-pole low pass at `cut_hz`."""
    bass, middle = rng.uniform(-2.5, 2.5), rng.uniform(-1.5, 1.5)

    def gain(hz: Samples) -> Samples:
        part = np.sqrt(hz / np.float32(NYQUIST))
        level = bass * np.cos(np.pi * part) + middle * np.cos(2 * np.pi * part)
        return np.asarray(10 ** (level / 20) / (1 + (hz / cut_hz) ** 2), np.float32)

    return gain


def heard_from(rng: Rng, place: Place, signal: Samples) -> Samples:
    """`signal` [n] as heard at `place`, [n]: one short FFT convolution; the tail after the end is dropped."""
    echo = response(rng, place)
    size = scipy.fft.next_fast_len(len(signal) + len(echo), real=True)
    spectrum = scipy.fft.rfft(signal, size) * scipy.fft.rfft(echo, size)
    spectrum *= tone_control(rng, place.cut_hz)(np.linspace(0, NYQUIST, size // 2 + 1, dtype=np.float32))
    return np.asarray(scipy.fft.irfft(spectrum, size, overwrite_x=True)[: len(signal)], np.float32)


def background(rng: Rng, n: int, level_db: float) -> Samples:
    """A quiet noise floor [n] of RMS `level_db` dBFS that falls 3 to 6 dB an octave, as room tone does."""
    slope = rng.uniform(0.5, 1.0)
    floor = coloured(rng, n, lambda hz: np.asarray(np.maximum(hz, 60) ** -slope, np.float32))
    return floor * np.float32(db(level_db))


def peak_normalised(signal: Samples, peak_db: float) -> Samples:
    """`signal` scaled so that its largest magnitude is `peak_db` dB full scale."""
    peak = float(np.abs(signal).max(initial=0.0))
    return np.asarray(signal * np.float32(db(peak_db) / max(peak, 1e-9)), np.float32)
