from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.front_end import FrontEnd
from dasheng_edge.runtime.audio.gate import FLOOR_S, Gate, is_silent, level_db
from dasheng_edge.runtime.audio.read import read_audio
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from tests.fixtures.audio_files import FORMATS, Format, write_audio

RATE = 16_000
STEP = 1 / 32768  # of 16 bits
BLOCK_S = 0.2
Samples = NDArray[np.float32]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def steps(counts: NDArray[np.float64]) -> Samples:
    """Samples of a 16-bit file, given in steps."""
    return (np.round(counts) * STEP).astype(np.float32)


def knocks(seconds: float, level: float = 0.5) -> Samples:
    """A recording: two knocks a second in noise that is 30 dB quieter."""
    times = np.arange(int(seconds * RATE)) / RATE
    knock = np.exp(-40 * (times % 0.5)) * np.sin(2 * np.pi * 300 * times)
    return (level * (knock + 0.01 * rng().normal(size=len(times)))).astype(np.float32)


N = 3 * RATE
NOTHING: dict[str, Samples] = {
    "no sample": np.zeros(0, np.float32),
    "one sample": np.full(1, 0.3, np.float32),
    "10 ms": np.zeros(160, np.float32),
    "digital zero": np.zeros(N, np.float32),
    "an offset": np.full(N, 0.3, np.float32),
    "an offset that fades": np.linspace(0.5, -0.5, N, dtype=np.float32),
    "dither of two steps": steps(rng().random(N) - rng().random(N)),
    "dither of one step": steps(rng().random(N) - 0.5),
    "the last bit": steps(rng().integers(0, 2, N).astype(np.float64)),
    "plus or minus a step": steps(rng().integers(-1, 2, N).astype(np.float64)),
    "rare flips of the last bit": steps((rng().random(N) < 0.02).astype(np.float64)),
    "zeros, then dither": steps(np.where(np.arange(N) < N // 2, 0, rng().random(N) - rng().random(N))),
    "dither on an offset": (steps(rng().random(N) - rng().random(N)) + np.float32(0.1)).astype(np.float32),
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("rate", [RATE, 8000, 48_000])
def test_nothing_is_silent(name: str, rate: int) -> None:
    assert is_silent(NOTHING[name], rate)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.suffix)
@pytest.mark.parametrize("name", ["digital zero", "dither of two steps"])
def test_nothing_is_silent_in_any_file(tmp_path: Path, name: str, kind: Format) -> None:
    assert is_silent(stored(tmp_path, NOTHING[name], kind), RATE)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind.lossless], ids=lambda kind: kind.suffix)
def test_what_an_offset_rings_where_it_sets_in_is_silent(tmp_path: Path, kind: Format) -> None:
    resampled = stored(tmp_path, NOTHING["an offset"], kind)
    assert np.ptp(resampled) > 0.01
    assert is_silent(resampled, RATE)


def stored(folder: Path, samples: Samples, kind: Format) -> Samples:
    """As it comes back from a file."""
    return np.concatenate(list(read_audio(write_audio(folder / f"clip.{kind.suffix}", samples, kind))))


@pytest.mark.parametrize("late", [0.0, 0.01])
def test_ten_minutes_of_nothing_take_no_memory_to_tell(late: float) -> None:
    samples = np.zeros(600 * RATE, np.float32)
    samples[-RATE:] = late * np.sin(np.arange(RATE))
    tracemalloc.start()
    silent = is_silent(samples, RATE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert silent == (not late)
    assert peak < 0.1 * samples.nbytes


@given(st.floats(-60, 0), st.floats(0.5, 4), st.floats(-0.3, 0.3))
@settings(max_examples=15, deadline=None)
def test_a_quiet_recording_is_not_silent(gain_db: float, seconds: float, offset: float) -> None:
    quiet = (knocks(seconds) * 10 ** (gain_db / 20) + offset).astype(np.float32)
    assert not is_silent(quiet, RATE)


@pytest.mark.parametrize("gain_db", [0, -30, -50])
@pytest.mark.parametrize(
    "sound",
    [
        lambda n: 0.1 * rng().normal(size=n),  # rain
        lambda n: 0.1 * np.sin(2 * np.pi * 50 * np.arange(n) / RATE),  # mains hum
        lambda n: np.where(np.arange(n) == n // 3, 1.0, 0.0),  # a click
        lambda n: np.where(np.arange(n) < n // 2, 0.0, 0.05 * np.sin(np.arange(n) * 0.4)),  # late
    ],
)
def test_a_sound_is_not_silent(sound: Callable[[int], NDArray[np.float64]], gain_db: float) -> None:
    assert not is_silent((sound(N) * 10 ** (gain_db / 20)).astype(np.float32), RATE)


def test_levels_are_those_of_physics() -> None:
    times = np.arange(RATE) / RATE
    square = np.sign(np.sin(2 * np.pi * 100 * times + 0.1)).astype(np.float32)
    sine = np.sin(2 * np.pi * 100 * times).astype(np.float32)
    assert level_db(square) == pytest.approx(0, abs=0.01)
    assert level_db(sine) == pytest.approx(-3.01, abs=0.01)
    assert level_db(sine * np.float32(0.01) + np.float32(0.3)) == pytest.approx(-43.01, abs=0.01)
    assert level_db(np.full(RATE, 0.3, np.float32)) < -120
    assert level_db(np.zeros(0, np.float32)) == -200


# The gate of a room

SPEC = FrontEndSpec()
FRONT_END = FrontEnd(SPEC)
ROOM = 10 ** (-65 / 20)


def openings(waveform: NDArray[np.float64]) -> list[tuple[float, float]]:
    """When the gate is open: from, to, in seconds."""
    gate, size, frames = Gate(SPEC, block_s=BLOCK_S), int(BLOCK_S * RATE), int(BLOCK_S * RATE) // SPEC.hop_length
    samples = waveform.astype(np.float32)
    log_mel = FRONT_END.features([samples]).log_mel
    spans: list[tuple[float, float]] = []
    for index in range(len(samples) // size):
        level = level_db(samples[index * size : (index + 1) * size])
        if gate.opens(level, log_mel[:, index * frames : (index + 1) * frames]):
            start = spans.pop()[0] if spans and spans[-1][1] == pytest.approx(index * BLOCK_S) else index * BLOCK_S
            spans.append((start, (index + 1) * BLOCK_S))
    return spans


def room(seconds: float, *sounds: tuple[float, float, NDArray[np.float64]], level: float = ROOM) -> NDArray[np.float64]:
    """Noise with sounds (from, to, samples) in it."""
    samples = level * rng().normal(size=int(seconds * RATE))
    for start, end, sound in sounds:
        places = slice(int(start * RATE), int(end * RATE))
        samples[places] += sound[places]
    return samples


def tone(seconds: float, hz: float, db: float) -> NDArray[np.float64]:
    times = np.arange(int(seconds * RATE)) / RATE
    samples = np.zeros(len(times))
    for part in range(1, 6):
        samples += 10 ** (db / 20) * np.sin(2 * np.pi * hz * part * times) / part
    return samples


@pytest.mark.parametrize("level_db", [-120, -90, -75, -65])
def test_a_quiet_room_opens_nothing(level_db: float) -> None:
    assert not openings(room(20, level=10 ** (level_db / 20)))


def test_steady_noise_is_heard_once() -> None:
    ((start, end),) = openings(room(30, level=10 ** (-40 / 20)))
    assert start == 0
    assert end == pytest.approx(FLOOR_S, abs=0.3)


def test_a_hum_is_heard_once_and_again_when_it_changes() -> None:
    low, high = tone(45, 100, -45), tone(45, 140, -45)
    first, second = openings(room(45, (5, 25, low), (25, 45, high)))
    assert first[0] == pytest.approx(5, abs=0.25)
    assert second[0] == pytest.approx(25, abs=0.25)
    assert all(FLOOR_S - 2 < end - start < FLOOR_S + 1 for start, end in (first, second))


def test_that_a_hum_ends_is_no_sound() -> None:
    assert len(openings(room(30, (5, 20, tone(30, 100, -45))))) == 1


def test_a_whistle_is_heard_through_a_louder_hum() -> None:
    """By its bands: the level hardly rises."""
    spans = openings(room(40, (5, 40, tone(40, 100, -40)), (30, 31, tone(40, 1000, -52))))
    assert any(start == pytest.approx(30, abs=0.25) and end < 32 for start, end in spans)


def test_what_comes_and_goes_never_becomes_background() -> None:
    barks = tone(60, 500, -40) * (np.arange(60 * RATE) / RATE % 1.5 < 0.5)
    spans = openings(room(60, (5, 60, barks)))
    assert len(spans) == pytest.approx(55 / 1.5, abs=2)
