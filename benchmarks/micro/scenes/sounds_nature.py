"""Weather, water, animals and crowds, made from noise, chirps and resonances.

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
    seconds,
    stamp,
    wander,
)


def rain(rng: Rng, n: int) -> Samples:
    """Hundreds of droplets a second, each a ping of a few milliseconds, over a high-passed hiss."""
    density = rng.uniform(120, 420)
    hits = np.zeros(n + 1024, np.float32)
    count = rng.poisson(density * n / RATE)
    hits[rng.integers(0, n, count)] = rng.pareto(2.5, count) + 0.2
    centre = rng.uniform(3_000, 4_800)
    drops = filtered(hits, peaks([centre, centre * 1.5], [900, 1_200]))[:n]
    hiss = coloured(rng, n, band(2_000, 7_000, 2))
    return np.asarray(drops / (drops.std() + 1e-9) + rng.uniform(0.15, 0.4) * hiss, np.float32)


def wind(rng: Rng, n: int) -> Samples:
    """Howling: a narrow resonance that glides slowly between 250 and 1000 Hz."""
    centre = rng.uniform(380, 650) * 2.0 ** (rng.uniform(0.4, 0.8) * wander(rng, n, rng.uniform(0.5, 1.2)))
    low_pass = coloured(rng, n, band(5, rng.uniform(25, 60), 2))
    quadrature = coloured(rng, n, band(5, rng.uniform(25, 60), 2))
    # Narrow-band noise: two slow noises on the sine and cosine of a gliding carrier.
    phase = 2 * np.pi * np.cumsum(centre, dtype=np.float64) / RATE
    howl = low_pass * np.sin(phase) + quadrature * np.cos(phase)
    gust = 0.65 + 0.35 * wander(rng, n, rng.uniform(0.5, 1.5))
    rumble = coloured(rng, n, band(60, 250, 1))
    return np.asarray((howl + rng.uniform(0.1, 0.3) * rumble) * gust, np.float32)


def sea_waves(rng: Rng, n: int) -> Samples:
    """Wide-band surges every 3 to 5 s: a quick swell, then a long hissing retreat."""
    period = rng.uniform(3.0, 5.0)
    phase = (seconds(n) / period + rng.uniform(0.85, 1.0)) % 1.0
    rise = rng.uniform(0.2, 0.3)
    swell = np.where(phase < rise, (phase / rise) ** 2, np.exp(-(phase - rise) * 4.5))
    body = coloured(rng, n, lambda hz: np.asarray(1 / np.sqrt(np.maximum(hz, 150)), np.float32))
    foam = coloured(rng, n, band(1_500, 6_500, 2))
    surge = np.asarray(0.04 + swell, np.float32)
    return np.asarray(surge * (body + rng.uniform(0.2, 0.5) * foam * surge), np.float32)


def birds(rng: Rng, n: int) -> Samples:
    """Phrases of short frequency-swept chirps between 2.2 and 6.5 kHz, never on a steady pitch."""
    out = np.zeros(n, np.float32)
    centre, spread = rng.uniform(2_800, 4_800), rng.uniform(0.12, 0.3)
    length_s, sweep = rng.uniform(0.05, 0.14), rng.choice([-1.0, 1.0])
    at = 0
    while at < n:
        for _ in range(int(rng.integers(2, 6))):
            size = int(length_s * rng.uniform(0.8, 1.3) * RATE)
            line = np.linspace(-1, 1, size) * sweep
            octaves = spread * line + 0.12 * np.sin(np.linspace(0, 12, size))
            pitch = centre * rng.uniform(0.9, 1.1) * 2.0**octaves
            chirp = oscillator(np.minimum(pitch, 7_500), [1.0], size)
            stamp(out, at, ramped(chirp, 0.015, 0.03) * rng.uniform(0.6, 1.0))
            at += size + int(rng.uniform(0.03, 0.09) * RATE)
        at += int(rng.uniform(0.15, 0.5) * RATE)
    return out


def crickets(rng: Rng, n: int) -> Samples:
    """A steady 4.2 to 5.6 kHz tone in trains of three to five 12 ms pulses, two to four trains a second."""
    pitch = rng.uniform(4_200, 5_600)
    pulse_s = rng.uniform(0.018, 0.024)
    pulses = int(rng.integers(3, 6))
    train_s = max(rng.uniform(0.26, 0.5), pulses * pulse_s + 0.09)
    size = int(pulse_s * RATE)
    pulse = np.sin(np.pi * np.minimum(np.arange(size) / (0.75 * size), 1.0)) ** 2
    gate = np.zeros(n, np.float32)
    for at in onsets(rng, n, train_s, 0.04):
        for index in range(pulses):
            stamp(gate, at + index * size, np.asarray(pulse * (0.6 + 0.4 * index / pulses), np.float32))
    return gate * oscillator(pitch, [1.0], n)


def dog_bark(rng: Rng, n: int) -> Samples:
    """Rough bursts of 0.12 to 0.25 s whose pitch jumps up and falls, with two wide formants."""
    out = np.zeros(n, np.float32)
    pitch, formant = rng.uniform(230, 480), rng.uniform(750, 1_250)
    period = rng.uniform(0.32, 0.6)
    for at in onsets(rng, n, period, 0.15):
        size = int(rng.uniform(0.12, 0.22) * RATE)
        contour = pitch * rng.uniform(0.93, 1.07) * (0.75 + 0.5 * np.sin(np.pi * np.linspace(0.1, 1, size)))
        voice = oscillator(contour, [1.0 / order**0.6 for order in range(1, 11)], size)
        rough = voice / voice.std() + rng.uniform(0.4, 0.8) * noise(rng, size)
        bark = filtered(rough, peaks([formant, formant * 2.1], [260, 420], 0.04))
        stamp(out, at, ramped(bark, 0.012, size / RATE * 0.7))
    return out


def dripping_water(rng: Rng, n: int) -> Samples:
    """Single plinks: a bubble's tone that rises while it dies within 60 ms (Minnaert resonance)."""
    out = np.zeros(n, np.float32)
    base = rng.uniform(800, 1_900)
    for at in onsets(rng, n, rng.uniform(0.25, 0.55), 0.35):
        size = int(rng.uniform(0.09, 0.16) * RATE)
        pitch = base * rng.uniform(0.75, 1.35) * (1 + rng.uniform(0.5, 0.9) * np.linspace(0, 1, size))
        plink = oscillator(pitch, [1.0, 0.08], size) * decay(size, rng.uniform(0.08, 0.16))
        plink[:24] += 0.3 * noise(rng, 24)
        stamp(out, at, plink * np.float32(rng.uniform(0.6, 1.0)))
    return out


def applause(rng: Rng, n: int) -> Samples:
    """Dozens of hands: 60 to 160 claps a second, each a 6 ms burst of noise around 1 to 2 kHz."""
    hands = int(rng.integers(12, 30))
    hits = np.zeros(n + 1024, np.float32)
    for _ in range(hands):
        first = rng.uniform(0, 0.3) * RATE
        gaps = RATE / rng.uniform(3.2, 5.5) * rng.uniform(0.88, 1.12, n // 2_500 + 3)
        times = first + np.cumsum(gaps)
        inside = times[times < n].astype(np.int64)
        hits[inside] += np.asarray(rng.uniform(0.4, 1.0) * rng.uniform(0.8, 1.2, len(inside)), np.float32)
    clap_size = 160
    clap = noise(rng, clap_size) * decay(clap_size, 0.018)
    centre = rng.uniform(1_000, 1_700)
    raw = np.convolve(hits[:n], clap)[:n].astype(np.float32)
    return filtered(raw, peaks([centre, centre * 1.9], [450, 700], 0.03))
