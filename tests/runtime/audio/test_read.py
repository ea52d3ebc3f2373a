"""Reading audio: formats, resampling, mixing down, and everything that is not audio."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dasheng_edge.runtime.audio import read as read_module
from dasheng_edge.runtime.audio.read import AudioSource, describe_audio, read_audio
from dasheng_edge.runtime.errors import (
    AudioDecodeError,
    AudioEmptyError,
    AudioError,
    AudioNotFoundError,
    MemoryShortError,
)
from tests.fixtures.audio_files import FORMATS, Format, sine, write_audio

RATE = 16_000
WAV = Format("wav", "wav", "pcm_s16le", RATE, lossless=True)
BY_SUFFIX = {kind.suffix: kind for kind in FORMATS}


def read(source: AudioSource) -> NDArray[np.float32]:
    return np.concatenate(list(read_audio(source)))


def heard(source: AudioSource) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Samples and warnings."""
    stream = read_audio(source)
    return np.concatenate(list(stream)), stream.warnings


def loudest_hz(waveform: NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * RATE / len(waveform))


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.suffix)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_keeps_pitch_level_and_length(tmp_path: Path, kind: Format, channels: int) -> None:
    tone = sine(440, 2, kind.rate)
    path = write_audio(tmp_path / f"a.{kind.suffix}", np.tile(tone, (channels, 1)), kind)
    got = read(path)
    assert got.dtype == np.float32
    assert len(got) / RATE == pytest.approx(2, abs=1e-4 if kind.lossless else 0.06)
    middle = got[RATE // 2 : -RATE // 2]
    assert loudest_hz(middle) == pytest.approx(440, abs=2)
    assert np.sqrt(2) * middle.std() == pytest.approx(0.5, rel=1e-3 if kind.lossless else 0.1)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_u8"])
def test_wav_samples_are_exact(tmp_path: Path, codec: str) -> None:
    tone = sine(440, 0.1, RATE)
    got = read(write_audio(tmp_path / "a.wav", tone, Format("wav", "wav", codec, RATE)))
    step = {"pcm_s16le": 2**-15, "pcm_s24le": 2**-23, "pcm_u8": 2**-7}.get(codec, 1e-7)
    assert np.abs(got - tone).max() <= step


def test_paths_bytes_and_files_give_the_same(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", sine(440, 0.5, RATE), WAV)
    data = path.read_bytes()
    want = read(path)
    with path.open("rb") as file:
        file.read(10)  # a seekable file is read from its start
        for source in (str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file):
            assert np.array_equal(read(source), want)
        assert not file.closed


def test_channels_are_averaged(tmp_path: Path) -> None:
    left = sine(440, 0.2, RATE)
    for channels in (2, 6):
        waveform = np.zeros((channels, len(left)), np.float32)
        waveform[0] = left
        got = read(write_audio(tmp_path / f"{channels}.wav", waveform, WAV))
        assert np.allclose(got, left / channels, atol=2**-15)


def test_resampling_keeps_what_fits_below_8_khz_and_removes_the_rest() -> None:
    kept, removed = read((sine(1_000, 1, 44_100), 44_100)), read((sine(12_000, 1, 44_100), 44_100))
    middle = slice(RATE // 4, -RATE // 4)
    assert np.sqrt(2) * kept[middle].std() == pytest.approx(0.5, rel=1e-4)
    assert np.abs(removed[middle]).max() < 1e-5  # -94 dB


@given(st.integers(1, 100_000), st.sampled_from([8_000, 11_025, 16_000, 44_100, 48_000, 96_000]), st.integers(0, 9))
def test_streamed_resampling_equals_resampling_at_once(samples: int, rate: int, seed: int) -> None:
    waveform = np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32)
    want = waveform if rate == RATE else soxr.resample(waveform, rate, RATE, quality="VHQ")
    if not len(want):
        return
    got = read((waveform, rate))
    assert len(got) == len(want)
    assert np.abs(got - want).max() < 1e-6


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int32", "int16", "int8", "uint8"])
def test_array_dtypes_are_scaled_to_one(dtype: str) -> None:
    tone = sine(440, 0.1, RATE)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        array = tone.astype(kind)
    else:
        array = np.round(tone.astype(np.float64) * 2 ** (8 * kind.itemsize - 1))
        array = (array + (128 if dtype == "uint8" else 0)).astype(kind)
    assert np.abs(read((array, RATE)) - tone).max() <= (2**-7 if kind.itemsize == 1 else 1e-3)


def test_array_shapes() -> None:
    tone = sine(440, 0.1, RATE)
    stereo = np.stack([tone, np.zeros_like(tone)])
    assert np.allclose(read((stereo, RATE)), tone / 2)
    assert np.allclose(read((stereo.T, RATE)), tone / 2)
    assert np.allclose(read((np.array([[1, 0], [0.5, 0]]), RATE)), [0.5, 0.25])  # a square is [n, channels]
    assert np.allclose(read((tone.tolist(), int(RATE))), tone)
    assert np.allclose(read((tone, np.int64(RATE))), tone)  # type: ignore[arg-type]  # is no int to mypy


@pytest.mark.parametrize(
    ("array", "rate", "message"),
    [
        (np.zeros((2, 2, 2)), RATE, "shape"),
        (np.float32(1), RATE, "shape"),
        (np.zeros(9, bool), RATE, "dtype"),
        (np.zeros(9, np.uint16), RATE, "dtype"),
        (np.full(9, 20_000, np.int64), RATE, r"dtype int64, .*array\.astype\(numpy\.int16\)"),
        ([[20_000, -20_000]] * 9, RATE, "dtype int64"),
        (np.array(["a"]), RATE, "dtype"),
        (np.full(9, np.nan), RATE, "NaN or infinite samples after 0.00 s"),
        (np.full(9, np.inf), RATE, "NaN or infinite"),
        (np.full(9, 1e300), RATE, "NaN or infinite"),
        (np.full(9, 20_000.0), RATE, "divide by 32768"),
        (np.zeros(9), 0, "sample rate 0"),
        (np.zeros(9), 44.1, "sample rate 44.1"),
        (np.zeros(9), True, "sample rate True"),
        (np.zeros(9), 2_000_000, "1000 to 768000"),
    ],
)
def test_arrays_that_are_not_audio_are_refused(array: object, rate: int, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        read((array, rate))


@pytest.mark.parametrize("source", [(np.zeros(0), RATE), (np.zeros((0, 2)), RATE), b"", io.BytesIO()])
def test_nothing_is_an_error(source: AudioSource) -> None:
    with pytest.raises(AudioEmptyError):
        read(source)


def test_an_audio_file_without_samples_is_an_error(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", sine(440, 0.1, RATE), WAV)
    with pytest.raises(AudioError, match="audio of 44 bytes"):
        read(path.read_bytes()[:44])  # the header of a WAV file


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(AudioNotFoundError, match="does not exist"):
        read(tmp_path / "no.wav")
    with pytest.raises(AudioNotFoundError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(AudioNotFoundError, match="name of the audio file is empty"):
        read("")
    with pytest.raises(AudioNotFoundError, match="is an address"):
        read("http://localhost/x.wav")  # never an address
    with pytest.raises(AudioError, match="cannot open"):
        read("a\0b.wav")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioEmptyError, match="0 bytes"):
        read(tmp_path / "empty.wav")


@pytest.mark.parametrize("data", [b"\0" * 999, b"hello world\n" * 99, bytes(range(256)) * 99])
def test_bytes_that_are_not_audio(data: bytes) -> None:
    with pytest.raises(AudioDecodeError, match=f"audio of {len(data)} bytes is not audio"):
        read(data)


def test_a_video_without_sound(tmp_path: Path) -> None:
    import av

    with av.open(tmp_path / "v.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(AudioDecodeError, match="no audio track"):
        read(tmp_path / "v.mp4")


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "m4a", "aac", "webm"])
def test_damage_in_the_middle_is_said_and_with_strict_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * BY_SUFFIX[suffix].rate).astype(np.float32)
    path = write_audio(tmp_path / f"a.{suffix}", noise, BY_SUFFIX[suffix])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    samples, warnings = heard(bytes(data))
    assert 3 < len(samples) / RATE < 5.1
    assert any(re.search(r"damaged: .*\d s|\d s are missing", warning) for warning in warnings)
    if any("damaged" in warning for warning in warnings):
        with pytest.raises(AudioDecodeError, match=r"is damaged: .*\d s"):
            list(read_audio(bytes(data), strict=True))


@pytest.mark.parametrize("stated", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_wav_whose_recorder_could_not_state_its_size_is_read(stated: int) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, RATE, 0, "NONE", ""))
        writer.writeframes(bytes(2 * RATE))
    data = bytearray(file.getvalue())
    data[40:44] = struct.pack("<I", stated)
    assert len(read(bytes(data))) == RATE


def test_junk_after_the_end_is_harmless(tmp_path: Path) -> None:
    for suffix in ("wav", "flac", "mp3"):
        path = write_audio(tmp_path / f"a.{suffix}", sine(440, 1, BY_SUFFIX[suffix].rate), BY_SUFFIX[suffix])
        assert len(read(path.read_bytes() + b"TAG and more" * 20)) / RATE == pytest.approx(1, abs=0.06)


LYRICS3 = b"LYRICSBEGIN" + b"IND00002" + b"la la la " * 99 + b"000910LYRICS200"


@pytest.mark.parametrize("trailer", [LYRICS3, LYRICS3 + b"TAG".ljust(128, b"\0"), bytes(2000)])
def test_tags_behind_an_mp3_are_no_damage(tmp_path: Path, trailer: bytes) -> None:
    data = write_audio(tmp_path / "a.mp3", sine(440, 3, 44_100), BY_SUFFIX["mp3"]).read_bytes()
    assert len(read(data + trailer)) / RATE == pytest.approx(3, abs=0.03)
    assert heard(data + trailer)[1] == ()
    joined, warnings = heard(data + trailer + data)  # nor in between, but zeros may have been audio
    assert len(joined) / RATE == pytest.approx(6, abs=0.1)
    assert bool(warnings) == (not any(trailer))
    (warning,) = heard(data[: len(data) // 2] + bytes(len(data) // 2))[1]  # and half a file is one
    assert re.search(r"breaks off at 1\.\d\d s", warning)


@pytest.mark.parametrize("playlist", ["#EXTM3U\n#EXTINF:5,\n{}\n", "ffconcat version 1.0\nfile {}\n"])
def test_playlists_cannot_open_other_files(tmp_path: Path, playlist: str) -> None:
    path = write_audio(tmp_path / "a.wav", sine(440, 1, RATE), WAV)
    with pytest.raises(AudioDecodeError):
        read(playlist.format(path).encode())


def piped(data: bytes) -> io.BufferedReader:
    reader, writer = os.pipe()

    def write() -> None:
        with os.fdopen(writer, "wb") as file:
            file.write(data)

    threading.Thread(target=write).start()
    return os.fdopen(reader, "rb")


def test_a_pipe_is_read_without_seeking(tmp_path: Path) -> None:
    for suffix in ("wav", "flac", "ogg"):
        path = write_audio(tmp_path / f"a.{suffix}", sine(440, 1, BY_SUFFIX[suffix].rate), BY_SUFFIX[suffix])
        with piped(path.read_bytes()) as pipe:
            assert len(read(pipe)) / RATE == pytest.approx(1, abs=0.01)


def test_a_pipe_that_needs_seeking_says_so(tmp_path: Path) -> None:
    # An MP4 whose index comes last, and lies beyond what FFmpeg keeps in its buffer.
    path = write_audio(tmp_path / "a.m4a", sine(440, 20, 44_100), BY_SUFFIX["m4a"])
    with piped(path.read_bytes()) as pipe, pytest.raises(AudioDecodeError, match="try again with a file"):
        read(pipe)
    with piped(b"") as pipe, pytest.raises(AudioEmptyError, match="0 bytes"):
        read(pipe)


class Interrupted(io.BytesIO):
    """Reading beyond its bytes is interrupted, as by Ctrl-C."""

    def __init__(self, data: bytes, error: BaseException, *, seekable: bool) -> None:
        super().__init__(data)
        self._error, self._seekable = error, seekable

    def seekable(self) -> bool:
        return self._seekable

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if size and not data:
            raise self._error
        return data


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), ConnectionError("lost")])
@pytest.mark.parametrize("size", [0, 60_000])
def test_what_interrupts_reading_ends_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], *, seekable: bool, error: BaseException, size: int
) -> None:
    data = write_audio(tmp_path / "a.wav", sine(440, 4, RATE), WAV).read_bytes()[:size]
    if seekable:  # which is measured first
        place = data.find(b"data") + 4  # of the size
        data = data[:place] + struct.pack("<I", 0) + data[place + 4 :] if size else b"RIFF"
    file = Interrupted(data, error, seekable=seekable)
    if isinstance(error, ConnectionError):
        if not size:
            with pytest.raises(AudioError, match="cannot read the audio stream: lost") as failed:
                read(file)
            assert failed.value.__cause__ is error
        else:
            samples, warnings = heard(file)
            assert len(samples) / RATE == pytest.approx(60_000 / 2 / RATE, abs=0.01)
            assert "reading broke off at 1.87 s (lost)" in warnings[-1]
        return
    with pytest.raises(type(error)) as stop:
        read(file)
    assert stop.value is error
    assert capfd.readouterr().err == ""


def test_other_objects_are_refused() -> None:
    with pytest.raises(AudioError, match="binary mode"):
        read(io.StringIO("x"))  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="cannot read audio from int"):
        read(3)  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="cannot read audio from tuple"):
        read((1, 2, 3))  # type: ignore[arg-type]


class CountingFile(io.BytesIO):
    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        return data


def test_a_long_file_is_not_read_ahead(tmp_path: Path) -> None:
    data = write_audio(tmp_path / "a.wav", np.zeros(300 * RATE, np.float32), WAV).read_bytes()
    file = CountingFile(data)
    blocks = read_audio(file)
    next(blocks)
    assert file.read_bytes < len(data) / 20
    blocks.close()
    assert not file.closed


def test_names_for_messages(tmp_path: Path) -> None:
    assert describe_audio(tmp_path) == str(tmp_path)
    assert describe_audio(b"ab") == "audio of 2 bytes"
    assert describe_audio((1, 2)) == "the audio array"
    assert describe_audio(io.BytesIO()) == "the audio stream"
    with (tmp_path / "x").open("wb") as file:
        assert describe_audio(file) == str(tmp_path / "x")


def test_memory_that_is_short_is_called_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def short(*_: object) -> Iterator[object]:
        yield RATE, np.zeros((8, 1), np.float32)
        raise MemoryError

    monkeypatch.setattr(read_module, "_file_blocks", short)
    with pytest.raises(MemoryShortError, match="not enough memory to read"):
        list(read_audio(tmp_path / "a.wav"))
