"""The one way to read audio: a path, bytes, a file object or an array -> mono float32 blocks at 16 kHz.

FFmpeg (through PyAV) decodes and soxr resamples, both in a stream, so that a recording of hours is never in
memory as a whole. FFmpeg also drops the priming samples that MP3, AAC and Opus encoders put in front.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import av
import av.container
import av.error
import numpy as np
import soxr
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import AudioDecodeError, AudioEmptyError, AudioError, AudioNotFoundError
from dasheng_edge.runtime.names import address_hint

Waveform: TypeAlias = NDArray[np.float32]
AudioSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | tuple[Any, int] | ReadAudio"
)

BLOCK_S = 1.0  # seconds that are handed to the resampler at once; FFmpeg's frames are 20 to 100 ms
RATES_HZ = (1_000, 768_000)  # beyond these a sample rate is a mistake
MAX_FLOAT = 100.0  # full scale is 1; more than this means integers in a float array
# Containers that state their length exactly -> by how many seconds a complete file may still fall short of it
# (AAC and Opus encoders count priming and padding). Of a short WAV, FFmpeg states what is left: see `_check_wav_size`.
LENGTH_SLACK_S = {"flac": 0.01, "ogg": 0.25, "matroska,webm": 0.25, "mov,mp4,m4a,3gp,3g2,mj2": 0.25}

MP3_SLACK_S = 0.5  # FFmpeg estimates the length of many MP3 files from their size, with tags counted as audio
WAV_SIZE_UNKNOWN = 0x7F000000  # recorders that cannot go back and fill the size in state 2 GiB or more, or 0


@dataclass(frozen=True)
class ReadAudio:
    """What `read_audio` gave already, float32 [n] at the rate that is asked for, how long that took, and of what."""

    samples: Waveform
    reading_ms: float
    name: str


class _Reader:
    """What PyAV reads from. It would lose a Ctrl-C that comes meanwhile: that is kept here, and ends the stream.

    A file that cannot seek has no `seek`, whose failure would confuse FFmpeg.
    """

    def __init__(self, file: BinaryIO, *, seekable: bool) -> None:
        self._file = file
        self.bytes_read = 0
        self.stopped: BaseException | None = None
        chunks = self._chunks()
        next(chunks)
        self.read = chunks.send
        if seekable:
            self.seek, self.tell = file.seek, file.tell

    def _chunks(self) -> Generator[bytes, int, None]:
        """Not a function: a signal that came while FFmpeg worked is raised at its entry, before any `try`."""
        data = b""
        try:
            while True:
                size = yield data
                data = self._file.read(size)
                self.bytes_read += len(data)
        except GeneratorExit:
            return
        except BaseException as error:  # noqa: BLE001  # raised again by `_container_blocks`
            self.stopped = error
        while True:
            yield b""


def read_audio(source: AudioSource, *, sample_rate_hz: int = 16_000) -> Iterator[Waveform]:
    """Decode, mix down and resample `source`; yields non-empty float32 [n] blocks, full scale = 1.

    Channels are averaged. A video's first audio track is read. Of a file object, a seekable one is read from
    its start and any other from where it stands; neither is closed. Arrays come as `(array, sample_rate)`, or as
    `(iterator of arrays, sample_rate)` where they are recorded meanwhile:

    - [n], [n, channels] or [channels, n]; the shorter axis holds the channels, a square is [n, channels];
    - floats with full scale 1, or int16, int32, int8 and uint8 (128 is zero), which are scaled to that.
      int64, which is what a list of integers becomes, is refused: its full scale is not known.

    Raises:
        AudioNotFoundError: no such file, or it is a folder.
        AudioDecodeError: not audio, or damaged; then the message says at which second it breaks.
        AudioEmptyError: no samples.
        AudioError: of a type, shape, dtype or sample rate that is not audio, or NaN or infinite.
    """
    if isinstance(source, ReadAudio):
        yield source.samples
        return
    name = describe_audio(source)
    samples = 0
    blocks = _array_blocks(*source) if isinstance(source, tuple) and len(source) == 2 else _file_blocks(source, name)
    for rate, group in groupby(blocks, key=lambda item: item[0]):
        for block in _resampled((block for _, block in group), rate, sample_rate_hz, name):
            samples += len(block)
            yield block
    if not samples:
        raise AudioEmptyError(f"{name} holds no sample; expected at least one")


def describe_audio(source: object) -> str:
    """What to call the source in a message."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"audio of {len(source)} bytes"
    if isinstance(source, ReadAudio):
        return source.name
    if isinstance(source, tuple):
        return "the audio array"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "the audio stream"


def _checked_rate(rate: object, name: str) -> int:
    low, high = RATES_HZ
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not low <= rate <= high:
        raise AudioError(f"{name} has sample rate {rate!r}; expected a whole number from {low} to {high} Hz")
    return int(rate)


def _resampled(blocks: Iterable[Waveform], rate: int, target: int, name: str) -> Iterator[Waveform]:
    """Mono blocks at `rate` -> mono blocks at `target`, without a seam between them."""
    stream = None if rate == target else soxr.ResampleStream(rate, target, 1, dtype="float32", quality="VHQ")
    seen = 0
    for block in _gathered(blocks, int(rate * BLOCK_S)):
        if not np.isfinite(block).all():
            raise AudioError(f"{name} holds NaN or infinite samples after {seen / rate:.2f} s; expected finite ones")
        seen += len(block)
        out = block if stream is None else stream.resample_chunk(block)
        if len(out):
            yield out
    if stream is not None and len(out := stream.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield out


def _gathered(blocks: Iterable[Waveform], size: int) -> Iterator[Waveform]:
    """Joins small blocks into blocks of at least `size` samples (the last may be shorter)."""
    parts: list[Waveform] = []
    length = 0
    for block in blocks:
        parts.append(block)
        length += len(block)
        if length >= size:
            yield np.concatenate(parts)
            parts, length = [], 0
    if length:
        yield np.concatenate(parts)


def _array_blocks(array: object, rate: object) -> Iterator[tuple[int, Waveform]]:
    checked = _checked_rate(rate, "the audio array")
    if isinstance(array, Iterator):
        for part in array:
            yield from _array_blocks(part, checked)
        return
    samples = np.asarray(array)
    if samples.dtype.kind == "i" and samples.dtype.itemsize > 4:
        raise AudioError(
            f"the audio array has dtype {samples.dtype}, which no recording fills, so its full scale is not known; "
            "convert it to the type the samples were recorded in, e.g. array.astype(numpy.int16)"
        )
    if samples.ndim not in (1, 2):
        raise AudioError(f"the audio array has shape {samples.shape}; expected [n], [n, channels] or [channels, n]")
    if not samples.size:
        return
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    size = int(checked * BLOCK_S)
    for start in range(0, len(samples), size):
        block = _full_scale(samples[start : start + size], "the audio array")
        loudest = float(np.abs(block).max(initial=0.0))
        if np.isfinite(loudest) and loudest > MAX_FLOAT:
            raise AudioError(
                f"the audio array reaches {loudest:g}, full scale is 1; these look like integers kept as "
                "floats: pass the integer array, or divide by 32768"
            )
        yield checked, block if block.ndim == 1 else block.mean(axis=1, dtype=np.float32)


def _full_scale(samples: NDArray[Any], name: str) -> Waveform:
    """Any supported dtype -> float32 with full scale 1."""
    kind, bits = samples.dtype.kind, 8 * samples.dtype.itemsize
    if kind == "f":
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, which is refused later
            return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / 128.0
    if kind == "i":
        return (samples / 2.0 ** (bits - 1)).astype(np.float32)
    raise AudioError(f"{name} has dtype {samples.dtype}; expected float, int16, int32, int8 or uint8")


def _file_blocks(source: object, name: str) -> Iterator[tuple[int, Waveform]]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield from _stream_blocks(io.BytesIO(source), name)
    elif isinstance(source, (str, os.PathLike)):
        if not os.fspath(source):
            raise AudioNotFoundError("the name of the audio file is empty; expected a path")
        with _opened(Path(source)) as file:
            yield from _stream_blocks(file, name)
    elif hasattr(source, "read"):
        yield from _stream_blocks(cast(BinaryIO, source), name)
    else:
        raise AudioError(
            f"cannot read audio from {type(source).__name__}; expected a path, bytes, a binary file object "
            "or (array, sample_rate)"
        )


def _opened(path: Path) -> BinaryIO:
    """Opened by Python, not by FFmpeg: to FFmpeg a path such as `http:x.wav` would be an address."""
    if path.is_dir():
        raise AudioNotFoundError(f"{path} is a folder; expected an audio file")
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise AudioNotFoundError(address_hint(path) or f"{path} does not exist; expected an audio file") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"cannot open {path}: {_reason(error)}") from error


def _stream_blocks(file: BinaryIO, name: str) -> Iterator[tuple[int, Waveform]]:
    if not isinstance(file.read(0), bytes):
        raise AudioError(f"{name} is a text stream; open it in binary mode ('rb')")
    if not (hasattr(file, "seekable") and file.seekable()):
        yield from _pipe_blocks(file, name)
        return
    if not file.seek(0, os.SEEK_END):
        raise AudioEmptyError(f"{name} is empty (0 bytes); expected audio")
    file.seek(0)
    _check_wav_size(file, name)
    yield from _container_blocks(_Reader(file, seekable=True), name)


def _check_wav_size(file: BinaryIO, name: str) -> None:
    """Refuse a WAV file that holds less than it states, which FFmpeg would read as a shorter one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    riff, _, wave = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
    bytes_per_s = 0
    while (riff, wave) == (b"RIFF", b"WAVE") and len(header := file.read(8)) == 8:
        kind, stated = struct.unpack("<4sI", header)
        here = file.tell()
        if kind == b"fmt ":
            bytes_per_s = struct.unpack("<8xI", file.read(12).ljust(12, b"\0"))[0]
        if kind == b"data":
            if size - here < stated < WAV_SIZE_UNKNOWN:
                seconds = f" of {stated / bytes_per_s:.2f} s" if bytes_per_s else ""
                raise AudioDecodeError(
                    f"{name} is damaged: {size - here} of its {stated} bytes{seconds} are there; get a complete copy"
                )
            break
        file.seek(here + stated + stated % 2)  # chunks are padded to an even length
    file.seek(0)


def _pipe_blocks(file: BinaryIO, name: str) -> Iterator[tuple[int, Waveform]]:
    reader = _Reader(file, seekable=False)
    try:
        yield from _container_blocks(reader, name)
    except AudioDecodeError as error:
        if not reader.bytes_read:
            raise AudioEmptyError(f"{name} is empty (0 bytes); expected audio") from None
        # MP4 files whose index comes last can only be read with seeking.
        raise AudioDecodeError(f"{error}; it came through a pipe: try again with a file") from error


def _container_blocks(reader: _Reader, name: str) -> Iterator[tuple[int, Waveform]]:
    try:
        for rate, block in _read_container(reader, name):
            if reader.stopped is not None:
                break
            yield rate, block
    except AudioDecodeError:
        if reader.stopped is None:
            raise
    if reader.stopped is not None:
        raise reader.stopped


def _read_container(reader: _Reader, name: str) -> Iterator[tuple[int, Waveform]]:
    try:
        # No protocol but the file object at hand: playlists must not open other files or addresses.
        container = av.open(reader, mode="r", metadata_errors="ignore", options={"protocol_whitelist": "none"})
    except (av.error.FFmpegError, ValueError) as error:
        raise AudioDecodeError(
            f"{name} is not audio that FFmpeg can read ({_reason(error)}); expected wav, flac, mp3, ogg, "
            "opus, m4a, aac, webm or a video with an audio track"
        ) from error
    with container:
        if not container.streams.audio:
            raise AudioDecodeError(f"{name} has no audio track (it is {container.format.name}); expected one")
        yield from _decoded(container, name)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _decoded(container: av.container.InputContainer, name: str) -> Iterator[tuple[int, Waveform]]:
    stream = container.streams.audio[0]
    if stream.codec_context.name == "flac":  # each frame has a checksum; FFmpeg ignores it unless told otherwise
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    seconds = 0.0
    bad: av.error.InvalidDataError | None = None
    try:
        for packet in container.demux(stream):
            if bad is not None and packet.size:
                raise bad
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                frames, bad = [], error
            for frame in frames:
                rate = _checked_rate(frame.sample_rate, name)
                seconds += frame.samples / rate
                yield rate, _mono(frame, name)
        # Tags (Lyrics3, or padding) behind the last frame of an MP3 look to FFmpeg like one more packet.
        mp3_s = _stated_s(container) if container.format.name == "mp3" else None
        if bad is not None and not (mp3_s and 0 < mp3_s - MP3_SLACK_S <= seconds):
            raise bad
    except av.error.FFmpegError as error:
        raise AudioDecodeError(
            f"{name} is damaged: decoding breaks off at {seconds:.2f} s ({_reason(error)}); get a complete copy"
        ) from error
    declared = _declared_s(container)
    if declared is not None and seconds < declared - LENGTH_SLACK_S[container.format.name]:
        raise AudioDecodeError(
            f"{name} is damaged: only {seconds:.2f} s of its {declared:.2f} s can be decoded; get a complete copy"
        )


def _declared_s(container: av.container.InputContainer) -> float | None:
    """The length that the header states, where that can be relied upon."""
    if container.format.name not in LENGTH_SLACK_S:
        return None
    if (stated_s := _stated_s(container)) is not None:
        return stated_s
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1e6  # microseconds (AV_TIME_BASE)
    return None


def _stated_s(container: av.container.InputContainer) -> float | None:
    """The length that FFmpeg found or estimated of the audio track."""
    stream = container.streams.audio[0]
    if stream.duration is None or stream.time_base is None:
        return None
    return float(stream.duration * stream.time_base)


def _mono(frame: av.AudioFrame, name: str) -> Waveform:
    """One decoded frame, [channels, n] or interleaved [1, n * channels] -> float32 [n]."""
    channels = frame.layout.nb_channels
    samples = _full_scale(frame.to_ndarray(), name)
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    mono: Waveform = samples[0] if channels == 1 else samples.mean(axis=0, dtype=np.float32)
    return mono
