"""Subtitles as a track in a copy of a video, whose other tracks are copied as they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dasheng_edge.runtime.atomic_output import PartialOutput, not_a_file
from dasheng_edge.runtime.errors import OutputExistsError, SubtitleError
from dasheng_edge.runtime.languages.language import Language, find_language, language_of

from .cue import Cue
from .wrapping import shown

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream
    from av.subtitles.stream import SubtitleStream


@dataclass(frozen=True)
class _Kind:
    """A kind of file that takes a track of text."""

    demuxer: str  # a name among those of the demuxer that reads it
    codec: str
    length_bytes: int  # that stand before a text, and say how long it is


_KINDS: Mapping[str, tuple[str, _Kind]] = {  # by the ending of a file: its muxer
    ".mkv": ("matroska", _Kind("matroska", "subrip", 0)),
    ".mp4": ("mp4", _Kind("mp4", "mov_text", 2)),
    ".m4v": ("mp4", _Kind("mp4", "mov_text", 2)),
    ".mov": ("mov", _Kind("mp4", "mov_text", 2)),
}
# FFmpeg's names of QuickTime's languages, which are numbers, where they are not those of ISO 639-2/B. Others have none.
_QUICKTIME = {
    "ces": "ces", "fra": "fra", "ron": "ron", "slk": "slk",
    "fao": "fo ", "hrv": "hr ", "pan": "pa ", "srp": "sr ", "swe": "sve",
}  # fmt: skip
_NO_ADDRESS = {"protocol_whitelist": "file"}  # a playlist must not open addresses
_MS = Fraction(1, 1000)
# Of the text in MP4 files, whose encoder wants one: white, below, 16 of 288 lines high.
_ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+
PlayResX: 384
PlayResY: 288

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def mux(
    video: str | Path,
    cues: Sequence[Cue],
    out: str | Path,
    *,
    language: str = "en",
    title: str = "Sounds",
    overwrite: bool = False,
) -> list[str]:
    """Write a copy of a video with one track more; a sentence for each thing that could not be copied.

        mux("film.mkv", cues(windows), "film.subtitled.mkv", language="en")

    Packets, parameters of codecs, metadata, chapters, dispositions and attached files are kept. The copy has the final
    name once it is whole. `language` is one as `language_of` takes it; the track is marked as one for people who do not
    hear.

    Raises:
        SubtitleError: the video is no MKV, MP4 or MOV file, `out` is of another kind, or one of its tracks cannot be
            copied.
        LanguageError: `language` is none that is known.
        OutputExistsError: `out` is there, or is the video.
        OutputWriteError: it cannot be written.
    """
    import av
    from av.error import FFmpegError

    video, spoken = Path(video), language_of(language)
    suffix = Path(out).suffix.lower()
    try:
        source = av.open(f"file:{video}", metadata_errors="replace", options=_NO_ADDRESS)
    except (FFmpegError, OSError, ValueError) as error:
        raise SubtitleError(f"{video} cannot be read as a video ({error}); expected an MKV, MP4 or MOV file") from error
    with source:
        muxer, kind = _kind_of(video, source.format.name, suffix, Path(out))
        if Path(out).exists() and Path(out).samefile(video):
            raise OutputExistsError(f"{out} is the video itself, which is never overwritten; name another file")
        about = {"language": _stated(spoken, muxer), "title": title}
        partial = PartialOutput(out, overwrite=overwrite, what="a file", why_not=not_a_file)
        with partial.write_errors():
            partial.open(folder=False)
            try:
                with av.open(str(partial.path), "w", format=muxer) as target:
                    dropped = _copy(source, target, cues, kind, about)
                partial.move()
            except (FFmpegError, ValueError) as error:
                if isinstance(error, OSError):
                    raise
                raise SubtitleError(f"{video} cannot be copied: {error}; write subtitles to a file") from error
            finally:
                partial.discard()
    return dropped


def _kind_of(video: Path, demuxer: str, suffix: str, out: Path) -> tuple[str, _Kind]:
    names = demuxer.split(",")
    fits = [ending for ending, (_, kind) in _KINDS.items() if kind.demuxer in names]
    if not fits:
        raise SubtitleError(
            f"{video} is a file of the kind {names[0]}, into which no subtitles are put; expected MKV, MP4 or MOV: "
            "convert it, or write subtitles to a file beside it"
        )
    if suffix not in fits:
        raise SubtitleError(f"{out} is to be a copy of {video} with subtitles; expected a name in {' or '.join(fits)}")
    return _KINDS[suffix]


def _stated(language: Language, muxer: str) -> str:
    """As files of that kind write it."""
    if muxer == "mp4":
        return language.terminology
    return _QUICKTIME.get(language.terminology, language.bibliographic) if muxer == "mov" else language.bibliographic


def _copy(
    source: InputContainer, target: OutputContainer, cues: Sequence[Cue], kind: _Kind, about: Mapping[str, str]
) -> list[str]:
    target.metadata.update(source.metadata)
    chapters = source.chapters()
    tracks: dict[int, Stream] = {}
    dropped: list[str] = []
    for stream in source.streams:
        picture = stream.disposition & type(stream.disposition).attached_pic
        if picture and kind.codec == "subrip":  # of Matroska, where pictures are attached files
            name, what = (stream.metadata.get(key, "") for key in ("filename", "mimetype"))
            target.add_attachment(name, what, _picture(source.name, stream.index))
        elif stream.type not in ("data", "unknown"):
            tracks[stream.index] = _twin(stream, target)
        elif not chapters or stream.name != "bin_data":  # which is how MP4 keeps the names of chapters
            dropped.append(f"track {stream.index} ({stream.name or stream.type}) holds data, and was not copied")
    text = cast("SubtitleStream", target.add_stream(kind.codec))
    codec = text.codec_context
    codec.subtitle_header, codec.time_base, text.time_base = _ASS_HEADER, _MS, _MS
    text.metadata.update(about)
    text.disposition = type(text.disposition).hearing_impaired
    target.set_chapters(chapters)
    target.start_encoding()
    waiting = deque(_packets(cues, kind, text))
    for packet in source.demux():
        if not packet.size or packet.stream.index not in tracks:  # the last of a track is empty
            continue
        if packet.pts is None and packet.dts is None:  # a picture
            packet.pts = packet.dts = 0
        at_ms = (packet.dts if packet.dts is not None else packet.pts or 0) * packet.time_base / _MS
        while waiting and (waiting[0].pts or 0) <= at_ms:
            target.mux_one(waiting.popleft())
        packet.stream = tracks[packet.stream.index]
        target.mux_one(packet)
    for packet in waiting:
        target.mux_one(packet)
    return dropped


def _twin(stream: Stream, target: OutputContainer) -> Stream:
    """A track for the packets of another."""
    twin = target.add_stream_from_template(stream, opaque=True)
    twin.metadata.update(stream.metadata)
    if "name" in stream.metadata:  # what MP4 reads as that, it writes as this
        twin.metadata.setdefault("title", stream.metadata["name"])
    if (spoken := find_language(stream.metadata.get("language", ""))) is not None and target.format.name == "mov":
        twin.metadata["language"] = _stated(spoken, "mov")
    twin.disposition = stream.disposition
    return twin


def _picture(name: str, index: int) -> bytes:
    """A picture that is attached to a file."""
    import av

    with av.open(name, metadata_errors="replace", options=_NO_ADDRESS) as source:
        return bytes(next(source.demux(source.streams[index])))


def _packets(cues: Sequence[Cue], kind: _Kind, track: Stream) -> Iterator[Packet[Stream]]:
    from av import Packet

    for cue in cues:
        text = "\n".join(filter(None, map(shown, cue.lines))).encode()
        packet = Packet(len(text).to_bytes(kind.length_bytes, "big") + text if kind.length_bytes else text)
        packet.time_base, packet.stream = _MS, track
        packet.pts = packet.dts = round(1000 * cue.start_s)
        packet.duration = round(1000 * cue.end_s) - packet.pts
        yield packet
