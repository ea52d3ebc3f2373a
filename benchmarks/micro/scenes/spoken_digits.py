"""Spoken digit strings for the transcription adapter: from espeak-ng, or spliced from real recordings.

The recordings are files `digit_speaker_take.wav` as in the Free Spoken Digit Dataset (CC BY-SA 4.0); they are
read from a folder that the caller names and never copied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.micro.scenes import rooms, speech
from benchmarks.micro.scenes.signals import RATE, Rng, Samples, band, db, filtered, loudness, ramped
from benchmarks.micro.scenes.speech import Utterance

MAX_DIGITS = 6
ACCENTS = ("en-gb", "en-us", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
ESPEAK, REAL = 100, 101  # random streams, apart from those of the scenes
STRETCH_FRAME, STRETCH_SEARCH = 480, 120  # 30 ms hold two periods of a low voice; the search covers one


@dataclass(frozen=True)
class DigitClip:
    """A spoken digit string. `waveform`: float32 [samples] in [-1, 1], 16 kHz; `digits`: "4 0 7"."""

    waveform: Samples
    digits: str
    source: Literal["espeak", "real"]
    speaker: str


def make_espeak_digits(seed: int) -> DigitClip:
    """One to six digits by one of 77 English espeak-ng voices, at any pitch and 110 to 220 words a minute."""
    rng = np.random.default_rng([seed, ESPEAK])
    digits = _draw_digits(rng)
    woman = bool(rng.integers(2))
    zero = "oh" if rng.uniform() < 0.1 else "zero"
    words = [zero if digit == 0 else speech.DIGIT_WORDS[digit] for digit in digits]
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(speech.WOMEN if woman else speech.MEN)}"
    pitch = int(rng.integers(35, 80) if woman else rng.integers(15, 60))
    # A comma makes a pause of about 0.2 s; without one the words run together; the gap adds to both.
    text = str(rng.choice([", ", " "], p=[0.7, 0.3])).join(words)
    asked = Utterance(text, voice, int(rng.integers(110, 221)), pitch, gap=int(rng.integers(0, 16)))
    signal, rate = speech.speak(asked)
    spoken = speech.trimmed(speech.resampled(signal, rate, rng.uniform(0.9, 1.1)))
    if rng.uniform() < 0.4:
        spoken = filtered(spoken, band(120, 3_500, 8))  # a telephone line, or a recording at 8 kHz
    return DigitClip(_recorded(rng, spoken, mild=False), _written(digits), "espeak", voice)


def make_real_digits(seed: int, folder: Path, speakers: Sequence[str], *, augment: bool = False) -> DigitClip:
    """One to six recordings of one of `speakers` in a row, with pauses of 0.05 to 0.5 s, in a quiet room.

    `augment` also changes the speaker's size (pitch and formants together, as a tape does), the speed, the
    room and the noise: for training, so that three speakers stand for more.
    """
    rng = np.random.default_rng([seed, REAL])
    speaker = str(rng.choice(sorted(speakers)))
    takes = _recordings(folder, speaker)
    digits = _draw_digits(rng)
    size = 2.0 ** rng.uniform(-0.3, 0.3) if augment else 1.0
    speed = 2.0 ** rng.uniform(-0.3, 0.3) if augment else 1.0
    pause_s = rng.uniform(0.05, 0.5)  # a habit: the pauses of one clip are alike
    pieces: list[Samples] = []
    for digit in digits:
        choices = takes[digit]
        voice = _read(choices[int(rng.integers(len(choices)))], size)
        if augment:
            voice = stretched(voice, speed / size * rng.uniform(0.92, 1.08))
        voice = ramped(voice, 0.005, 0.01) * np.float32(db(rng.uniform(-4, 0)) / max(loudness(voice), 1e-6))
        silence_s = float(np.clip(pause_s * rng.uniform(0.6, 1.4), 0.05, 0.5))
        pieces += [voice, np.zeros(int(silence_s * RATE), np.float32)]
    waveform = _recorded(rng, np.concatenate(pieces[:-1]), mild=not augment)
    return DigitClip(waveform, _written(digits), "real", speaker)


def stretched(signal: Samples, factor: float) -> Samples:
    """`signal` played `factor` times as fast at the same pitch (WSOLA, Verhelst and Roelands 1993)."""
    hop = STRETCH_FRAME // 2
    padded = np.pad(signal, (STRETCH_SEARCH, 2 * STRETCH_FRAME + STRETCH_SEARCH))
    count = max(int(len(signal) / factor / hop), 1)
    window = np.hanning(STRETCH_FRAME + 1)[:-1].astype(np.float32)
    out = np.zeros(count * hop + STRETCH_FRAME, np.float32)
    wanted = padded[STRETCH_SEARCH : STRETCH_SEARCH + STRETCH_FRAME]
    for index in range(count):
        near = min(int(index * hop * factor), len(signal))
        region = padded[near : near + STRETCH_FRAME + 2 * STRETCH_SEARCH]
        best = near + int(np.argmax(np.correlate(region, wanted, "valid")))
        out[index * hop : index * hop + STRETCH_FRAME] += window * padded[best : best + STRETCH_FRAME]
        follow = best + hop  # what would come next at the old speed is what the next frame should resemble
        wanted = padded[follow : follow + STRETCH_FRAME]
    return out[hop:]  # the first half frame is only a fade in


def _draw_digits(rng: Rng) -> list[int]:
    return [int(digit) for digit in rng.integers(0, 10, int(rng.integers(1, MAX_DIGITS + 1)))]


def _written(digits: Sequence[int]) -> str:
    return " ".join(str(digit) for digit in digits)


def _recordings(folder: Path, speaker: str) -> dict[int, list[Path]]:
    """The takes of each digit by `speaker`, sorted by name."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: expected the recordings of the Free Spoken Digit Dataset, "
            "digit_speaker_take.wav. Pass the folder that holds them, or leave the real recordings out."
        )
    takes: dict[int, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob(f"[0-9]_{speaker}_*.wav")):
        takes[int(path.name[0])].append(path)
    missing = [digit for digit in range(10) if digit not in takes]
    if missing:
        raise ValueError(
            f"{folder} holds no recording by {speaker!r} of the digits {missing}: expected files "
            f"digit_{speaker}_take.wav for 0 to 9. Check the speaker's name and the data set."
        )
    return takes


def _read(path: Path, factor: float) -> Samples:
    """A recording at 16 kHz without its outer silence, `factor` times as fast and as high."""
    signal, rate = speech.read_wave(path)
    return speech.trimmed(speech.resampled(signal, rate, factor))


def _recorded(rng: Rng, voice: Samples, *, mild: bool) -> Samples:
    """The voice between two silences, in a room, over noise, at a random level."""
    lead, trail = (int(rng.uniform(0.1, 0.6) * RATE) for _ in range(2))
    dry = np.pad(voice / np.float32(max(loudness(voice), 1e-6)), (lead, trail))
    place = rooms.Place(rng.uniform(0.1, 0.3), rng.uniform(0, 0.2)) if mild else rooms.near(rng)
    heard = rooms.heard_from(rng, place, dry)
    heard += rooms.background(rng, len(heard), rng.uniform(-60, -40 if mild else -22))
    return rooms.peak_normalised(heard, rng.uniform(-20, -1))
