"""Speech from espeak-ng: a finite set of utterances in five languages, each spoken once and kept on disk.

espeak-ng is called as a program (it is GPL: nothing of it is linked or copied) and answers in about 15 ms.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from benchmarks.micro.scenes.sentences import SENTENCES
from benchmarks.micro.scenes.signals import RATE, Rng, Samples
from benchmarks.places import REPOSITORY

PROGRAM = "espeak-ng"
CACHE = REPOSITORY / "build" / "espeak"  # `build/` is not in git
ESPEAK_VOICES: dict[str, tuple[str, ...]] = {
    "Chinese": ("cmn-latn-pinyin",),  # plain `cmn` of 1.51 reads the pinyin of a character as English letters
    "English": ("en-gb", "en-us", "en-gb-x-rp", "en-gb-scotland"),
    "French": ("fr-fr", "fr-be"),
    "German": ("de",),
    "Spanish": ("es", "es-419"),
}
LANGUAGES: tuple[str, ...] = tuple(ESPEAK_VOICES)
MEN = ("m1", "m2", "m3", "m4", "m5", "m6", "m7")
WOMEN = ("f1", "f2", "f3", "f4")
TAKES = 8  # voices per sentence: about 1,500 utterances in all
DIGIT_STRINGS = 40  # of the English sentences
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class EspeakError(RuntimeError):
    """espeak-ng is missing or refused its input."""


@dataclass(frozen=True)
class Utterance:
    """What espeak-ng is asked: voice (`en-us+f2`), words a minute, pitch 0-99, 10 ms units between words."""

    text: str
    voice: str
    speed: int
    pitch: int
    gap: int = 0


def speak(utterance: Utterance) -> tuple[Samples, int]:
    """Runs espeak-ng once; (float32 samples in [-1, 1], its sample rate in Hz)."""
    with tempfile.TemporaryDirectory(prefix="espeak-") as folder:
        path = Path(folder) / "speech.wav"
        _run(utterance, path)
        return read_wave(path)


def speak_cached(utterance: Utterance) -> tuple[Samples, int]:
    """As `speak`, from the cache where it can; safe for many processes, as a file appears by rename."""
    name = hashlib.sha256(repr(utterance).encode()).hexdigest()[:24] + ".wav"
    path = CACHE / name
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=CACHE) as folder:
            fresh = Path(folder) / name
            _run(utterance, fresh)
            fresh.replace(path)
    return read_wave(path)


def _run(utterance: Utterance, path: Path) -> None:
    if shutil.which(PROGRAM) is None:
        raise EspeakError(
            f"{PROGRAM} is not on the PATH, and the scenes with speech need it. "
            "Install it with `apt install espeak-ng` (Debian, Ubuntu) or `brew install espeak-ng` (macOS)."
        )
    command = [PROGRAM, "-v", utterance.voice, "-s", str(utterance.speed), "-p", str(utterance.pitch)]
    command += ["-g", str(utterance.gap), "-b", "1", "-w", str(path), "--", utterance.text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not path.exists():
        raise EspeakError(
            f"{PROGRAM} could not say {utterance.text!r} with the voice {utterance.voice!r}: exit code "
            f"{done.returncode}, {done.stderr.strip()!r}. The voices need espeak-ng 1.50 or newer."
        )


def read_wave(path: Path) -> tuple[Samples, int]:
    """A mono 16-bit WAV file: float32 samples in [-1, 1] and its rate in Hz."""
    with wave.open(str(path), "rb") as file:
        rate = file.getframerate()
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return pcm.astype(np.float32) / np.float32(32_768), rate


def resampled(signal: Samples, rate: float, factor: float = 1.0) -> Samples:
    """To 16 kHz; a `factor` above 1 plays it faster and higher, as a tape does."""
    return np.asarray(soxr.resample(signal, rate * factor, RATE), np.float32)


def trimmed(signal: Samples) -> Samples:
    """Without the silence (below -50 dB of the peak) at both ends."""
    loud = np.flatnonzero(np.abs(signal) > 0.003 * np.abs(signal).max(initial=0.0))
    return signal[loud[0] : loud[-1] + 1] if len(loud) else signal[:0]


def sentence(language: str, index: int) -> str:
    """Sentence `index` of a language; in English, the last 40 are digit strings such as "4, 0, 7"."""
    written = SENTENCES[language]
    if index < len(written):
        return written[index]
    rng = np.random.default_rng([index, 40])
    return ", ".join(DIGIT_WORDS[digit] for digit in rng.integers(0, 10, int(rng.integers(3, 7))))


def sentence_count(language: str) -> int:
    """How many sentences the language has."""
    return len(SENTENCES[language]) + (DIGIT_STRINGS if language == "English" else 0)


def take(language: str, woman: bool, index: int, number: int) -> Utterance:
    """Take `number` of a sentence: voice, speed and pitch follow from the arguments, so the set is finite."""
    rng = np.random.default_rng([LANGUAGES.index(language), int(woman), index, number])
    variant = rng.choice(WOMEN if woman else MEN)
    voice = f"{rng.choice(ESPEAK_VOICES[language])}+{variant}"
    pitch = int(rng.integers(45, 75) if woman else rng.integers(25, 55))
    return Utterance(sentence(language, index), voice, int(rng.choice([130, 150, 170, 190])), pitch)


def talk(rng: Rng, n: int, language: str, woman: bool) -> Samples:
    """One speaker for `n` samples: sentences with short pauses, the last one cut off by the end."""
    out = np.zeros(n, np.float32)
    factor = rng.uniform(0.94, 1.06)
    at = 0
    while at < n:
        index = int(rng.integers(sentence_count(language)))
        signal, rate = speak_cached(take(language, woman, index, int(rng.integers(TAKES // 2))))
        voice = trimmed(resampled(signal, rate, factor))
        part = voice[: n - at]
        out[at : at + len(part)] = part
        at += len(voice) + int(rng.uniform(0.08, 0.35) * RATE)
    return out
