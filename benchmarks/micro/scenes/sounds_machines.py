"""Machines, signals and things that knock, tick or break.

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
    seconds,
    sine,
    stamp,
    wander,
)


def alarm(rng: Rng, n: int) -> Samples:
    """Regular beeps of one bright fixed pitch (odd harmonics), three to six a second."""
    pitch = rng.uniform(900, 2_300)
    period = rng.uniform(0.16, 0.34)
    size = int(period * rng.uniform(0.45, 0.6) * RATE)
    beep = oscillator(pitch, [1.0, 0.05, 0.45], size)
    beep = ramped(beep, 0.004, 0.004)
    out = np.zeros(n, np.float32)
    for at in onsets(rng, n, period):
        stamp(out, at, beep)
    return out


def church_bell(rng: Rng, n: int) -> Samples:
    """Strokes with the partials of a minor-third bell (hum, prime, tierce, quint, nominal, ...)."""
    nominal = rng.uniform(420, 900)
    ratios = np.array([0.25, 0.5, 0.6, 0.75, 1.0, 1.25, 1.5, 2.0, 2.6, 3.2])
    loud = np.array([0.5, 0.8, 0.9, 0.35, 1.0, 0.4, 0.5, 0.5, 0.3, 0.2]) * rng.uniform(0.7, 1.3, 10)
    ring_s = rng.uniform(2.0, 5.0)
    size = int(min(n, ring_s * RATE))
    stroke = np.zeros(size, np.float32)
    for ratio, level in zip(ratios * rng.uniform(0.99, 1.01, 10), loud, strict=True):
        stroke += np.float32(level) * sine(nominal * ratio, size) * decay(size, ring_s / (0.5 + ratio))
    stroke[:80] += 0.8 * noise(rng, 80)[: len(stroke[:80])]
    out = np.zeros(n, np.float32)
    for at in onsets(rng, n, rng.uniform(0.9, 1.8), 0.03):
        stamp(out, at, stroke)
    return out


def engine(rng: Rng, n: int) -> Samples:
    """Firing pulses at 35 to 75 Hz, uneven between cylinders, whose speed wanders; energy below 1.5 kHz."""
    firing = rng.uniform(35, 75) * (1 + 0.22 * wander(rng, n, rng.uniform(0.4, 1.0)))
    cylinders = 4
    # One wavetable period is one engine cycle, so that unequal cylinders give half orders.
    uneven = [1.0 if order % cylinders == 0 else rng.uniform(0.15, 0.4) for order in range(1, 81)]
    amplitudes = [level * (order / cylinders) ** -0.5 for order, level in enumerate(uneven, 1)]
    pulses = oscillator(firing / cylinders, amplitudes, n)
    body = rng.uniform(180, 450)
    rumble = pulses / pulses.std() + rng.uniform(0.15, 0.35) * coloured(rng, n, band(40, 900, 1))
    muffler, walls = band(30, 1_100, 2), peaks([body, body * 2.3], [90, 160], 0.25)
    return filtered(rumble, lambda hz: muffler(hz) * walls(hz))


def helicopter(rng: Rng, n: int) -> Samples:
    """Rotor slaps at 9 to 15 Hz: low noise chopped in separate thumps, with a faint turbine whine."""
    rate = rng.uniform(9, 15)
    phase = (seconds(n) * rate + rng.uniform()) % 1.0
    chop = np.asarray(np.exp(-phase * rng.uniform(5, 8)), np.float32)
    thump = coloured(rng, n, band(50, rng.uniform(250, 600), 2))
    slap = coloured(rng, n, band(300, 2_500, 1))
    whine = sine(rng.uniform(1_500, 2_600), n)
    return np.asarray(chop * (thump + 0.35 * slap) + 0.03 * whine, np.float32)


def static(rng: Rng, n: int) -> Samples:
    """A dead channel: flat white noise over the whole band, at one level."""
    return noise(rng, n)


def electrical_hum(rng: Rng, n: int) -> Samples:
    """Mains hum: harmonics of 100 or 120 Hz as dead steady lines, none moving, none noisy."""
    mains = float(rng.choice([100.0, 120.0])) * rng.uniform(0.995, 1.005)
    amplitudes = [rng.uniform(0.4, 1.0) * order ** -rng.uniform(0.3, 0.8) for order in range(1, 17)]
    return oscillator(mains, amplitudes, n)


def clock_ticking(rng: Rng, n: int) -> Samples:
    """Dry clicks of 3 to 6 ms, tick and tock on two resonances above 2 kHz, as regular as clockwork."""
    out = np.zeros(n, np.float32)
    period = 1 / rng.choice([2.0, 2.5, 3.0, 4.0]) * rng.uniform(0.97, 1.03)
    centre = rng.uniform(2_400, 4_200)
    clicks = []
    for shift in (1.0, rng.uniform(0.78, 0.9)):
        burst = np.zeros(640, np.float32)
        burst[:96] = noise(rng, 96) * decay(96, 0.008)
        clicks.append(filtered(burst, peaks([centre * shift, centre * shift * 1.6], [350, 500], 0.02)))
    for index, at in enumerate(onsets(rng, n, period)):
        stamp(out, at, clicks[index % 2])
    return out


def telephone(rng: Rng, n: int) -> Samples:
    """An old telephone: two gongs struck in turn 18 to 26 times a second, in bursts with short rests."""
    pitch = rng.uniform(1_050, 1_500)
    rate = rng.uniform(18, 26)
    size = int(0.25 * RATE)
    gongs = []
    for shift in (1.0, rng.uniform(1.12, 1.3)):
        partials = [(1.0, 1.0), (2.41, 0.7), (3.95, 0.4)]
        gong = sum(level * sine(pitch * shift * ratio, size) for ratio, level in partials)
        gongs.append(np.asarray(gong * decay(size, 0.28), np.float32))
    out = np.zeros(n, np.float32)
    ring_s, rest_s = rng.uniform(0.8, 1.6), rng.uniform(0.35, 0.7)
    for start in onsets(rng, n, ring_s + rest_s):
        for index, at in enumerate(onsets(rng, min(n - start, int(ring_s * RATE)), 1 / rate)):
            stamp(out, start + at, gongs[index % 2])
    return out


def siren(rng: Rng, n: int) -> Samples:
    """A wail: a buzzing tone that glides up and down between about 500 and 1500 Hz once in 0.8 to 3 s."""
    low = rng.uniform(420, 600)
    octaves = rng.uniform(0.9, 1.3)
    place = 0.5 - 0.5 * np.cos(2 * np.pi * (seconds(n) / rng.uniform(0.8, 3.0) + rng.uniform()))
    return oscillator(low * 2.0 ** (octaves * place), [1.0, 0.6, 0.5, 0.3, 0.2], n)


def car_horn(rng: Rng, n: int) -> Samples:
    """Two brassy fixed tones a third apart, honked for 0.25 to 1 s with gaps."""
    pitch = rng.uniform(330, 470)
    both = [pitch, pitch * rng.uniform(1.19, 1.27)]
    chord = np.zeros(n, np.float32)
    for tone in both:
        chord += oscillator(tone, rolloff(tone, rng.uniform(0.5, 0.8), 14), n)
    gate = np.zeros(n, np.float32)
    at = 0
    while at < n:
        size = int(rng.uniform(0.25, 0.9) * RATE)
        stamp(gate, at, ramped(np.ones(size, np.float32), 0.015, 0.03))
        at += size + int(rng.uniform(0.1, 0.35) * RATE)
    return filtered(chord * gate, peaks([1_300, 2_600], [900, 1_200], 0.3))


def knocking(rng: Rng, n: int) -> Samples:
    """Groups of two to five quick knocks on wood: low resonances that die within 60 ms, then a rest."""
    out = np.zeros(n, np.float32)
    wood = rng.uniform(140, 320)
    size = int(0.14 * RATE)
    gap = rng.uniform(0.13, 0.24)
    at = 0
    while at < n:
        for _ in range(int(rng.integers(2, 6))):
            knock = np.zeros(size, np.float32)
            for ratio, level in ((1.0, 1.0), (1.83, 0.6), (2.71, 0.35), (4.3, 0.2)):
                knock += np.float32(level) * sine(wood * ratio, size) * decay(size, 0.13 / ratio**0.5)
            knock[:64] += 0.5 * noise(rng, 64) * decay(64, 0.01)
            stamp(out, at, knock * np.float32(rng.uniform(0.75, 1.0)))
            at += int(gap * rng.uniform(0.92, 1.08) * RATE)
        at += int(rng.uniform(0.25, 0.5) * RATE)
    return out


def glass_breaking(rng: Rng, n: int) -> Samples:
    """A crack, then dozens of shards ringing between 2.5 and 7.5 kHz, ever fewer for about a second."""
    out = np.zeros(n, np.float32)
    for start in onsets(rng, n, rng.uniform(1.2, 1.8), 0.15):
        crack = coloured(rng, 1_600, band(800, 7_000, 1)) * decay(1_600, 0.09)
        stamp(out, start, crack * np.float32(1.5))
        for _ in range(int(rng.integers(30, 60))):
            size = int(rng.uniform(0.04, 0.2) * RATE)
            ping = sine(rng.uniform(2_500, 7_500), size) * decay(size, size / RATE)
            late = rng.exponential(0.22)
            level = np.float32(rng.uniform(0.15, 0.9) * np.exp(-late * 2))
            stamp(out, start + int(late * RATE), ping * level)
    return out
