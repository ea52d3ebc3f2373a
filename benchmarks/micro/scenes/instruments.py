"""Musical instruments playing short random melodies and patterns.

Every maker: (rng, samples) -> float32 [samples].
"""

from __future__ import annotations

import numpy as np

from benchmarks.micro.scenes.signals import (
    RATE,
    Rng,
    Samples,
    band,
    coloured,
    decay,
    filtered,
    noise,
    onsets,
    oscillator,
    peaks,
    ramped,
    rolloff,
    sine,
    stamp,
)

MAJOR_STEPS = (0, 2, 4, 5, 7, 9, 11, 12, 14, 16)  # semitones above the tonic


def melody(rng: Rng, tonic_hz: float, count: int) -> list[float]:
    """A random walk of `count` pitches (Hz) on a major scale."""
    place, pitches = int(rng.integers(0, len(MAJOR_STEPS))), []
    for _ in range(count):
        pitches.append(tonic_hz * 2.0 ** (MAJOR_STEPS[place] / 12))
        place = int(np.clip(place + rng.choice([-2, -1, 1, 2, 3]), 0, len(MAJOR_STEPS) - 1))
    return pitches


def piano(rng: Rng, n: int) -> Samples:
    """Single struck notes, two to five a second: stretched partials, hard attack, high partials die first."""
    out = np.zeros(n, np.float32)
    starts = list(onsets(rng, n, rng.uniform(0.2, 0.45), 0.05))
    size = int(min(0.7 * RATE, n))
    for at, pitch in zip(starts, melody(rng, rng.uniform(220, 440), len(starts)), strict=True):
        note = np.zeros(size, np.float32)
        for order in range(1, 7):
            # Stiff-string partials: f_k = k f sqrt(1 + B k^2) (Fletcher 1964).
            partial = order * pitch * np.sqrt(1 + 4e-4 * order**2)
            if partial < 7_500:
                note += np.float32(order**-1.3) * sine(partial, size) * decay(size, 1.4 / order**0.7)
        note[:160] += 0.25 * coloured(rng, 160, band(200, 2_500, 1)) * decay(160, 0.02)
        stamp(out, at, ramped(note, 0.002, 0.05) * np.float32(rng.uniform(0.6, 1.0)))
    return out


def pluck(rng: Rng, pitch: float, n: int, damping: float) -> Samples:
    """One Karplus-Strong string (Computer Music Journal 1983): noise, averaged with itself every period."""
    period = max(int(RATE / pitch), 4)
    turns = np.empty((n // period + 1, period), np.float32)
    turns[0] = noise(rng, period)
    for index in range(1, len(turns)):
        before = turns[index - 1]
        turns[index, 1:] = before[1:] + before[:-1]
        turns[index, 0] = before[0] + before[-1]
        turns[index] *= 0.5 * damping
    return turns.reshape(-1)[:n]


def guitar(rng: Rng, n: int) -> Samples:
    """Strummed chords of five plucked strings, 15 to 35 ms apart, once or twice a second."""
    out = np.zeros(n, np.float32)
    root = rng.uniform(82, 130)
    size = int(min(1.1 * RATE, n))
    damping = rng.uniform(0.985, 0.994)
    for at in onsets(rng, n, rng.uniform(0.4, 0.8), 0.04):
        shift = 2.0 ** (int(rng.choice([0, 5, 7, 9])) / 12)
        gap = rng.uniform(0.015, 0.035) * RATE
        for index, semitones in enumerate((0, 7, 12, 16, 19)):
            string = pluck(rng, root * shift * 2.0 ** (semitones / 12), size, damping)
            stamp(out, at + int(index * gap), ramped(string, 0.001, 0.1))
    return out


Range = tuple[float, float]


def sustained(rng: Rng, n: int, pitches: Range, note_s: Range, depth: float) -> list[tuple[int, Samples]]:
    """Notes of a legato melody: (start sample, pitch in Hz per sample with a vibrato of `depth`)."""
    notes: list[tuple[int, Samples]] = []
    at = 0
    walk = iter(melody(rng, rng.uniform(*pitches), n // int(note_s[0] * RATE) + 2))
    rate = rng.uniform(4.8, 6.2)
    while at < n:
        size = int(rng.uniform(*note_s) * RATE)
        vibrato = 1 + depth * np.sin(2 * np.pi * rate * np.arange(size) / RATE)
        notes.append((at, np.asarray(next(walk) * vibrato, np.float32)))
        at += int(size * 0.96)
    return notes


def flute(rng: Rng, n: int) -> Samples:
    """Soft, nearly pure sustained notes from 520 Hz up, with breath noise and a gentle vibrato."""
    out = np.zeros(n, np.float32)
    second, third = rng.uniform(0.1, 0.25), rng.uniform(0.02, 0.08)
    for at, pitch in sustained(rng, n, (520, 760), (0.3, 0.7), 0.006):
        size = len(pitch)
        tone = oscillator(pitch, [1.0, second, third], size)
        breath = coloured(rng, size, peaks([float(pitch[0]), float(pitch[0]) * 2], [150, 300], 0.04))
        breath *= np.float32(rng.uniform(0.06, 0.14))
        stamp(out, at, ramped(tone + breath, 0.05, 0.06))
    return out


def violin(rng: Rng, n: int) -> Samples:
    """Bowed saw-like notes between 200 and 700 Hz with a wide vibrato and a body resonance near 3 kHz."""
    out = np.zeros(n, np.float32)
    slope = rng.uniform(0.7, 1.0)
    for at, pitch in sustained(rng, n, (200, 300), (0.35, 0.9), 0.013):
        tone = oscillator(pitch, rolloff(float(pitch.max()), slope, 30), len(pitch))
        stamp(out, at, ramped(tone, 0.06, 0.06))
    return filtered(out, peaks([500, 1_100, 2_900], [250, 300, 700], 0.15))


def drums(rng: Rng, n: int) -> Samples:
    """A rock beat, 90 to 160 a minute: kick on one and three, snare on two and four, hi-hat on eighths."""
    out = np.zeros(n, np.float32)
    eighth_s = 30 / rng.uniform(90, 160)
    size = int(0.22 * RATE)
    sweep = 48 + rng.uniform(80, 160) * np.exp(-np.arange(size) / (0.03 * RATE))
    kick = oscillator(sweep, [1.0, 0.2], size) * decay(size, 0.3)
    drum = oscillator(rng.uniform(170, 230), [1.0, 0.4], size) * decay(size, 0.14)
    rattle = coloured(rng, size, band(800, 6_000, 1)) * decay(size, rng.uniform(0.15, 0.25))
    snare = 0.5 * drum + 0.45 * rattle
    hat_size = size // 3
    hat = 0.25 * coloured(rng, hat_size, band(5_500, 7_900, 3)) * decay(hat_size, 0.06)
    extra_kick = rng.uniform() < 0.5
    for index, at in enumerate(onsets(rng, n, eighth_s, 0.02)):
        beat = index % 8
        stamp(out, at, np.asarray(hat, np.float32))
        if beat in (0, 4) or (extra_kick and beat == 3):
            stamp(out, at, 1.3 * kick)
        if beat in (2, 6):
            stamp(out, at, np.asarray(snare, np.float32))
    return out
