"""Digit strings: what is written is what was spliced, at any speed, and a wrong folder is named."""

from __future__ import annotations

import shutil
import wave
from pathlib import Path

import numpy as np
import pytest

from benchmarks.micro.scenes.signals import RATE, sine
from benchmarks.micro.scenes.spoken_digits import make_espeak_digits, make_real_digits, stretched
from benchmarks.places import DATA

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
RECORDINGS = DATA / "fsdd"
needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the Free Spoken Digit Dataset is not here")


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """A data set of one speaker whose digit d is 0.3 s of 300 + 100 d Hz at 8 kHz, in two takes."""
    for digit in range(10):
        for take in range(2):
            seconds = np.arange(2_400) / 8_000
            pcm = (20_000 * np.sin(2 * np.pi * (300 + 100 * digit) * seconds)).astype("<i2")
            with wave.open(str(tmp_path / f"{digit}_ann_{take}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8_000)
                file.writeframes(pcm.tobytes())
    return tmp_path


@needs_espeak
def test_espeak_digits_are_a_pure_function_of_the_seed() -> None:
    clips = [make_espeak_digits(seed) for seed in range(12)]
    again = make_espeak_digits(7)
    assert np.array_equal(clips[7].waveform, again.waveform)
    assert clips[7].digits == again.digits
    assert len({clip.speaker for clip in clips}) > 6
    for clip in clips:
        assert clip.source == "espeak"
        assert 1 <= len(clip.digits.split()) <= 6
        assert all(digit.isdigit() and len(digit) == 1 for digit in clip.digits.split())
        assert clip.waveform.dtype == np.float32
        assert np.isfinite(clip.waveform).all()
        assert 0.09 < np.abs(clip.waveform).max() < 0.9
        assert 0.3 < len(clip.waveform) / RATE < 10


@pytest.mark.parametrize("seed", range(5))
def test_spliced_digits_are_those_that_are_written(tones: Path, seed: int) -> None:
    clip = make_real_digits(seed, tones, ["ann"])
    again = make_real_digits(seed, tones, ["ann"])
    assert np.array_equal(clip.waveform, again.waveform)
    assert (clip.source, clip.speaker) == ("real", "ann")
    # Each 20 ms frame that is loud holds one tone: the sequence of tones is the sequence of digits.
    frames = clip.waveform[: len(clip.waveform) // 320 * 320].reshape(-1, 320)
    loud = np.sqrt((frames**2).mean(1)) > 0.2 * np.sqrt((frames**2).mean(1)).max()
    tone = np.abs(np.fft.rfft(frames, 3_200, axis=1)).argmax(1) * 5
    found = [round((hz - 300) / 100) for hz in tone]
    runs = [
        found[index + 3]
        for index in range(len(found) - 6)
        if loud[index : index + 7].all() and (index == 0 or not loud[index - 1])
    ]
    assert runs == [int(digit) for digit in clip.digits.split()]


def test_augmented_digits_differ_but_say_the_same(tones: Path) -> None:
    plain, bent = (make_real_digits(3, tones, ["ann"], augment=augment) for augment in (False, True))
    assert plain.digits == bent.digits
    assert len(plain.waveform) != len(bent.waveform)
    assert bent.waveform.dtype == np.float32
    assert np.isfinite(bent.waveform).all()


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.3])
def test_stretching_changes_the_length_and_not_the_pitch(factor: float) -> None:
    tone = sine(440, RATE)
    out = stretched(tone, factor)
    assert len(out) == pytest.approx(RATE / factor, abs=600)
    spectrum = np.abs(np.fft.rfft(out[480:-960], 4 * RATE))
    assert spectrum.argmax() / 4 == pytest.approx(440, abs=3)


@needs_recordings
def test_real_recordings_are_spliced() -> None:
    clips = [make_real_digits(seed, RECORDINGS, ["lucas", "george"]) for seed in range(8)]
    assert {clip.speaker for clip in clips} == {"george", "lucas"}
    assert all(np.isfinite(clip.waveform).all() for clip in clips)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder: expected .*digit_speaker_take.wav"):
        make_real_digits(1, tmp_path / "nowhere", ["ann"])


def test_a_speaker_that_is_not_there_is_named(tones: Path) -> None:
    with pytest.raises(ValueError, match=r"no recording by 'bob' of the digits \[0, 1"):
        make_real_digits(1, tones, ["bob"])
