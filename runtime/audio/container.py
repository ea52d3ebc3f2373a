"""Audio and video files: FFmpeg (through PyAV) takes one track out and decodes it, frame by frame.

Whatever can be decoded is; what is missing, does not decode or is stated and not there becomes a finding. FFmpeg also
drops the priming samples that MP3, AAC and Opus encoders put in front. Every frame is taken for hostile: damaged ones
change their rate, or claim 34 channels of a mono track.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import av
import av.container
import av.error
import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import AudioDecodeError, AudioError

from .byte_source import ByteSource, byte_source, open_path, reason
from .mix import Packer, give_plain_layout, keep_layout
from .timeline import Timeline
from .tracks import choose_track
from .wholeness import (
    CONSTANT,
    FROM_ZERO,
    GOES_ON,
    SIZED,
    STATED,
    TIMED,
    another_file,
    another_track,
    bits_of_integers,
    index_of_nut,
    is_in_pieces,
    kind_of,
    missing_bytes,
    track_goes_on,
    xing_s,
)

if TYPE_CHECKING:
    Packet: TypeAlias = av.Packet[av.AudioStream]

RATES_HZ = (1_000, 768_000)  # beyond these a sample rate is a mistake
CLOCK_S = 60.0  # a timeline that begins later shows the time of a recorder's clock
HOLE_HZ = 48_000  # of silence in a hole, at most: an hour of it must not take a minute, whatever a header states
MAX_CHANNELS = 64  # that FFmpeg's resampler takes
MAX_ERRORS = 16  # of FFmpeg's demuxer one after the other, then it does not get over them
LENGTH_SLACK_S = 0.25  # encoders count priming and padding, containers round to milliseconds
TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"3DI")  # between and behind the frames of an MP3


@dataclass
class Findings:
    """What is found out about audio while it is read."""

    name: str
    strict: bool = False
    warnings: list[str] = field(default_factory=list)
    start_s: float = 0.0
    track: int | None = None  # the track that was taken, from 1

    def missing(self, what: str) -> None:
        """Something is not there or did not decode: a warning, or with `strict` an error.

        Raises:
            AudioDecodeError: with `strict`.
        """
        if self.strict:
            raise AudioDecodeError(f"{self.name} is damaged: {what}; get a complete copy, or read it without strict")
        self.warnings.append(f"damaged: {what}")


def decoded_blocks(
    source: ByteSource, findings: Findings, track: int | str | None
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Sample rate and float32 [n, channels] of each frame of a track, holes as silence.

    Raises:
        AudioDecodeError: nothing can be decoded, or with `strict` not all of it.
        AudioError: there is no such track, or reading fails before anything is decoded.
    """
    name = findings.name
    seen = False
    try:
        with _opened(source, name) as container:
            taken, findings.track, note = choose_track(container, name, track)
            findings.warnings += filter(None, (note,))
            decoding = _Decoding(container, taken, source, findings)
            for item in decoding.blocks():
                seen = True
                yield item
            if source.stopped is None or isinstance(source.stopped, Exception):
                decoding.judge()
    except AudioDecodeError:
        if source.stopped is None or seen:
            raise
    stopped = source.stopped
    if stopped is None or (seen and isinstance(stopped, Exception)):  # of which `judge` told
        return
    if isinstance(stopped, AudioError) or not isinstance(stopped, Exception):
        raise stopped
    raise AudioError(f"cannot read {name}: {reason(stopped)}") from stopped


def _opened(source: ByteSource, name: str) -> av.container.InputContainer:
    with contextlib.suppress(Exception):
        av.error.err_check(0)  # drops what a callback of an earlier file left behind in this thread
    if source.size is not None and is_in_pieces(source, source.size):
        source.read_on()
    try:
        # No protocol but the file object at hand: playlists must not open other files or addresses.
        return av.open(source, mode="r", metadata_errors="ignore", options={"protocol_whitelist": "none"})
    except Exception as error:
        if kind := kind_of(source.bytes_at(0, 16)):
            raise AudioDecodeError(
                f"{name} is {kind}, which is incomplete or damaged: its header or index is missing ({reason(error)}), "
                "as of one that was cut, or is not written to its end; get a complete copy"
            ) from error
        raise AudioDecodeError(
            f"{name} is not audio that FFmpeg can read ({reason(error)}); expected wav, flac, mp3, ogg, "
            "opus, m4a, aac, webm or a video with an audio track"
        ) from error


def stated_seconds(path: Path) -> float | None:
    """How long the first audio track of a file is by its header; None where that does not say it or cannot be read.

    A pipe is left alone: what is read of it is gone. Raises nothing.
    """
    with contextlib.ExitStack() as opened, contextlib.suppress(Exception):  # errors of FFmpeg are of any kind
        if not path.is_file():
            return None
        source = byte_source(opened.enter_context(open_path(path)), str(path))
        opened.callback(_interrupted, source)
        container = opened.enter_context(_opened(source, str(path)))
        track = next(iter(container.streams.audio), None)
        if track is not None and track.duration and track.time_base:
            return float(track.duration * track.time_base)
        return None if track is None or not container.duration else container.duration / av.time_base
    return None


def _interrupted(source: ByteSource) -> None:
    """A Ctrl-C that came while FFmpeg read."""
    if source.stopped is not None and not isinstance(source.stopped, Exception):
        raise source.stopped


@dataclass
class _Lost:
    """Packets that did not decode."""

    count: int = 0
    seconds: float = 0.0
    first_s: float = 0.0
    why: str = ""

    def add(self, at_s: float, count: int, seconds: float, why: str) -> None:
        if not self.count:
            self.first_s, self.why = at_s, why
        self.count += count
        self.seconds += seconds


class _Decoding:
    """One track on its way from packets to samples."""

    def __init__(
        self, container: av.container.InputContainer, track: av.AudioStream, source: ByteSource, findings: Findings
    ) -> None:
        self._container, self._stream, self._source, self._findings = container, track, source, findings
        self._format = container.format.name
        self._timeline = Timeline()
        self._packed = Packer()
        self._decoder = self._codec_context()
        self._origin_s = self._origin()
        self._lost = _Lost()
        self._pending = _Lost()  # since the last good frame: a tag, damage, or a cut end
        self._pending_start = b""
        self._good_start = b""  # how a packet begins that decodes
        self._sizes: list[int] = []  # of packets: least, most, last
        self._corrupt: list[bool] = [False, False]  # whether FFmpeg marked the last two packets so
        self._error: Exception | None = None  # of the demuxer, where nothing came after it
        self._read_to = 0  # where in the file the last packet ends
        self._rate_hz = 0
        nut = self._format == "nut" and source.size is not None
        self._index = index_of_nut(source, source.size or 0) if nut else None

    def _origin(self) -> float:
        start_s = (self._container.start_time or 0) / 1e6  # microseconds (AV_TIME_BASE)
        return 0.0 if self._format in FROM_ZERO and 0 <= start_s <= CLOCK_S else start_s

    def _codec_context(self) -> av.AudioCodecContext:
        decoder = self._stream.codec_context
        give_plain_layout(decoder)
        if decoder.name == "flac":  # frames have checksums, which FFmpeg else ignores
            decoder.options = {"err_detect": "crccheck+explode"}
        if decoder.name.startswith("pcm_") and (bits := bits_of_integers(self._source)):
            integers = cast(av.AudioCodecContext, av.CodecContext.create(f"pcm_s{bits}le", "r"))
            integers.sample_rate, integers.layout = decoder.sample_rate, decoder.layout
            return integers
        return decoder

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Samples with their rate, as `decoded_blocks` gives them."""
        for packet in self._packets():
            if self._source.stopped is not None and not isinstance(self._source.stopped, Exception):
                return
            yield from self._decoded(packet)
        yield from self._packed.rest()

    def _packets(self) -> Iterator[Packet | None]:
        """Packets of the track, over errors that the demuxer gets over; at last None, which empties the decoder.

        Empty packets, of which FLV has some, would end the decoder.
        """
        errors = 0
        ended = False
        while not ended and errors < MAX_ERRORS:
            ended = True
            for item in self._demuxed():
                if isinstance(item, Exception):
                    ended, errors = self._source.stopped is not None, errors + 1
                    self._error = item
                elif item.size and (self._index is None or (item.pos or 0) < self._index):
                    if self._error:
                        self._lost.add(self._timeline.end_s, 1, 0.0, reason(self._error))
                    errors, self._error = 0, None
                    yield item
        yield None

    def _demuxed(self) -> Iterator[Packet | Exception]:
        try:
            yield from self._container.demux(self._stream)
        except IndexError:  # a stream that appeared on the way; ours was flushed before
            return
        except Exception as error:  # noqa: BLE001  # also those that callbacks left to be raised
            yield error

    def _decoded(self, packet: Packet | None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        start = b""
        if packet is not None:
            start = bytes(memoryview(packet)[:12])
            self._read_to = max(self._read_to, (packet.pos or 0) + packet.size)
            least, most, _ = self._sizes or (packet.size, packet.size, 0)
            last = self._sizes[2] if self._sizes else packet.size
            self._sizes = [min(least, last), max(most, last), packet.size]
            self._corrupt = [self._corrupt[1], bool(packet.is_corrupt)]
        try:
            frames = self._frames(packet)
        except av.error.EOFError:
            return
        except Exception as error:  # noqa: BLE001  # whatever damaged bytes lead to
            self._fail(packet, start, reason(error))
            return
        for frame in frames:
            if not frame.samples:
                continue
            try:
                yield from self._placed(frame)
            except Exception as error:  # noqa: BLE001  # a frame that makes no sense
                self._fail(packet, start, reason(error))
            else:
                self._settle(start)

    def _frames(self, packet: Packet | None) -> Sequence[av.AudioFrame]:
        """Decoded; FFmpeg takes what comes behind the last frame of AC-3 for a part of it, so that is cut off."""
        try:
            return self._decoder.decode(packet)
        except Exception:
            _, most, last = self._sizes or (0, 0, 0)
            if packet and self._format in ("ac3", "eac3") and 0 < most < last:
                return self._decoder.decode(av.Packet(bytes(packet)[:most]))
            raise

    def _placed(self, frame: av.AudioFrame) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """What is ready of the samples so far, and the hole before this frame.

        Raises:
            ValueError or one of FFmpeg's errors: the frame makes no sense.
        """
        rate, channels, (low, high) = frame.sample_rate, frame.layout.nb_channels, RATES_HZ
        if not low <= rate <= high or not 1 <= channels <= MAX_CHANNELS:
            raise ValueError(f"a frame of {rate} Hz with {channels} channels")
        keep_layout(frame)
        stated_s = None
        if self._format in TIMED and frame.pts is not None and frame.time_base:
            stated_s = frame.pts * frame.time_base.numerator / frame.time_base.denominator - self._origin_s
        silence_s = self._timeline.place(stated_s, frame.samples / rate)
        self._findings.start_s = self._timeline.start_s
        self._rate_hz = rate
        block = min(rate, HOLE_HZ)
        left = round(silence_s * block)
        if left:
            yield from self._packed.rest()
        while left > 0:  # a second at a time
            yield block, np.zeros((min(left, block), 1), np.float32)
            left -= block
        yield from self._packed.packed(frame)

    def _fail(self, packet: Packet | None, start: bytes, why: str) -> None:
        if not self._pending.count:
            self._pending_start = start
        seconds = 0.0
        if packet is not None and packet.duration and packet.time_base:
            seconds = min(float(packet.duration * packet.time_base), 1.0)
        self._pending.add(self._timeline.end_s, 1, seconds, why)

    def _settle(self, start: bytes) -> None:
        """A frame is good: what failed before it was damage, unless it was a tag between two files."""
        if self._pending.count and not self._pending_start.startswith(TAGS):
            self._lost.add(self._pending.first_s, self._pending.count, self._pending.seconds, self._pending.why)
        self._pending = _Lost()
        self._good_start = self._good_start or start

    def judge(self) -> None:
        """Once all was decoded: what is missing of it.

        Raises:
            AudioDecodeError: nothing was decoded, or with `strict` not all of it.
        """
        seconds, findings = self._timeline.end_s, self._findings
        if not self._timeline.seconds:
            if why := self._pending.why or (self._error and reason(self._error)):
                raise AudioDecodeError(f"{findings.name} is damaged: nothing of it can be decoded ({why})")
            return
        findings.warnings += self._timeline.warnings()
        if self._lost.count:
            packets = "1 packet" if self._lost.count == 1 else f"{self._lost.count} packets"
            findings.missing(
                f"decoding breaks off at {self._lost.first_s:.2f} s ({self._lost.why}); {packets} of audio "
                f"({self._lost.seconds:.2f} s) did not decode"
            )
        size = self._source.bytes_read if self._source.size is None else self._source.size
        if stopped := self._source.stopped:
            findings.missing(f"reading broke off at {seconds:.2f} s ({reason(stopped)})")
        elif cut := self._cut(size):
            findings.missing(f"it breaks off at {seconds:.2f} s: {cut}")
        elif rest := self._left_out(size):
            findings.missing(f"what can be read ends at {seconds:.2f} s: {rest}")

    def _left_out(self, size: int) -> str:
        """What comes behind the audio that is read and may be audio too; "" if nothing does."""
        if more := another_file(self._source, size, self._read_to, self._format):
            return f"{more:,} bytes behind it are another file, which is left out"
        if self._format == "caf" and is_in_pieces(self._source, size):
            return "its audio is in several chunks, of which FFmpeg reads the first"
        tail = self._format == "mpegts" and not track_goes_on(self._source, self._read_to, self._stream.id)
        if self._error is not None and not isinstance(self._error, av.error.InvalidDataError) and not tail:
            return f"FFmpeg reads no further ({reason(self._error)})"
        if self._format in GOES_ON and len(self._container.streams) == 1:
            return another_track(self._source, size, self._read_to, self._stream.id)
        return ""

    def _cut(self, size: int) -> str:
        """Why the file is not whole at its end; "" if nothing says so."""
        if missing := missing_bytes(self._source, size):
            return missing
        stated_s = self._stated_s()
        if stated_s is not None and self._timeline.seconds < stated_s - LENGTH_SLACK_S:
            return f"only {self._timeline.seconds:.2f} s of its {stated_s:.2f} s can be decoded"
        framed = self._format in TIMED - {"flac", "mpegts", "mpeg", "ogg"}
        like = self._pending_start[:1] == self._good_start[:1] and self._pending_start != b""
        if self._pending.count and (framed or like) and not self._pending_start.startswith(TAGS):
            return f"its last packet does not decode ({self._pending.why})"
        if any(self._corrupt) and self._format not in SIZED:
            return "its last packet is incomplete"
        least, most, last = self._sizes or (0, 0, 0)
        even = last < least and most - least <= least / 8 and (like or not self._pending.count)
        if even and self._stream.codec_context.name in CONSTANT:
            return f"its last packet has {last} of {least} bytes"
        return ""

    def _stated_s(self) -> float | None:
        """The length that the container states, where that can be relied upon."""
        stream = self._stream
        if self._format == "mp3":
            return xing_s(self._source, self._rate_hz)
        late = self._format == "matroska,webm" and len(self._container.streams) > 1  # FFmpeg states the longest's
        if late or self._format not in STATED:
            return None
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if self._container.duration and len(self._container.streams) == 1:
            return float(self._container.duration / 1e6) - self._timeline.start_s - max(0.0, self._origin_s)
        return None
