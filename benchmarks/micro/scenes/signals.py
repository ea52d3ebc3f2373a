"""Building blocks of the procedural sounds: noise, wavetables, grains and frequency responses.

Every signal is float32 [samples], mono, 16 kHz. Frequencies are in Hz, lengths in samples unless the
name ends in `_s`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import scipy.fft

RATE = 16_000  # Hz, the only sample rate of the model
NYQUIST = RATE / 2
LEVEL_FRAME = 320  # 20 ms: long enough to hold a click, short enough to follow it
WAVETABLE = 4096  # one period; nearest-neighbour look-up leaves its error below -60 dB

Samples = npt.NDArray[np.float32]
Pitch = npt.NDArray[np.float32] | npt.NDArray[np.float64] | float  # Hz, constant or one per sample
Rng = np.random.Generator
Gain = Callable[[Samples], Samples]  # frequencies in Hz -> amplitude factors
Maker = Callable[[Rng, int], Samples]


def seconds(n: int) -> npt.NDArray[np.float64]:
    """Time axis [n] in seconds. float64: a float32 phase drifts audibly after ten seconds."""
    return np.arange(n) / RATE


def noise(rng: Rng, n: int) -> Samples:
    """White Gaussian noise [n] of unit variance."""
    return rng.standard_normal(n, dtype=np.float32)


def coloured(rng: Rng, n: int, gain: Gain) -> Samples:
    """Gaussian noise [n] whose amplitude spectrum follows `gain(hz)`: drawn as a spectrum, so one FFT."""
    size = scipy.fft.next_fast_len(max(n, 2), real=True)
    bins = size // 2 + 1
    spectrum = rng.standard_normal(2 * bins, dtype=np.float32).view(np.complex64)
    hz = np.linspace(0, NYQUIST, bins, dtype=np.float32)
    shaped = scipy.fft.irfft(spectrum * gain(hz), size, overwrite_x=True)[:n]
    return np.asarray(shaped / (np.sqrt(np.mean(np.square(shaped))) + 1e-12), np.float32)


def band(low_hz: float, high_hz: float, order: int = 4) -> Gain:
    """Butterworth-like magnitude of a band pass, for `coloured` and `filtered`."""

    def gain(hz: Samples) -> Samples:
        high_pass = 1 / np.sqrt(1 + (low_hz / np.maximum(hz, 1.0)) ** (2 * order))
        low_pass = 1 / np.sqrt(1 + (hz / high_hz) ** (2 * order))
        return np.asarray(high_pass * low_pass, np.float32)

    return gain


def peaks(centres_hz: Sequence[float], widths_hz: Sequence[float], floor: float = 0.0) -> Gain:
    """Sum of Lorentzian resonances over a floor: a row of formants."""

    def gain(hz: Samples) -> Samples:
        total = np.full_like(hz, floor)
        for centre, width in zip(centres_hz, widths_hz, strict=True):
            total += 1 / (1 + ((hz - centre) / width) ** 2)
        return total

    return gain


def filtered(signal: Samples, gain: Gain) -> Samples:
    """Zero-phase filter by magnitude; the padding keeps the end from wrapping into the start."""
    n = len(signal)
    size = scipy.fft.next_fast_len(n + 1024, real=True)
    spectrum = scipy.fft.rfft(signal, size)
    spectrum *= gain(np.linspace(0, NYQUIST, size // 2 + 1, dtype=np.float32))
    return np.asarray(scipy.fft.irfft(spectrum, size, overwrite_x=True)[:n], np.float32)


def oscillator(hz: Pitch, amplitudes: Sequence[float], n: int) -> Samples:
    """Harmonic tone [n]: `amplitudes[k - 1]` is that of harmonic k; `hz` is constant or one value per sample.

    The caller keeps `hz * len(amplitudes)` below Nyquist.
    """
    grid = 2 * np.pi * np.arange(WAVETABLE) / WAVETABLE
    orders = np.arange(1, len(amplitudes) + 1)[:, None]
    # Schroeder phases (IEEE Trans. IT 1970) spread the energy over the period, as a real source does.
    table = (np.asarray(amplitudes)[:, None] * np.sin(orders * grid + np.pi * orders**2 / len(orders))).sum(0)
    steps = np.broadcast_to(np.asarray(hz, np.float64) * (WAVETABLE / RATE), (n,))
    index = np.cumsum(steps).astype(np.int64) & (WAVETABLE - 1)
    return np.asarray(table[index], np.float32)


def sine(hz: float, n: int) -> Samples:
    """Pure tone [n] of one frequency; the phase is float64 and wrapped, so that the float32 sine is exact."""
    cycles = np.arange(n) * (hz / RATE) % 1.0
    return np.asarray(np.sin(np.float32(2 * np.pi) * cycles.astype(np.float32)), np.float32)


def rolloff(hz: float, slope: float, most: int = 60) -> list[float]:
    """Amplitudes k^-slope of as many harmonics of `hz` as fit below 7.6 kHz."""
    count = int(np.clip(7_600 // hz, 1, most))
    return [float(order) ** -slope for order in range(1, count + 1)]


def decay(n: int, t60_s: float) -> Samples:
    """Exponential decay [n] that loses 60 dB in `t60_s`."""
    return np.asarray(np.exp(np.arange(n) * (-6.9078 / (t60_s * RATE))), np.float32)


def ramped(signal: Samples, attack_s: float, release_s: float) -> Samples:
    """Raised-cosine fade in and out, each at most half the signal."""
    n = len(signal)
    out = signal.copy()
    rise, fall = (min(max(int(length * RATE), 1), n // 2) for length in (attack_s, release_s))
    if rise:
        out[:rise] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(rise, dtype=np.float32) / rise)
    if fall:
        out[n - fall :] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(fall, dtype=np.float32) / fall)
    return out


def stamp(out: Samples, start: int, grain: Samples) -> None:
    """Adds `grain` into `out` at `start`, cut at the end of `out`."""
    if start < len(out):
        part = grain[: len(out) - start]
        out[start : start + len(part)] += part


def onsets(rng: Rng, n: int, period_s: float, jitter: float = 0.0) -> Iterable[int]:
    """Start samples 0, period, 2 period ... below `n`; each gap varies by +- `jitter` of itself."""
    at = 0.0
    while at < n:
        yield int(at)
        at += period_s * RATE * (1 + jitter * rng.uniform(-1, 1))


def wander(rng: Rng, n: int, rate_hz: float) -> Samples:
    """Smooth random curve [n] in [-1, 1] with about `rate_hz` turns per second."""
    knots = max(int(n / RATE * rate_hz) + 3, 4)
    heights = rng.uniform(-1, 1, knots)
    place = np.linspace(0, knots - 1.001, n)
    left = place.astype(np.int64)
    part = place - left
    blend = part * part * (3 - 2 * part)
    return np.asarray(heights[left] * (1 - blend) + heights[left + 1] * blend, np.float32)


def loudness(signal: Samples) -> float:
    """RMS of the 20 ms frames within 20 dB of the loudest: of a clock's ticks, not of the rests.

    The relative gate is that of ITU-R BS.1770, with shorter frames and without its weighting.
    """
    usable = len(signal) // LEVEL_FRAME * LEVEL_FRAME
    frames = signal[:usable].reshape(-1, LEVEL_FRAME) if usable else signal.reshape(1, -1)
    power = np.square(frames).mean(1)
    return float(np.sqrt(power[power >= 0.01 * power.max()].mean()))


def db(level: float) -> float:
    """Amplitude factor of a level in dB."""
    return float(10.0 ** (level / 20.0))
