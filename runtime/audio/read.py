"""The one way to read audio: a path, bytes, a file object or an array -> mono float32 blocks at 16 kHz.

FFmpeg decodes and soxr resamples, both in a stream, so that a recording of hours is never in memory as a whole. What
there is, is read: what is missing or strange is said in `AudioStream.warnings`, and refused only if all of it is.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import soxr
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import (
    AudioDecodeError,
    AudioEmptyError,
    AudioError,
    AudioNotFoundError,
    AudioTooLongError,
    MemoryShortError,
)

from .byte_source import byte_source, open_path, reason
from .container import RATES_HZ, Findings, decoded_blocks
from .mix import Mixer

Waveform: TypeAlias = NDArray[np.float32]
AudioSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | tuple[Any, int] | ReadAudio | AudioStream"
)
_Blocks: TypeAlias = Iterator[tuple[int, NDArray[np.float32]]]  # sample rate and float32 [n, channels]

BLOCK_S = 1.0  # seconds that are mixed and resampled at once; FFmpeg's frames are 20 to 100 ms
KEPT_S = 30.0  # of a part, for the next one, which may overlap it: 2 MB


@dataclass(frozen=True)
class ReadAudio:
    """What `read_audio` gave already, float32 [n] at the rate that is asked for, how long that took, and of what."""

    samples: Waveform
    reading_ms: float
    name: str
    warnings: tuple[str, ...] = ()
    start_s: float = 0.0


class AudioStream(Iterator[Waveform]):
    """Blocks of audio as they are read, and what is found out about it on the way; it can be read once."""

    def __init__(
        self, blocks: Generator[Waveform, None, None], findings: Findings, sample_rate_hz: int, offset_s: float = 0.0
    ) -> None:
        self._blocks, self._findings, self._offset_s = blocks, findings, offset_s
        self.name = findings.name  # what to call it in a message
        self.sample_rate_hz = sample_rate_hz
        self._kept: deque[Waveform] = deque()  # the last blocks that came, from where the last part begins
        self._end = 0  # samples that came
        self._broken = False  # whether what was read last raised

    def __next__(self) -> Waveform:
        self._broken = True
        block = next(self._blocks, None)
        self._broken = False
        if block is None:
            raise StopIteration
        self._end += len(block)
        return block

    def close(self) -> None:
        """Stop early; harmless when repeated."""
        self._blocks.close()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is missing, did not decode or is strange; all of it once the stream is exhausted."""
        return tuple(self._findings.warnings)

    @property
    def start_s(self) -> float:
        """When the first sample is heard, in seconds from the beginning of the file, once there is a first block.

        0 but where sound sets in after the picture. A file that begins at the hour of a recorder's clock begins at 0.
        """
        return self._findings.start_s + self._offset_s

    def part(self, offset_s: float, duration_s: float | None) -> AudioStream:
        """A part of it, at its times, in seconds from its first sample; to its end where there is no duration.

        It is an `AudioEmptyError` where it holds nothing there. Once it is read, there may be others that `reaches`.
        """
        return AudioStream(_part(self, offset_s, duration_s), self._findings, self.sample_rate_hz, offset_s)

    def limited(self, max_s: float, stopped: Callable[[], bool]) -> AudioStream:
        """The same, but what is longer is an `AudioTooLongError`, and so is what is `stopped` while it is read."""
        return AudioStream(_limited(self, max_s, stopped), self._findings, self.sample_rate_hz, self._offset_s)

    def reaches(self, offset_s: float) -> bool:
        """Whether a part that begins there can be read yet: behind the last one, or in the last KEPT_S of it."""
        return not self._broken and round(offset_s * self.sample_rate_hz) >= self._end - sum(map(len, self._kept))

    def from_sample(self, at: int) -> Iterator[tuple[int, Waveform]]:
        """Blocks with the sample that each begins at, those of the last part that reach beyond `at` first."""
        while self._kept and self._end - sum(map(len, self._kept)) + len(self._kept[0]) <= at:
            self._kept.popleft()
        start = self._end - sum(map(len, self._kept))
        for block in list(self._kept):
            yield start, block
            start += len(block)
        for block in self:
            if self._end > at:
                self._kept.append(block)
            while sum(map(len, self._kept)) - len(block) > KEPT_S * self.sample_rate_hz:
                self._kept.popleft()
            yield self._end - len(block), block

    @property
    def track(self) -> int | None:
        """The audio track that is read, from 1, once there is a first block; None of an array."""
        return self._findings.track


class PartReader:
    """Parts of files, one after the other: each that does not begin before the last one, of one file, is read on.

    No format is sought in: a file is decoded once, and cut, so that samples are those of a decoding from its start.
    """

    def __init__(self, *, sample_rate_hz: int, strict: bool = False, track: int | str | None = None) -> None:
        """Arguments as of `read_audio`."""
        self._read = partial(read_audio, sample_rate_hz=sample_rate_hz, strict=strict, track=track)
        self._file: tuple[object, ...] = ()  # which one is read
        self._stream: AudioStream | None = None

    def part(self, path: str | os.PathLike[str], offset_s: float, duration_s: float | None) -> AudioStream:
        """A part of a file, to be read before the next; as `AudioStream.part`, errors too."""
        file: tuple[object, ...] = (os.fspath(path),)
        with suppress(OSError, ValueError):  # reading it says what is wrong with a name
            found = Path(path).stat()
            file += (found.st_ino, found.st_size, found.st_mtime_ns)
        if self._stream is None or file != self._file or not self._stream.reaches(offset_s):
            self.close()
            self._file, self._stream = file, self._read(path)
        return self._stream.part(offset_s, duration_s)

    def close(self) -> None:
        """Read no more; harmless when repeated."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None


def read_audio(
    source: AudioSource, *, sample_rate_hz: int = 16_000, strict: bool = False, track: int | str | None = None
) -> AudioStream:
    """Decode, mix down and resample `source`; yields non-empty float32 [n] blocks, full scale = 1.

    Channels are averaged, or one is taken where they cancel each other. Of several audio tracks, the one that is marked
    as default is read, or the first, or `track`: a number from 1, or a language such as "en" or "eng". Where the
    timestamps of a file leave a hole, there is silence. Whatever is missing or does not decode is told in `warnings`;
    with `strict` it is an error. Of a file object, a seekable one is read from its start and any other from where it
    stands; neither is closed. Arrays come as `(array, sample_rate)`, or as `(iterator of arrays, sample_rate)` where
    they are recorded meanwhile:

    - [n], [n, channels] or [channels, n]; the shorter axis holds the channels, a square is [n, channels];
    - floats with full scale 1, or int16, int32, int8 and uint8 (128 is zero), which are scaled to that.
      int64, which is what a list of integers becomes, is refused: its full scale is not known.

    Raises (with the first block, or one after it):
        AudioNotFoundError: no such file, or it is a folder.
        AudioDecodeError: nothing of it can be decoded; with `strict`, not all of it, and the message says where.
        AudioEmptyError: no samples.
        AudioError: of a type, shape, dtype or sample rate that is not audio, or NaN, infinite or far beyond full
            scale; or it cannot be read, or has no such track.
        MemoryShortError: there is not enough memory.
    """
    if isinstance(source, AudioStream):  # with its own `strict` and `track`
        if source.sample_rate_hz != sample_rate_hz:
            raise AudioError(
                f"{source.name} is read at {source.sample_rate_hz} Hz; expected {sample_rate_hz} Hz: give read_audio "
                f"sample_rate_hz={sample_rate_hz}"
            )
        return source
    findings = Findings(describe_audio(source), strict=strict)
    return AudioStream(_read(source, sample_rate_hz, findings, track), findings, sample_rate_hz)


def _read(
    source: AudioSource, sample_rate_hz: int, findings: Findings, track: int | str | None
) -> Generator[Waveform, None, None]:
    if isinstance(source, ReadAudio):
        findings.warnings, findings.start_s = list(source.warnings), source.start_s
        yield source.samples
        return
    name = findings.name
    if isinstance(source, tuple) and len(source) == 2:
        blocks = _array_blocks(*source)
    else:
        blocks = _guarded(_file_blocks(source, findings, track), name)
    mixer = Mixer(name)
    samples = 0
    for rate, group in groupby(_mixed(blocks, mixer), key=lambda item: item[0]):
        for block in _resampled((block for _, block in group), rate, sample_rate_hz):
            samples += len(block)
            yield block
    if not samples:
        raise AudioEmptyError(f"{name} holds no sample; expected at least one")
    findings.warnings += mixer.warnings()


def _part(stream: AudioStream, offset_s: float, duration_s: float | None) -> Generator[Waveform, None, None]:
    begin = round(offset_s * stream.sample_rate_hz)
    end = begin + round(duration_s * stream.sample_rate_hz) if duration_s is not None else None
    seen = False
    for start, block in stream.from_sample(begin):
        part = block[max(0, begin - start) : None if end is None else max(0, end - start)]
        if len(part):
            seen = True
            yield part
        if end is not None and start + len(block) >= end:
            break
    if not seen:
        length = "" if duration_s is None else f" for {duration_s:g} s"
        raise AudioEmptyError(
            f"{stream.name} has no sound from {offset_s:g} s on{length}; correct the clip's offset and duration"
        )


def _limited(stream: AudioStream, max_s: float, stopped: Callable[[], bool]) -> Generator[Waveform, None, None]:
    samples = 0
    for block in stream:
        samples += len(block)
        if samples > max_s * stream.sample_rate_hz or stopped():
            raise AudioTooLongError(f"{stream.name} is longer than {max_s:g} s; cut it into shorter pieces")
        yield block


def _guarded(blocks: _Blocks, name: str) -> _Blocks:
    """What goes wrong between a file and its samples is an `AudioError`, whatever it was."""
    try:
        yield from blocks
    except AudioError:
        raise
    except MemoryError as error:
        raise MemoryShortError(f"there is not enough memory to read {name}: free some, then try again") from error
    except Exception as error:
        raise AudioDecodeError(f"{name} cannot be read ({type(error).__name__}: {reason(error)})") from error


def _mixed(blocks: _Blocks, mixer: Mixer) -> Iterator[tuple[int, Waveform]]:
    """Blocks of about a second, and mono."""
    for (rate, _), group in groupby(blocks, key=lambda item: (item[0], item[1].shape[1])):
        for block in _gathered((block for _, block in group), int(rate * BLOCK_S)):
            yield rate, mixer.mono(block, rate)


def describe_audio(source: object) -> str:
    """What to call the source in a message."""
    if isinstance(source, (str, os.PathLike)):
        with suppress(Exception):  # a path of the caller's own kind may do anything
            return os.fsdecode(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"audio of {len(source)} bytes"
    if isinstance(source, (ReadAudio, AudioStream)):
        return source.name
    if isinstance(source, tuple):
        return "the audio array"
    name = None
    with suppress(Exception):
        name = getattr(source, "name", None)
    return name if isinstance(name, str) else "the audio stream"


def _checked_rate(rate: object, name: str) -> int:
    low, high = RATES_HZ
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not low <= rate <= high:
        raise AudioError(f"{name} has sample rate {rate!r}; expected a whole number from {low} to {high} Hz")
    return int(rate)


def _resampled(blocks: Iterable[Waveform], rate: int, target: int) -> Iterator[Waveform]:
    """Mono blocks at `rate` -> mono blocks at `target`, without a seam between them."""
    stream = None if rate == target else soxr.ResampleStream(rate, target, 1, dtype="float32", quality="VHQ")
    for block in blocks:
        out = block if stream is None else stream.resample_chunk(block)
        if len(out):
            yield out
    if stream is not None and len(out := stream.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield out


def _gathered(blocks: Iterable[NDArray[np.float32]], size: int) -> Iterator[NDArray[np.float32]]:
    """Joins small blocks into blocks of at least `size` samples (the last may be shorter)."""
    parts: list[NDArray[np.float32]] = []
    length = 0
    for block in blocks:
        parts.append(block)
        length += len(block)
        if length >= size:
            yield np.concatenate(parts)
            parts, length = [], 0
    if length:
        yield np.concatenate(parts)


def _array_blocks(array: object, rate: object) -> _Blocks:
    checked = _checked_rate(rate, "the audio array")
    if isinstance(array, Iterator):
        for part in array:
            yield from _array_blocks(part, checked)
        return
    try:
        samples = np.asarray(array)
    except (TypeError, ValueError) as error:
        raise AudioError(f"the audio array is none ({error}); expected [n], [n, channels] or [channels, n]") from error
    if samples.dtype.kind == "i" and samples.dtype.itemsize > 4:
        raise AudioError(
            f"the audio array has dtype {samples.dtype}, which no recording fills, so its full scale is not known; "
            "convert it to the type the samples were recorded in, e.g. array.astype(numpy.int16)"
        )
    if samples.ndim not in (1, 2):
        raise AudioError(f"the audio array has shape {samples.shape}; expected [n], [n, channels] or [channels, n]")
    if not samples.size:
        return
    if samples.ndim == 1:
        samples = samples[:, np.newaxis]
    elif samples.shape[0] < samples.shape[1]:
        samples = samples.T
    size = int(checked * BLOCK_S)
    for start in range(0, len(samples), size):
        yield checked, _full_scale(samples[start : start + size], "the audio array")


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


def _file_blocks(source: object, findings: Findings, track: int | str | None) -> _Blocks:
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield from _stream_blocks(io.BytesIO(source), findings, track)
    elif isinstance(source, (str, os.PathLike)):
        if not os.fspath(source):
            raise AudioNotFoundError("the name of the audio file is empty; expected a path")
        with open_path(Path(source)) as file:
            yield from _stream_blocks(file, findings, track)
    elif hasattr(source, "read"):
        yield from _stream_blocks(cast(BinaryIO, source), findings, track)
    else:
        raise AudioError(
            f"cannot read audio from {type(source).__name__}; expected a path, bytes, a binary file object "
            "or (array, sample_rate)"
        )


def _stream_blocks(file: BinaryIO, findings: Findings, track: int | str | None) -> _Blocks:
    source = byte_source(file, findings.name)
    try:
        yield from decoded_blocks(source, findings, track)
    except AudioDecodeError as error:
        if source.size is not None:
            raise
        if not source.bytes_read:
            raise AudioEmptyError(f"{findings.name} is empty (0 bytes); expected audio") from None
        # MP4 files whose index comes last can only be read with seeking.
        raise AudioDecodeError(f"{error}; it came through a pipe: try again with a file") from error
