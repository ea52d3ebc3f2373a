"""Animals and more that micro's scenes do not have: voices of a buzzing source and formants, rumbles and crackles.

Every maker: (rng, samples) -> float32 [samples].
"""

from __future__ import annotations

from collections.abc import Callable

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

Range = tuple[float, float]


def voice(pitch: Samples, formants_hz: list[float], breath: float, rng: Rng) -> Samples:
    """A call [n]: harmonics of `pitch` [n] in Hz and some breath, through formants."""
    top = float(pitch.max())
    tone = oscillator(np.minimum(pitch, 7_000), rolloff(top, rng.uniform(0.4, 0.9), 40), len(pitch))
    rough = tone / (tone.std() + 1e-9) + breath * noise(rng, len(pitch))
    return filtered(rough, peaks(formants_hz, [0.22 * hz + 60 for hz in formants_hz], 0.03))


def calls(rng: Rng, n: int, call: Callable[[], Samples], rest_s: Range) -> Samples:
    """One call after another, with rests, [n]."""
    out, at = np.zeros(n, np.float32), 0
    while at < n:
        one = call()
        stamp(out, at, one * np.float32(rng.uniform(0.7, 1.0)))
        at += len(one) + int(rng.uniform(*rest_s) * RATE)
    return out


def bent(rng: Rng, length_s: Range, points_hz: list[float], tremolo: float = 0.0, rate_hz: float = 9.0) -> Samples:
    """A pitch contour through points at equal distances, with a tremolo of frequency, of random length."""
    size = int(rng.uniform(*length_s) * RATE)
    curve = np.interp(np.linspace(0, len(points_hz) - 1, size), range(len(points_hz)), points_hz)
    shaken = 1 + tremolo * np.sin(2 * np.pi * rate_hz * rng.uniform(0.85, 1.15) * seconds(size))
    return np.asarray(curve * shaken, np.float32)


def cat(rng: Rng, n: int) -> Samples:
    """Meows: up and down again within 0.4 to 0.9 s, the mouth opening and closing."""
    base, formant = rng.uniform(420, 720), rng.uniform(1_000, 1_500)

    def meow() -> Samples:
        pitch = bent(rng, (0.4, 0.9), [0.8 * base, 1.15 * base, base, 0.7 * base])
        return ramped(voice(pitch, [formant, 2.1 * formant, 3.1 * formant], 0.08, rng), 0.08, 0.2)

    return calls(rng, n, meow, (0.2, 0.7))


def cow(rng: Rng, n: int) -> Samples:
    """Long moos of a low voice that opens."""
    base, formant = rng.uniform(95, 170), rng.uniform(330, 520)

    def moo() -> Samples:
        pitch = bent(rng, (0.9, 1.8), [0.85 * base, 1.1 * base, base, 0.8 * base])
        return ramped(voice(pitch, [0.5 * formant, formant, 2.4 * formant], 0.1, rng), 0.15, 0.3)

    return calls(rng, n, moo, (0.2, 0.6))


def sheep(rng: Rng, n: int) -> Samples:
    """Bleats: a nasal voice that trembles seven to eleven times a second."""
    base, formant = rng.uniform(220, 420), rng.uniform(700, 1_000)

    def bleat() -> Samples:
        pitch = bent(rng, (0.5, 1.1), [1.05 * base, base, 0.92 * base], 0.07, 9)
        shaken = 0.65 + 0.35 * np.sin(2 * np.pi * rng.uniform(7, 11) * seconds(len(pitch)))
        call = voice(pitch, [formant, 2.0 * formant, 3.4 * formant], 0.15, rng)
        return ramped(np.asarray(call * shaken, np.float32), 0.04, 0.12)

    return calls(rng, n, bleat, (0.15, 0.6))


def pig(rng: Rng, n: int) -> Samples:
    """Grunts: short noisy bursts of a low rough voice."""
    formant = rng.uniform(350, 600)

    def grunt() -> Samples:
        base = rng.uniform(50, 95)
        pitch = bent(rng, (0.12, 0.35), [base, 1.3 * base, base], 0.25, 31)
        return ramped(voice(pitch, [formant, 2.6 * formant], rng.uniform(0.8, 1.6), rng), 0.03, 0.1)

    return calls(rng, n, grunt, (0.05, 0.3))


def horse(rng: Rng, n: int) -> Samples:
    """A whinny: high and trembling, falling for a second or more."""
    base, formant = rng.uniform(600, 950), rng.uniform(1_100, 1_700)

    def whinny() -> Samples:
        pitch = bent(rng, (1.0, 1.7), [0.8 * base, 1.2 * base, base, 0.7 * base, 0.45 * base], 0.06, 11)
        shaken = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(9, 13) * seconds(len(pitch)))
        call = voice(pitch, [formant, 2.2 * formant], 0.35, rng)
        return ramped(np.asarray(call * shaken, np.float32), 0.05, 0.3)

    return calls(rng, n, whinny, (0.2, 0.6))


def duck(rng: Rng, n: int) -> Samples:
    """Quacks: nasal, 0.1 to 0.25 s, in a row that falls."""
    base, formant = rng.uniform(190, 330), rng.uniform(1_100, 1_600)

    def quack() -> Samples:
        pitch = bent(rng, (0.1, 0.24), [1.1 * base, base, 0.8 * base])
        return ramped(voice(pitch, [formant, 1.9 * formant], 0.2, rng), 0.012, 0.06)

    return calls(rng, n, quack, (0.08, 0.3))


def chicken(rng: Rng, n: int) -> Samples:
    """Clucks, one of them now and then long and rising."""
    base, formant = rng.uniform(450, 800), rng.uniform(1_300, 2_000)

    def cluck() -> Samples:
        if rng.uniform() < 0.15:
            pitch = bent(rng, (0.4, 0.7), [base, 1.1 * base, 1.7 * base, 1.4 * base])
        else:
            pitch = bent(rng, (0.04, 0.1), [1.1 * base, 0.8 * base])
        return ramped(voice(pitch, [formant, 1.8 * formant], 0.25, rng), 0.008, 0.03)

    return calls(rng, n, cluck, (0.08, 0.3))


def owl(rng: Rng, n: int) -> Samples:
    """Hoots: nearly pure tones around 400 Hz, a short one and a long one."""
    base = rng.uniform(300, 520)

    def hoot() -> Samples:
        length = (0.12, 0.2) if rng.uniform() < 0.4 else (0.4, 0.8)
        pitch = bent(rng, length, [0.96 * base, base, 0.93 * base], 0.01, 6)
        return ramped(oscillator(pitch, [1.0, 0.12, 0.04], len(pitch)), 0.05, 0.12)

    return calls(rng, n, hoot, (0.12, 0.5))


def frog(rng: Rng, n: int) -> Samples:
    """Croaks: pulses of a resonance, 30 to 70 a second, in bursts."""
    centre, rate = rng.uniform(450, 1_500), rng.uniform(28, 70)

    def croak() -> Samples:
        size = int(rng.uniform(0.15, 0.45) * RATE)
        pulses = np.zeros(size, np.float32)
        for at in onsets(rng, size, 1 / rate, 0.08):
            pulses[at] = rng.uniform(0.6, 1.0)
        return ramped(filtered(pulses, peaks([centre, 2.2 * centre], [120, 250], 0.01)), 0.03, 0.06)

    return calls(rng, n, croak, (0.1, 0.45))


def crow(rng: Rng, n: int) -> Samples:
    """Caws: harsh, 0.2 to 0.45 s, two or three in a row."""
    base, formant = rng.uniform(330, 520), rng.uniform(1_200, 1_700)

    def caw() -> Samples:
        pitch = bent(rng, (0.2, 0.45), [0.9 * base, 1.05 * base, 0.85 * base], 0.05, 47)
        return ramped(voice(pitch, [formant, 1.7 * formant], rng.uniform(0.5, 0.9), rng), 0.03, 0.1)

    return calls(rng, n, caw, (0.12, 0.4))


def insect(rng: Rng, n: int) -> Samples:
    """Buzzing: the wing beat of a bee, or of a mosquito, that wanders and comes and goes."""
    base = rng.uniform(150, 260) if rng.uniform() < 0.65 else rng.uniform(450, 680)
    pitch = base * 2.0 ** (0.12 * wander(rng, n, rng.uniform(1, 3)))
    near = 0.6 + 0.4 * wander(rng, n, rng.uniform(0.4, 1.2))
    buzz = oscillator(pitch, rolloff(1.1 * base, rng.uniform(0.6, 1.0), 24), n)
    return np.asarray(buzz * near, np.float32)


def thunder(rng: Rng, n: int) -> Samples:
    """A crack, then a rumble that rolls and dies."""
    rumble = coloured(rng, n, lambda hz: np.asarray(1 / (1 + (hz / rng.uniform(90, 180)) ** 1.6), np.float32))
    roll = (0.55 + 0.45 * wander(rng, n, rng.uniform(2, 5))) * np.exp(-seconds(n) / rng.uniform(1.0, 3.0))
    out = np.asarray(rumble * np.maximum(roll, 0), np.float32)
    crack = coloured(rng, min(n, 4_000), band(150, 4_000, 1)) * decay(min(n, 4_000), rng.uniform(0.1, 0.3))
    stamp(out, 0, crack * np.float32(rng.uniform(0.0, 1.2)))
    return ramped(out, 0.01, 0.05)


def fire(rng: Rng, n: int) -> Samples:
    """Crackles: pops of a few milliseconds, very uneven, over a soft low roar."""
    pops = np.zeros(n, np.float32)
    for at in rng.integers(0, n, rng.poisson(rng.uniform(8, 25) * n / RATE)):
        size = int(rng.uniform(0.002, 0.012) * RATE)
        stamp(
            pops,
            int(at),
            coloured(rng, size, band(1_000, 7_000, 1)) * decay(size, size / RATE) * np.float32(rng.pareto(2) + 0.2),
        )
    roar = coloured(rng, n, band(40, 500, 1)) * (0.7 + 0.3 * wander(rng, n, 3))
    return np.asarray(pops + rng.uniform(0.04, 0.12) * roar, np.float32)


def running_water(rng: Rng, n: int) -> Samples:
    """A brook or a tap: bubbles of all sizes, a hundred a second, over a bright hiss."""
    out = 0.25 * coloured(rng, n, band(rng.uniform(300, 900), rng.uniform(3_000, 6_000), 1))
    for at in rng.integers(0, n, rng.poisson(rng.uniform(50, 120) * n / RATE)):
        size = int(rng.uniform(0.01, 0.05) * RATE)
        pitch = np.geomspace(1, rng.uniform(1.05, 1.5), size) * rng.uniform(400, 2_500)
        stamp(
            out, int(at), oscillator(pitch, [1.0], size) * decay(size, size / RATE) * np.float32(rng.pareto(2.5) + 0.1)
        )
    return np.asarray(out, np.float32)


def train(rng: Rng, n: int) -> Samples:
    """Wheels over joints of the rails, two and two, over a rumble; sometimes a horn of three tones."""
    out = 0.5 * coloured(rng, n, band(40, rng.uniform(300, 700), 1))
    for at in onsets(rng, n, rng.uniform(0.45, 0.9), 0.03):
        for late in (0, int(rng.uniform(0.1, 0.16) * RATE)):
            clack = coloured(rng, 2_400, band(120, 2_500, 1)) * decay(2_400, 0.12)
            stamp(out, at + late, clack * np.float32(rng.uniform(1.0, 1.8)))
    if rng.uniform() < 0.35:
        size, tone = min(n, int(rng.uniform(0.6, 1.2) * RATE)), rng.uniform(260, 340)
        horn = np.sum([oscillator(tone * ratio, rolloff(tone * ratio, 0.8, 12), size) for ratio in (1, 1.26, 1.5)], 0)
        stamp(out, int(rng.uniform(0, 0.5) * (n - size)), ramped(np.asarray(0.5 * horn, np.float32), 0.05, 0.1))
    return np.asarray(out, np.float32)


def footsteps(rng: Rng, n: int) -> Samples:
    """Heel and sole on a hard floor, 1.5 to 2.4 steps a second."""
    out, centre = np.zeros(n, np.float32), rng.uniform(150, 400)
    for at in onsets(rng, n, 1 / rng.uniform(1.5, 2.4), 0.06):
        for late, level, size in ((0.0, 1.0, 1_600), (rng.uniform(0.05, 0.1), 0.4, 1_200)):
            step = coloured(rng, size, peaks([centre, 4 * centre], [120, 500], 0.05)) * decay(size, 0.09)
            stamp(out, at + int(late * RATE), step * np.float32(level * rng.uniform(0.7, 1.0)))
    return out


def cymbal(rng: Rng, n: int) -> Samples:
    """Crashes: dense inharmonic partials and bright noise that ring for a second or two."""
    size = min(n, int(2.5 * RATE))
    partials = np.sum([sine(hz, size) for hz in rng.uniform(300, 7_500, 40)], 0) / 6
    hiss = coloured(rng, size, band(2_500, 7_900, 1))
    stroke = np.asarray((partials + hiss) * decay(size, rng.uniform(1.0, 2.5)), np.float32)
    out = np.zeros(n, np.float32)
    for at in onsets(rng, n, rng.uniform(0.7, 2.0), 0.1):
        stamp(out, at, ramped(stroke, 0.003, 0.05) * np.float32(rng.uniform(0.6, 1.0)))
    return out
