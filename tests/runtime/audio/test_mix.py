"""Channels that cancel, silence, and samples that are none, in files as in arrays."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.read import AudioSource, read_audio
from dasheng_edge.runtime.errors import AudioError
from tests.fixtures.audio_files import sine

RATE = 16_000


def heard(source: AudioSource) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    stream = read_audio(source)
    return np.concatenate(list(stream)), stream.warnings


def noise(seed: int, seconds: float = 2.0) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def float_wav(samples: NDArray[np.float32]) -> bytes:
    body = np.ascontiguousarray(samples, "<f4").tobytes()
    fmt = struct.pack("<IHHIIHH", 16, 3, 1, RATE, 4 * RATE, 4, 32)
    rest = b"WAVEfmt " + fmt + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(rest)) + rest


@pytest.mark.parametrize("gain", [1.0, 0.9, 1.1])
def test_inverted_stereo_is_heard(gain: float) -> None:
    left = noise(0, 3.5)
    samples, (warning,) = heard((np.stack([left, -gain * left]), RATE))
    np.testing.assert_array_equal(samples, left)
    assert "channels cancel" in warning
    assert "3.50 s from 0.00 s on" in warning


def test_inverted_stereo_behind_an_ordinary_part_is_heard_too() -> None:
    left, right = noise(0, 4), noise(1, 4)
    right[2 * RATE :] = -left[2 * RATE :]
    samples, (warning,) = heard((np.stack([left, right]), RATE))
    assert samples[2 * RATE :].std() == pytest.approx(left.std(), rel=0.05)
    assert "2.00 s from 2.00 s on" in warning


@pytest.mark.parametrize("correlation", [1.0, 0.5, 0.0, -0.5, -0.9])
def test_wide_stereo_is_averaged(correlation: float) -> None:
    left = noise(0)
    right = (correlation * left + np.sqrt(1 - correlation**2) * noise(1)).astype(np.float32)
    samples, warnings = heard((np.stack([left, right]), RATE))
    assert warnings == ()
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("channels", [2, 6, 34])
def test_one_channel_of_many_does_not_cancel(channels: int) -> None:
    block = np.zeros((channels, 2 * RATE), np.float32)
    block[channels - 1] = noise(0)
    samples, warnings = heard((block, RATE))
    assert warnings == ()
    np.testing.assert_allclose(samples, block[-1] / channels, atol=1e-7)


@pytest.mark.parametrize("offset", [0.0, 0.25, -1.0])
def test_silence_is_said_at_whatever_offset(offset: float) -> None:
    _, (warning,) = heard((np.full(RATE, offset, np.float32) + 1e-5 * noise(0, 1), RATE))
    assert "silent" in warning


@pytest.mark.parametrize("samples", [1, 2, 1_000])
def test_next_to_nothing_is_said(samples: int) -> None:
    _, warnings = heard((sine(440, 1, RATE)[1 : samples + 1], RATE))
    assert any("ms long" in warning for warning in warnings)


def test_a_quiet_recording_is_no_silence() -> None:
    assert heard((0.01 * sine(440, 1, RATE), RATE))[1] == ()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (13_000.0, "reaches 13000 .*divide by 32768"), (3e38, "reaches 3e.38"), (np.nan, "NaN or infinite"),
        (np.inf, "NaN or infinite"),
    ],
)  # fmt: skip
def test_files_of_floats_are_refused_as_arrays_are(value: float, message: str) -> None:
    samples = noise(0)
    samples[20_000] = value
    for source in (float_wav(samples), (samples, RATE)):
        with pytest.raises(AudioError, match=message):
            heard(source)


def test_files_of_floats_are_read_as_they_are() -> None:
    samples, warnings = heard(float_wav(30 * noise(0)))  # beyond full scale, as mixes are
    np.testing.assert_array_equal(samples, 30 * noise(0))
    assert warnings == ()


def test_silence_in_a_file_is_said() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((2, 1, RATE, 0, "NONE", ""))
        writer.writeframes(b"\x80" * RATE)
    assert any("silent" in warning for warning in heard(file.getvalue())[1])
