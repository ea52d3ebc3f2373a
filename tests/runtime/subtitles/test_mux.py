"""A track of subtitles in a copy of a video: all else is as it was, to the byte of each packet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.container import OutputContainer
from av.stream import Disposition, Stream

from dasheng_edge.runtime.errors import DashengEdgeError, LanguageError, OutputExistsError, SubtitleError
from dasheng_edge.runtime.languages.language import _languages, language_of
from dasheng_edge.runtime.subtitles.cue import Cue
from dasheng_edge.runtime.subtitles.mux import _ASS_HEADER, _stated, mux

CUES = [Cue(0.5, 1.5, ("[dog barks]", "[engine running]")), Cue(1.6, 2.6, ("[כלב נובח]",))]
TEXTS = ["[dog barks]\\N[engine running]", "[כלב נובח]"]
FORMATS = {".mkv": "matroska", ".mp4": "mp4", ".mov": "mov"}
RATE, FRAME = 16_000, 640


def make_video(path: Path) -> Path:
    """Two seconds of moving grey with B-frames, two tracks of sound, chapters, and what the container can hold more."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w", format=FORMATS.get(path.suffix, "avi")) as container:
        container.metadata["title"] = "Film"
        video = container.add_stream("mpeg4", rate=25, width=64, height=48, pix_fmt="yuv420p", max_b_frames=2)
        sounds = [container.add_stream("aac", rate=RATE, layout="mono") for _ in range(2)]
        sounds[1].metadata.update(language="deu", title="Comments")
        sounds[1].disposition = Disposition.comment
        if path.suffix in FORMATS:
            add_the_rest(container, path.suffix)
        for at in range(50):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * at, np.uint8), format="rgb24")
            picture.pts = at
            container.mux(video.encode(picture))
            sound = av.AudioFrame.from_ndarray(random.uniform(-0.3, 0.3, (1, FRAME)).astype("f4"), "fltp", "mono")
            sound.sample_rate, sound.pts = RATE, FRAME * at
            for track in sounds:
                container.mux(track.encode(sound))
        container.mux(video.encode(None))
        for track in sounds:
            container.mux(track.encode(None))
    return path


def add_the_rest(container: OutputContainer, suffix: str) -> None:
    text: Any = container.add_stream("subrip" if suffix == ".mkv" else "mov_text")
    text.codec_context.subtitle_header, text.time_base = _ASS_HEADER, Fraction(1, 1000)
    ms = Fraction(1, 1000)
    container.set_chapters([
        {"id": 1, "start": 0, "end": 1000, "time_base": ms, "metadata": {"title": "One"}},
        {"id": 2, "start": 1000, "end": 2000, "time_base": ms, "metadata": {"title": "Two"}},
    ])  # fmt: skip
    if suffix == ".mkv":
        container.add_attachment("font.ttf", "font/ttf", bytes(range(100)))
        container.add_attachment("cover.png", "image/png", png())


def png() -> bytes:
    encoder = av.CodecContext.create("png", "w")
    encoder.width = encoder.height = 4
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1, 25)
    return b"".join(map(bytes, encoder.encode(av.VideoFrame.from_ndarray(np.zeros((4, 4, 3), np.uint8), "rgb24"))))


def facts(stream: Stream) -> tuple[Any, ...]:
    codec: Any = stream.codec_context
    metadata = {key: value for key, value in stream.metadata.items() if key != "DURATION"}  # of the last packet
    data = getattr(stream, "data", None) if codec is None else codec.extradata
    return stream.type, stream.name, metadata, stream.disposition, stream.time_base, data


def content(path: Path, *, without_last_text: bool = False) -> tuple[Any, ...]:
    """All that a file holds: of each track its facts and packets, and metadata and chapters of the file."""
    with av.open(str(path)) as container:
        streams = list(container.streams)
        if without_last_text:
            streams.remove(container.streams.subtitles[-1])
        packets: dict[int, list[Any]] = {stream.index: [] for stream in streams}
        for packet in container.demux():
            if packet.size and packet.stream.index in packets and packet.stream.type != "data":
                times = [packet.pts, packet.dts, packet.duration, packet.time_base]
                packets[packet.stream.index].append((times, packet.is_keyframe, hashlib.sha256(packet).hexdigest()))
        tracks = sorted((repr(facts(stream)), packets[stream.index]) for stream in streams)
        return tracks, container.metadata, container.chapters()


@pytest.mark.parametrize("suffix", FORMATS)
def test_all_else_is_copied_as_it_is_and_cues_come_back(tmp_path: Path, suffix: str) -> None:
    video, out = make_video(tmp_path / f"film{suffix}"), tmp_path / f"out{suffix}"
    before = video.read_bytes()
    assert mux(video, CUES, out, language="en-GB") == []
    assert content(out, without_last_text=True) == content(video)
    with av.open(str(out)) as container:
        track: Any = container.streams.subtitles[-1]
        packets = [packet for packet in container.demux(track) if packet.size > 2]
        texts = [text.ass.decode().rpartition(",,")[2] for packet in packets for text in packet.decode()]
        times = [(packet.pts, packet.pts + packet.duration) for packet in packets]
        assert track.language == "eng"
        assert track.disposition & Disposition.hearing_impaired or suffix == ".mov"
    assert texts == TEXTS
    assert times == [(500, 1500), (1600, 2600)]
    assert video.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([video.name, out.name])


@pytest.mark.parametrize(
    ("language", "stated"),
    [
        ("German", ("ger", "deu", "ger")), ("fr-CA", ("fre", "fra", "fra")), ("sv", ("swe", "swe", "sve")),
        ("hrv", ("hrv", "hrv", "hr ")), ("zh-Hant", ("chi", "zho", "chi")), ("yue", ("yue", "yue", None)),
    ],
)  # fmt: skip
def test_a_language_is_stated_as_the_kind_of_file_states_it(
    tmp_path: Path, language: str, stated: tuple[str | None, ...]
) -> None:
    for suffix, word in zip(FORMATS, stated, strict=True):  # 639-2/B; 639-2/T; FFmpeg's names of QuickTime's numbers
        out = tmp_path / f"out{suffix}"
        mux(make_video(tmp_path / f"film{suffix}"), CUES, out, language=language)
        with av.open(str(out)) as container:
            track: Any = container.streams.subtitles[-1]
            assert track.language == word
            assert word is None or language_of(word).code == language_of(language).code


def test_every_language_that_quicktime_numbers_is_written_so() -> None:
    """Whichever of its codes FFmpeg takes is the one that is stated."""
    for language in {one.code: one for one in _languages().values()}.values():
        stated = _stated(language, "mov")
        others = {language.terminology, language.bibliographic} - {stated}
        assert quicktime(stated) or not any(map(quicktime, others)), language


def quicktime(code: str) -> str | None:
    """How a code comes back from a MOV file."""
    with BytesIO() as file:
        with av.open(file, "w", format="mov") as container:
            track = container.add_stream("pcm_s16le", rate=8000, layout="mono")
            track.metadata["language"] = code
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1), "i2"), "s16", "mono")
            sound.sample_rate = 8000
            container.mux([*track.encode(sound), *track.encode(None)])
        file.seek(0)
        with av.open(file) as container:
            return container.streams[0].language


def test_what_is_no_language_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(LanguageError, match="'klingon' is no language"):
        mux(tmp_path / "film.mkv", CUES, tmp_path / "out.mkv", language="klingon")


def test_no_cues_are_an_empty_track(tmp_path: Path) -> None:
    out = tmp_path / "out.mkv"
    assert mux(make_video(tmp_path / "film.mkv"), [], out) == []
    with av.open(str(out)) as container:
        assert len(container.streams.subtitles) == 2


Spoil = Callable[[Path], tuple[Path, Path]]


def with_avi(folder: Path) -> tuple[Path, Path]:
    return make_video(folder / "film.avi"), folder / "out.avi"


def with_other_kind(folder: Path) -> tuple[Path, Path]:
    return make_video(folder / "film.mkv"), folder / "out.mp4"


def with_text(folder: Path) -> tuple[Path, Path]:
    (folder / "film.mkv").write_text("no video")
    return folder / "film.mkv", folder / "out.mkv"


def with_nothing(folder: Path) -> tuple[Path, Path]:
    return folder / "film.mkv", folder / "out.mkv"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_avi, "kind avi.*expected MKV, MP4 or MOV"),
        (with_other_kind, r"out.mp4 is to be a copy of .*film.mkv.*expected a name in .mkv"),
        (with_text, "cannot be read as a video"),
        (with_nothing, "cannot be read as a video"),
    ],
)
def test_what_is_no_such_video_is_refused(tmp_path: Path, spoil: Spoil, message: str) -> None:
    video, out = spoil(tmp_path)
    with pytest.raises(SubtitleError, match=message):
        mux(video, CUES, out)
    assert not out.exists()


def test_nothing_is_overwritten_unasked_and_the_video_never(tmp_path: Path) -> None:
    video, out = make_video(tmp_path / "film.mkv"), tmp_path / "out.mkv"
    out.write_text("mine")
    with pytest.raises(OutputExistsError, match="already exists"):
        mux(video, CUES, out)
    assert out.read_text() == "mine"
    mux(video, CUES, out, overwrite=True)
    (tmp_path / "link.mkv").symlink_to(video)
    before = video.read_bytes()
    for same in (video, tmp_path / "link.mkv"):
        with pytest.raises(OutputExistsError, match="never overwritten"):
            mux(video, CUES, same, overwrite=True)
    assert video.read_bytes() == before


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_damaged_video_is_copied_as_far_as_it_goes_or_refused_and_nothing_is_left(
    tmp_path: Path, suffix: str, kept: float
) -> None:
    video, out = make_video(tmp_path / f"film{suffix}"), tmp_path / f"out{suffix}"
    data = video.read_bytes()
    video.write_bytes(data[: int(kept * len(data))])
    with suppress(DashengEdgeError):
        mux(video, CUES, out)
    assert {path.name for path in tmp_path.iterdir()} <= {video.name, out.name}
