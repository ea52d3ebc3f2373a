"""What a file states about its own length, held against what is there.

Sizes of chunks for the containers that are made of them, Xing's count of frames for MP3, whole pages and packets at the
end of Ogg and MPEG-TS. What states nothing (raw AC-3 or ADTS that was cut between two frames) cannot be judged.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from .byte_source import ByteSource

MAX_CHUNKS = 100_000  # of a fragmented MP4 of hours there are some thousands
SLACK_BYTES = 64  # writers count a header, or the byte that pads a chunk, as data
# Writers that cannot go back to fill a size in leave 0, almost 2 or 4 GiB, or a round number of 1e9 and more.
UNKNOWN_FROM, ROUND_FROM, ROUND = 0x7F000000, 1_000_000_000, 1_000_000
UNKNOWN_FROM_64 = 1 << 62
OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # at most: header, table of segments, segments
TS_PACKET_BYTES = 188
PS_PACK_BYTES = 2048  # of MPEG program streams, as all discs and most writers have them
BEHIND_BYTES = 1 << 22  # of indexes behind the audio
FLV_TAGS = (8, 9, 18)  # audio, video, script
MAX_TS_PACKETS = 10_000  # to look at from one place on

# Containers whose timestamps say where a frame belongs. Others have none, or FFmpeg makes them up from sizes.
TIMED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "mpeg", "flv", "ogg", "nut", "flac"}
FROM_ZERO = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}  # theirs begin at 0, where the picture may begin later
# Containers that state the length of the track in their header, or at the end of the file. Ogg's is its last page's.
STATED = TIMED - {"mpegts", "mpeg", "nut", "ogg"} | {
    "aiff", "apm", "argo_asf", "au", "ape", "caf", "kvag", "mxf", "rm", "sox", "tta", "w64", "wv",
}  # fmt: skip
# What FFmpeg thinks of the last packet follows from sizes in the header.
SIZED = {"adx", "aiff", "au", "caf", "sox", "voc", "w64", "wav"}
ENDS = {"mov,mp4,m4a,3gp,3g2,mj2", "flv", "asf", "tta", "voc"}  # FFmpeg reads no second file that is joined
GOES_ON = {"mpegts", "ogg"}  # may change the track on the way, which FFmpeg does not follow
CONSTANT = {"ac3", "eac3", "mp2", "mp3", "dts"}  # codecs whose raw frames mostly have one size: a smaller one is cut


@dataclass(frozen=True)
class _Grammar:
    """How the chunks of a container follow each other, and which of them hold the audio."""

    first: int  # where the first begins
    head: struct.Struct  # of its name and size
    audio: tuple[bytes, ...]
    align: int = 1
    size_first: bool = False
    counts_head: bool = False  # whether the size counts name and size
    several: bool = False  # whether more follow the first that holds audio


_NUT_INDEX, _INDEX_BYTES = bytes.fromhex("4e58dd672f23e64e"), 1 << 20
_RIFF = _Grammar(12, struct.Struct("<4sI"), (b"data",), align=2, several=True)
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_GRAMMARS: tuple[tuple[int, bytes, _Grammar], ...] = (  # where the magic bytes stand, and which they are
    (8, b"AVI ", _Grammar(12, struct.Struct("<4sI"), (b"LIST",), align=2, several=True)),
    (0, b"RIFF", _RIFF),
    (0, b"RF64", _RIFF),
    (0, b"BW64", _RIFF),
    (0, b"RIFX", _Grammar(12, struct.Struct(">4sI"), (b"data",), align=2, several=True)),
    (0, b"FORM", _Grammar(12, struct.Struct(">4sI"), (b"SSND", b"BODY"), align=2)),
    (0, b"caff", _Grammar(8, struct.Struct(">4sq"), (b"data",), several=True)),
    (0, b".RMF", _Grammar(0, struct.Struct(">4sI"), (b"DATA",), counts_head=True)),
    (0, _W64, _Grammar(40, struct.Struct("<16sQ"), (_W64_DATA,), align=8, counts_head=True, several=True)),
    (0, _ASF, _Grammar(0, struct.Struct("<16sQ"), (_ASF_DATA,), counts_head=True)),
    (4, b"ftyp", _Grammar(0, struct.Struct(">I4s"), (b"mdat",), size_first=True, counts_head=True, several=True)),
)


_KINDS = (  # how files begin, and where
    (4, (b"ftyp", b"moov", b"mdat"), "an MP4, M4A or MOV file"),
    (0, (b"\x1a\x45\xdf\xa3",), "an MKV or WebM file"),
    (0, (b"OggS",), "an Ogg file"),
    (0, (b"fLaC",), "a FLAC file"),
    (8, (b"WAVE",), "a WAV file"),
    (8, (b"AVI ",), "an AVI file"),
    (8, (b"AIFF", b"AIFC"), "an AIFF file"),
    (0, (b"FLV\x01",), "an FLV file"),
    (0, (b"caff",), "a CAF file"),
    (0, (b"\x30\x26\xb2\x75",), "a WMA or WMV file"),
    (0, (b"wvpk",), "a WavPack file"),
    (0, (b"ID3",), "an MP3 file"),
)


def kind_of(head: bytes) -> str:
    """What kind of file begins so; "" of what is none of those that are known."""
    return next((kind for place, starts, kind in _KINDS if head[place:].startswith(starts)), "")


def missing_bytes(source: ByteSource, size: int) -> str:
    """What is missing of a file of `size` bytes by its own account, in words; "" if nothing is known to be."""
    head = source.bytes_at(0, 64)
    for place, magic, grammar in _GRAMMARS:
        if head[place : place + len(magic)] == magic:
            return _beyond(max(_ends(source, size, grammar), default=0), size)
    if head.startswith(b"OggS"):
        return _last_page(source, size)
    if head.startswith(b"nut/multimedia container\0"):
        return "" if index_of_nut(source, size) is not None else "it has no index"
    if head[:1] == b"G" and source.bytes_at(TS_PACKET_BYTES, 1) == b"G":
        left = size % TS_PACKET_BYTES
        cut = left and source.bytes_at(size - left, 1) in (b"G", b"")  # else it is no packet, if it can be read
        return f"its last packet has {left} of {TS_PACKET_BYTES} bytes" if cut else ""
    if head.startswith(b"\0\0\1\xba") and source.bytes_at(PS_PACK_BYTES, 3) == b"\0\0\1":
        left = size % PS_PACK_BYTES
        cut = left > 4 and source.bytes_at(size - left, 3) == b"\0\0\1"  # an end code takes four
        return f"its last pack has {left:,} of {PS_PACK_BYTES:,} bytes" if cut else ""
    if head.startswith(b"FLV"):
        return _last_tag(source, size)
    return _beyond(_one_end(source, size, head), size)


def is_in_pieces(source: ByteSource, size: int) -> bool:
    """Whether samples are in several chunks of a WAV, W64 or CAF: where FFmpeg can seek, it reads only the last."""
    head = source.bytes_at(0, 64)
    return any(
        head[place : place + len(magic)] == magic and len(list(islice(_ends(source, size, grammar), 2))) > 1
        for place, magic, grammar in _GRAMMARS
        if grammar.audio in ((b"data",), (_W64_DATA,))
    )


def _one_end(source: ByteSource, size: int, head: bytes) -> int:
    """Where the audio ends in a container that says it once; 0 if it does not."""
    order = "<" if head[:1] in (b"d", b".") and not head.startswith(b".snd") else ">"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _segment_end(source)
    if head.startswith((b".snd", b"dns.")) and len(head) >= 12:
        begin, data = struct.unpack(f"{order}II", head[4:12])
        return 0 if _unknown(data) else begin + data
    if head.startswith((b".SoX", b"XoS.")) and len(head) >= 16:
        begin, samples = struct.unpack(f"{order}IQ", head[4:16])
        return 0 if samples > UNKNOWN_FROM_64 // 4 else begin + 4 * samples
    if head.startswith(b"\x80\0") and len(head) >= 16:  # ADX: blocks of 32 samples
        begin, blocks = 4 + int.from_bytes(head[2:4], "big"), -(-int.from_bytes(head[12:16], "big") // 32)
        return begin + blocks * head[5] * head[7] if source.bytes_at(max(0, begin - 6), 6) == b"(c)CRI" else 0
    if head.startswith(b"Creative Voice File\x1a"):
        return max(_voice_ends(source, size, head), default=0)
    return 0


def index_of_nut(source: ByteSource, size: int) -> int | None:
    """Where the index of a NUT file begins, behind all audio; FFmpeg takes what follows it for more."""
    begin = max(0, size - _INDEX_BYTES)
    place = source.bytes_at(begin, _INDEX_BYTES).rfind(_NUT_INDEX)
    return begin + place if place >= 0 else None


def another_file(source: ByteSource, size: int, read_to: int, container: str) -> int:
    """Bytes behind the audio, read up to `read_to`, that are another file, which FFmpeg does not read; 0 if none.

    Some services send sentences so, one after the other.
    """
    head = source.bytes_at(0, 12)
    for place, magic, grammar in _GRAMMARS:
        if grammar.align == 2 and head[place : place + len(magic)] == magic:
            end = max(_ends(source, size, grammar), default=0) or size
            return size - end if source.bytes_at(end + end % 2, 4) == head[:4] else 0
    place = source.bytes_at(read_to, BEHIND_BYTES).find(head) if container in ENDS and read_to else -1
    return size - read_to - place if place >= 0 else 0


def another_track(source: ByteSource, size: int, read_to: int, pid: int) -> str:
    """What follows the track of a file that holds one, and which was read up to `read_to`; "" if nothing is known to.

    Radio dumps are chains of Ogg streams, and broadcasts change the PID of MPEG-TS: FFmpeg follows neither.
    """
    tail = source.bytes_at(read_to, 2 * OGG_PAGE_BYTES)
    if source.bytes_at(0, 4) == b"OggS":
        pages = [place.start() for place in re.finditer(b"OggS", tail)]
        begins = next((place for place in pages if tail[place + 5 : place + 6] >= b"\2" and tail[place + 5] & 2), None)
        return "" if begins is None else f"another stream begins at byte {read_to + begins:,} of {size:,}"
    begin = (size - size // 10) // TS_PACKET_BYTES * TS_PACKET_BYTES
    tail = source.bytes_at(begin, MAX_TS_PACKETS * TS_PACKET_BYTES)
    start = max(range(TS_PACKET_BYTES), key=lambda start: tail[start::TS_PACKET_BYTES].count(b"G"))  # behind junk
    packets = [tail[at : at + 3] for at in range(start, len(tail) - 2, TS_PACKET_BYTES)]
    pids = {(packet[1] & 0x1F) << 8 | packet[2] for packet in packets if packet[0] == ord("G")}
    return f"other tracks go on behind byte {begin:,} of {size:,}" if pids and pid not in pids else ""


def track_goes_on(source: ByteSource, read_to: int, pid: int) -> bool:
    """Whether packets of a track of MPEG-TS begin behind the last one that was read; what else is there is a tail."""
    begins = bytes(first | pid >> 8 for first in (0x40, 0x60, 0xC0, 0xE0))  # the other bits: an error, a priority
    packet = b"G[" + re.escape(begins) + b"]" + re.escape(bytes([pid & 0xFF])) + b"(?s:.{185})(G|$)"
    return re.search(packet, source.bytes_at(read_to, BEHIND_BYTES)) is not None


def bits_of_integers(source: ByteSource) -> int:
    """Bits that a sample of an extensible WAV of integers takes, where fewer are valid; else 0.

    FFmpeg takes the valid bits for all of them, and 24 in 32 for a rare kind of floats.
    """
    head = source.bytes_at(0, 4096)
    place = head.find(b"fmt ")
    if head[8:12] != b"WAVE" or place < 0 or len(fmt := head[place + 8 : place + 48]) < 40:
        return 0
    tag, channels, _, _, align, _, _, valid, _, kind = struct.unpack("<HHIIHHHHIH", fmt[:26])
    bits = 8 * align // channels if channels else 0
    return bits if (tag, kind) == (0xFFFE, 1) and valid < bits and bits in (16, 24, 32) else 0


def xing_s(source: ByteSource, rate_hz: int) -> float | None:
    """Seconds of an MP3 file by the frames that its Xing header counts; None without one."""
    place = 0
    while (head := source.bytes_at(place, 10)).startswith(b"ID3") and len(head) == 10:
        place += 10 + sum((byte & 0x7F) << 7 * (3 - index) for index, byte in enumerate(head[6:10]))
    frame = source.bytes_at(place, 64)
    for mark in (b"Xing", b"Info"):
        found = frame.find(mark)
        if 0 < found <= 36 and len(frame) >= found + 12 and frame[0] == 0xFF and rate_hz:
            flags, frames = struct.unpack(">II", frame[found + 4 : found + 12])
            samples = 1152 if frame[1] >> 3 & 3 == 3 else 576  # of MPEG 1, and of 2 and 2.5
            return float(frames * samples / rate_hz) if flags & 1 else None
    return None


def _beyond(end: int, size: int) -> str:
    return f"{size:,} of {end:,} bytes are there" if end > size + SLACK_BYTES else ""


def _unknown(stated: int) -> bool:
    near = abs(stated - round(stated / ROUND) * ROUND) <= SLACK_BYTES
    return not stated or stated >= UNKNOWN_FROM or (stated >= ROUND_FROM and near)


def _ends(source: ByteSource, size: int, grammar: _Grammar) -> Iterator[int]:
    """Where the chunks that hold audio end by their own account; 0 of one that does not know."""
    here, wide, length, came = grammar.first, 0, grammar.head.size, False
    for _ in range(MAX_CHUNKS):
        if here >= size or len(data := source.bytes_at(here, length)) < length:
            return
        first, second = grammar.head.unpack(data)
        name, stated = (second, first) if grammar.size_first else (first, second)
        if not any(name):  # megabytes of zeros, as a disk that was full leaves them
            return
        known = 0 <= stated < UNKNOWN_FROM_64 if length > 8 else not _unknown(stated)
        if name == b"ds64":  # RF64: the true size of the data
            wide = int.from_bytes(source.bytes_at(here + 16, 8), "little")
        elif name == b"data" and wide and stated == 0xFFFFFFFF:
            stated, known = wide, wide < UNKNOWN_FROM_64
        elif grammar.size_first and stated == 1:  # MP4: the true size follows
            stated = int.from_bytes(source.bytes_at(here + 8, 8), "big")
            known = stated < UNKNOWN_FROM_64
        end = here + (max(stated, length) if grammar.counts_head else length + max(stated, 0))
        if name in grammar.audio:
            known |= came and not stated  # a writer that does not know a size stops there: this one is empty
            came = True
            yield end if known else 0
            if not known or not grammar.several:
                return
        here = -(-end // grammar.align) * grammar.align


def _segment_end(source: ByteSource) -> int:
    """Where the segment of a Matroska or WebM file ends; 0 where its writer could not go back to say it."""
    here = 4
    length, count = _vint(source.bytes_at(here, 8))
    here += count + length
    if source.bytes_at(here, 4) != b"\x18\x53\x80\x67":
        return 0
    length, count = _vint(source.bytes_at(here + 4, 8))
    return 0 if not count or length == (1 << 7 * count) - 1 else here + 4 + count + length


def _vint(data: bytes) -> tuple[int, int]:
    """A number of EBML and how many bytes it takes."""
    count = 9 - data[0].bit_length() if data else 0
    if not 1 <= count <= len(data):
        return 0, 0
    return int.from_bytes(data[:count], "big") & (1 << 7 * count) - 1, count


def _voice_ends(source: ByteSource, size: int, head: bytes) -> Iterator[int]:
    here = int.from_bytes(head[20:22], "little")
    for _ in range(MAX_CHUNKS):
        block = source.bytes_at(here, 4)
        if here >= size or len(block) < 4 or not block[0]:  # the last block is a zero
            return
        here += 4 + int.from_bytes(block[1:], "little")
        yield here


def _last_page(source: ByteSource, size: int) -> str:
    """Ogg: whether the last page is whole; that it is marked as the last is not asked for, recorders forget it."""
    tail = source.bytes_at(max(0, size - OGG_PAGE_BYTES), OGG_PAGE_BYTES)
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) < page + 27 or len(tail) < page + 27 + tail[page + 26]:
        return "its last page is cut" if page >= 0 else ""
    table = tail[page + 27 : page + 27 + tail[page + 26]]
    there, stated = len(tail) - page, 27 + len(table) + sum(table)
    return f"its last page has {there:,} of {stated:,} bytes" if there < stated else ""


def _last_tag(source: ByteSource, size: int) -> str:
    """FLV: whether the last tag is whole; what does not look like a tag is a tail."""
    here = 13
    for _ in range(MAX_CHUNKS):
        head = source.bytes_at(here, 4)
        if here >= size or not head or head[0] & 0x1F not in FLV_TAGS:
            return ""
        end = here + 15 + int.from_bytes(head[1:], "big")
        if end > size:
            return f"its last tag has {size - here:,} of {end - here:,} bytes"
        here = end
    return ""
