"""Files of many containers: whole ones are read without a word, cut ones as far as they go, with a warning."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.byte_source import byte_source
from dasheng_edge.runtime.audio.container import Findings, decoded_blocks
from dasheng_edge.runtime.audio.read import AudioStream, read_audio
from dasheng_edge.runtime.audio.windows import spans
from dasheng_edge.runtime.errors import AudioDecodeError, AudioError
from tests.fixtures.audio_files import sine

RATE = 16_000
SECONDS = 3.0
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
# container, codec, rate. Each is cut by a half and by a tenth.
STATES_ITS_LENGTH = [
    ("wav", "pcm_s16le", RATE), ("wav", "pcm_f32le", RATE), ("wav", "adpcm_ima_wav", RATE), ("wav", "ac3", 48_000),
    ("w64", "pcm_s16le", RATE), ("w64", "adpcm_ms", RATE), ("aiff", "pcm_s16be", RATE), ("au", "pcm_s16be", RATE),
    ("caf", "pcm_s16le", RATE), ("caf", "adpcm_ima_wav", RATE), ("voc", "pcm_u8", RATE), ("sox", "pcm_s32le", RATE),
    ("avi", "libmp3lame", 48_000), ("avi", "pcm_s16le", RATE), ("asf", "wmav2", 44_100), ("flv", "aac", RATE),
    ("flv", "libmp3lame", 44_100), ("rm", "ac3", 48_000), ("nut", "pcm_s16le", RATE), ("nut", "libopus", 48_000),
    ("matroska", "aac", RATE), ("matroska", "flac", RATE), ("webm", "libopus", 48_000), ("flac", "flac", RATE),
    ("mp3", "libmp3lame", RATE), ("tta", "tta", RATE), ("mxf_opatom", "pcm_s16le", 48_000),
    ("smjpeg", "pcm_s16le", RATE), ("ismv", "aac", RATE), ("adx", "adpcm_adx", RATE),
]  # fmt: skip
SHOWS_A_CUT_PACKET = [
    ("adts", "aac", RATE), ("latm", "aac", RATE), ("mpegts", "aac", RATE), ("mpegts", "ac3", 48_000),
    ("ac3", "ac3", 48_000), ("eac3", "eac3", 48_000), ("mp2", "mp2", 48_000), ("ogg", "libopus", 48_000),
    ("ogg", "flac", RATE),
]  # fmt: skip
CANNOT_BE_READ = [("mp4", "aac", 44_100), ("mov", "alac", 44_100), ("3gp", "aac", RATE)]  # their index comes last
CANNOT_KNOW = [("ircam", "pcm_s16le", RATE)]  # its header states no length, and any byte may be the last
ALL = [*STATES_ITS_LENGTH, *SHOWS_A_CUT_PACKET, *CANNOT_BE_READ, *CANNOT_KNOW]
CHANNELS_8 = [
    ("mp4", "aac", 48_000), ("ogg", "libopus", 48_000), ("wv", "wavpack", 48_000), ("flac", "flac", 48_000),
    ("matroska", "pcm_f32le", 48_000), ("wav", "pcm_s16le", 48_000),
]  # fmt: skip


def sound(rate: int, seconds: float = SECONDS) -> NDArray[np.float32]:
    noise = np.random.default_rng(0).standard_normal(round(seconds * rate)).astype(np.float32)
    return (sine(440, seconds, rate, 0.3) + 0.05 * noise).astype(np.float32)


def encoded(
    container: str,
    codec: str,
    rate: int,
    parts: Sequence[tuple[float, NDArray[np.float32]]],
    *,
    tracks: Sequence[dict[str, str]] = ({},),
    picture: bool = False,
) -> bytes:
    """A file with each part [n] or [channels, n] at its time in seconds, on each of the tracks."""
    file = io.BytesIO()
    layout = LAYOUTS[len(np.atleast_2d(parts[0][1]))]
    with av.open(file, "w", format=container) as output:
        video = output.add_stream("mpeg4", rate=25) if picture else None
        streams = [output.add_stream(codec, rate=rate, layout=layout) for _ in tracks]
        if isinstance(video, av.VideoStream):
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
            output.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
            output.mux(video.encode(None))
        for stream, tags in zip(streams, tracks, strict=True):
            assert isinstance(stream, av.AudioStream)
            stream.metadata.update(tags)
            if codec == "wmav2":
                stream.bit_rate = 64_000
            if not stream.codec_context.is_open:
                stream.codec_context.open()
        for stream in streams:
            assert isinstance(stream, av.AudioStream)
            size = stream.codec_context.frame_size or 1024
            packer = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
            for start_s, part in parts:
                for place in range(0, np.atleast_2d(part).shape[1], size):
                    piece = np.ascontiguousarray(np.atleast_2d(part)[:, place : place + size].T).reshape(1, -1)
                    frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=layout)
                    frame.sample_rate, frame.pts = rate, round(start_s * rate) + place
                    for ready in packer.resample(frame):
                        ready.pts, ready.time_base = frame.pts, Fraction(1, rate)
                        output.mux(stream.encode(ready))
            output.mux(stream.encode(None))
    return file.getvalue()


@cache
def whole(container: str, codec: str, rate: int) -> bytes:
    return encoded(container, codec, rate, [(0.0, sound(rate))])


def heard(data: bytes | io.BytesIO, **options: object) -> tuple[NDArray[np.float32], AudioStream]:
    stream = read_audio(data, **options)  # type: ignore[arg-type]
    return np.concatenate(list(stream)), stream


@pytest.mark.parametrize(("container", "codec", "rate"), ALL)
def test_a_whole_file_is_read_without_a_word(container: str, codec: str, rate: int) -> None:
    samples, stream = heard(whole(container, codec, rate), strict=True)
    assert stream.warnings == ()
    assert stream.start_s == 0
    assert SECONDS - 0.05 < len(samples) / RATE < SECONDS + 0.2  # padding of the last frame


@pytest.mark.parametrize("part", [0.48, 0.9])
@pytest.mark.parametrize(("container", "codec", "rate"), ALL)
def test_a_cut_file_is_read_as_far_as_it_goes(container: str, codec: str, rate: int, part: float) -> None:
    data = whole(container, codec, rate)
    cut = data[: int(part * len(data)) | 1]
    if (container, codec, rate) in CANNOT_BE_READ:
        with pytest.raises(AudioDecodeError):
            heard(cut)
        return
    samples, stream = heard(cut)
    assert 0.2 * SECONDS < len(samples) / RATE < 0.5 + part * SECONDS
    if (container, codec, rate) in CANNOT_KNOW:
        assert stream.warnings == ()
        return
    assert any("damaged: " in warning and " s" in warning for warning in stream.warnings)
    with pytest.raises(AudioDecodeError, match="is damaged: "):
        heard(cut, strict=True)


@pytest.mark.parametrize(("container", "codec", "rate"), CHANNELS_8)
def test_eight_channels_are_averaged(container: str, codec: str, rate: int) -> None:
    channels = np.zeros((8, rate // 2), np.float32)
    channels[1] = sine(440, 0.5, rate, 0.8)
    samples, _ = heard(encoded(container, codec, rate, [(0.0, channels)]))
    middle = samples[RATE // 8 : 3 * RATE // 8]
    assert np.sqrt(2) * middle.std() == pytest.approx(0.1, rel=0.25)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("webm", "libopus"), ("matroska", "pcm_s16le"),
                                                  ("flv", "aac"), ("mpegts", "aac")])  # fmt: skip
def test_a_hole_is_silence_and_what_follows_is_in_its_place(container: str, codec: str) -> None:
    tone = sine(440, 1, 48_000)
    samples, stream = heard(encoded(container, codec, 48_000, [(0.0, tone), (21.0, tone)]), strict=True)
    assert len(samples) / RATE == pytest.approx(22, abs=0.2)
    assert np.abs(samples[2 * RATE : 20 * RATE]).max() < 1e-3
    loud = np.flatnonzero(np.abs(samples) > 0.3)
    assert loud[loud > 5 * RATE][0] / RATE == pytest.approx(21, abs=0.1)
    (warning,) = stream.warnings
    assert "missing in one place, at 1.0" in warning


@pytest.mark.parametrize(("rate", "channels"), [(192_000, 1), (192_000, 8), (48_000, 6)])
def test_what_a_hole_costs_follows_from_its_length_alone(rate: int, channels: int) -> None:
    tone = np.tile(sine(440, 0.5, rate), (channels, 1))
    data = encoded("matroska", "pcm_s16le", rate, [(0.0, tone), (20.5, tone)])
    source = byte_source(io.BytesIO(data), "clip")
    assert sum(block.size for _, block in decoded_blocks(source, Findings("clip"), None)) <= tone.size * 2 + 20 * 48_000
    samples, _ = heard(data)
    assert len(samples) / RATE == pytest.approx(21, abs=0.01)
    loud = np.flatnonzero(np.abs(samples) > 0.3)
    assert loud[loud > 5 * RATE][0] / RATE == pytest.approx(20.5, abs=0.01)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_sound_that_sets_in_after_the_picture_is_late(container: str) -> None:
    data = encoded(container, "aac", 48_000, [(2.5, sine(440, 2, 48_000))], picture=True)
    found = list(spans(data, RATE, window_s=1, hop_s=1))
    assert found[0].start_s == pytest.approx(2.5, abs=0.05)
    assert found[-1].end_s == pytest.approx(4.5, abs=0.1)
    assert found[0].audio.start_s == found[0].start_s


@pytest.mark.parametrize("container", ["mp4", "mpegts", "matroska", "flv"])
def test_a_clock_that_begins_at_an_hour_begins_at_zero(container: str) -> None:
    samples, stream = heard(encoded(container, "aac", 48_000, [(3600.0, sine(440, 1, 48_000))]), strict=True)
    assert len(samples) / RATE == pytest.approx(1, abs=0.1)
    assert (stream.start_s, stream.warnings) == (0.0, ())


def test_of_several_tracks_one_is_taken_and_told() -> None:
    tags = ({"language": "eng", "title": "speech"}, {"language": "deu", "title": "Sprache"})
    data = encoded("matroska", "flac", 48_000, [(0.0, sine(440, 0.5, 48_000))], tracks=tags)
    _, stream = heard(data)
    assert stream.track == 1
    assert all(word in stream.warnings[0] for word in ("2 audio tracks", "eng", "deu", "Sprache", "track 1 is taken"))
    for asked, track in ((2, 2), ("deu", 2), ("de", 2), ("ENG", 1)):
        _, stream = heard(data, track=asked)
        assert (stream.track, stream.warnings) == (track, ())
    for asked in (0, 3, -1, "fra", "", True):
        with pytest.raises(AudioError, match=r"has no audio track .*; it has 1: eng, speech"):
            heard(data, track=asked)


@pytest.mark.parametrize("stated", ["ger", "deu"])
@pytest.mark.parametrize("asked", ["de", "ger", "deu", "DE", "de-AT", "de_DE", "German", "d"])
def test_a_language_is_found_by_each_of_its_codes(stated: str, asked: str) -> None:
    tags = ({"language": "den"}, {"language": "eng"}, {"language": stated}, {"language": "spa"})
    data = encoded("matroska", "flac", 48_000, [(0.0, sine(440, 0.5, 48_000))], tracks=tags)
    assert heard(data, track=asked)[1].track == (3 if len(asked) > 1 else 1)
    assert heard(data, track="es")[1].track == 4  # of which no letter but the first is in "spa"
    with pytest.raises(AudioError, match="has no audio track"):
        heard(data, track="fr")


def test_the_language_of_a_place_is_found_before_that_of_another() -> None:
    tags = ({"language": "pt-PT"}, {"language": "pt-BR"}, {"language": "odd"})
    data = encoded("matroska", "flac", 48_000, [(0.0, sine(440, 0.5, 48_000))], tracks=tags)
    found = {
        asked: heard(data, track=asked)[1].track for asked in ("pt_br", "por-BR", "pt", "pt-AO", "Portuguese", "odd")
    }
    assert found == {"pt_br": 2, "por-BR": 2, "pt": 1, "pt-AO": 1, "Portuguese": 1, "odd": 3}


def test_a_codec_without_a_decoder_is_named() -> None:
    fmt = struct.pack("<HHIIHH", 0x9999, 1, RATE, 2 * RATE, 2, 16)
    data = b"RIFF" + struct.pack("<I", 3236) + b"WAVEfmt " + struct.pack("<I", 16) + fmt
    with pytest.raises(AudioDecodeError, match=r"no decoder for: .*0x9999"):
        heard(data + b"data" + struct.pack("<I", 3200) + bytes(3200))


@pytest.mark.parametrize(("valid", "bits"), [(24, 32), (20, 32), (16, 32), (20, 24), (12, 16)])
def test_fewer_valid_bits_than_a_sample_takes(valid: int, bits: int) -> None:
    tone = sine(440, 0.2, RATE)
    steps = np.round(tone * 2.0 ** (valid - 1)).astype(np.int64) << bits - valid
    body = steps.astype("<i4").view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()
    size = bits // 8
    fmt = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, size * RATE, size, bits, 22, valid, 4)
    fmt += bytes.fromhex("0100000000001000800000aa00389b71")
    riff = b"WAVEfmt " + struct.pack("<I", 40) + fmt + b"data" + struct.pack("<I", len(body)) + body
    samples, stream = heard(b"RIFF" + struct.pack("<I", len(riff)) + riff)
    assert stream.warnings == ()
    np.testing.assert_allclose(samples, tone, atol=2.0 ** (2 - valid))


@pytest.mark.parametrize("container", ["ogg", "mpegts"])
def test_a_track_that_another_one_follows_is_said_to_end(container: str) -> None:
    codec = {"ogg": "flac", "mpegts": "aac"}[container]
    first = encoded(container, codec, RATE, [(0.0, sound(RATE, 1))])
    second = encoded(container, codec, 22_050, [(0.0, sound(22_050, 1))])
    if container == "mpegts":  # on another PID
        second = b"".join(
            packet[:1] + struct.pack(">H", struct.unpack(">H", packet[1:3])[0] + 7) + packet[3:]
            if packet[1] & 0x1F == 1 and packet[2] == 0
            else packet
            for packet in (second[place : place + 188] for place in range(0, len(second), 188))
        )
    samples, stream = heard(first + second)
    if len(samples) < 1.5 * RATE:
        assert any(re.search(r"(ends|off) at 1\.\d\d s: ", warning) for warning in stream.warnings)


def caf(labels: Sequence[int]) -> bytes:
    """Noise with a channel for each label, which are listed one by one."""
    count = len(labels)
    desc = struct.pack(">d4sIIIII", RATE, b"lpcm", 0, 2 * count, 1, count, 16)
    chan = struct.pack(">III", 0, 0, count) + b"".join(struct.pack(">I16x", label) for label in labels)
    data = bytes(4) + np.random.default_rng(0).bytes(2 * count * RATE)
    chunks = ((b"desc", desc), (b"chan", chan), (b"data", data))
    return b"caff\0\1\0\0" + b"".join(name + struct.pack(">q", len(body)) + body for name, body in chunks)


def test_channels_that_are_listed_one_by_one_do_not_end_the_process(tmp_path: Path) -> None:
    layouts = ([2, 1], [3, 1, 2], [400], [200, 201, 1], [1, 1, 1, 1], [33, 5, 6, 4, 3, 2, 1, 39, 65537])
    paths = []
    for place, labels in enumerate(layouts):
        paths.append(tmp_path / f"{place}.caf")
        paths[-1].write_bytes(caf(labels))
    code = "import sys; from dasheng_edge.runtime.audio.read import read_audio\n"
    code += "print(*(sum(map(len, read_audio(path))) for path in 3 * sys.argv[1:]))"
    child = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=True)
    assert child.stdout.split() == [str(RATE)] * 3 * len(layouts)


@pytest.mark.parametrize(("container", "codec", "rate"), [
    ("ac3", "ac3", 48_000), ("eac3", "eac3", 48_000), ("mp2", "mp2", 48_000), ("mpegts", "mp2", 48_000),
    ("flv", "aac", RATE), ("adx", "adpcm_adx", RATE), ("nut", "pcm_s16le", RATE), ("nut", "aac", RATE),
    ("mpegts", "aac", RATE),
])  # fmt: skip
@pytest.mark.parametrize("tail", [
    b"TAG" + bytes(125), b"<html>an error of the server</html>\n", b"\xa7" * 100, b"\xa7" * 188, bytes(5000),
    bytes(200_000),
])  # fmt: skip
def test_a_tail_behind_the_audio_is_no_damage(container: str, codec: str, rate: int, tail: bytes) -> None:
    content = encoded(container, codec, rate, [(0.0, sound(rate))])
    whole, with_tail = read_audio(content), read_audio(content + tail)
    assert sum(map(len, whole)) == sum(map(len, with_tail))
    assert not with_tail.warnings


@pytest.mark.parametrize("junk", [bytes(200_000), b"\xa7" * 1_000_001])
def test_transport_streams_that_go_on_behind_junk_are_told_to_have_lost_something(junk: bytes) -> None:
    content = encoded("mpegts", "mp2", 48_000, [(0.0, sound(48_000))])
    half = len(content) // 376 * 188
    stream = read_audio(content[:half] + junk + content[half:])
    assert sum(map(len, stream)) / RATE == pytest.approx(len(sound(48_000)) / 48_000, abs=0.2)
    assert len(stream.warnings) == 1
    assert "other tracks" not in stream.warnings[0]


@pytest.mark.parametrize(("container", "codec"), [("flv", "aac"), ("mp4", "aac"), ("tta", "tta"), ("voc", "pcm_u8")])
def test_a_second_file_that_is_joined_is_left_out_and_said(container: str, codec: str) -> None:
    content = encoded(container, codec, RATE, [(0.0, sound(RATE))])
    stream = read_audio(content + content)
    assert sum(map(len, stream)) / RATE == pytest.approx(SECONDS, abs=0.2)
    assert "another file" in " ".join(stream.warnings)


def test_a_track_that_sets_in_late_is_not_held_against_the_picture() -> None:
    content = encoded("matroska", "libopus", 48_000, [(20.0, sound(48_000))], picture=True)
    stream = read_audio(content)
    assert sum(map(len, stream)) / RATE == pytest.approx(SECONDS, abs=0.1)
    assert stream.start_s == pytest.approx(20.0, abs=0.1)
    assert not stream.warnings


def test_ogg_that_was_recorded_from_the_middle_of_a_broadcast() -> None:
    stream = read_audio(encoded("ogg", "libopus", 48_000, [(3600.0, sound(48_000))]))
    assert sum(map(len, stream)) / RATE == pytest.approx(SECONDS, abs=0.1)
    assert not stream.warnings


class _Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize(("container", "codec", "rate"), [
    ("ogg", "libopus", 48_000), ("ogg", "flac", RATE), ("nut", "pcm_s16le", RATE), ("voc", "pcm_u8", RATE),
    ("flv", "aac", RATE), ("mpegts", "aac", RATE), ("wav", "pcm_s16le", RATE),
])  # fmt: skip
def test_a_pipe_is_judged_as_the_file_is(container: str, codec: str, rate: int) -> None:
    content = whole(container, codec, rate)
    _, stream = heard(_Pipe(content))
    assert not stream.warnings
    _, stream = heard(_Pipe(content[: len(content) // 2 | 1]))
    assert any("damaged: " in warning for warning in stream.warnings)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x20ftypisom", "MP4"), (b"\0\0\0\x14ftypqt  ", "MOV"), (b"\x1a\x45\xdf\xa3", "MKV"), (b"OggS", "Ogg"),
        (b"RIFF\xff\0\0\0WAVEfmt ", "WAV"), (b"RIFF\xff\0\0\0AVI LIST", "AVI"), (b"fLaC", "FLAC"), (b"caff", "CAF"),
        (b"FORM\0\0\0\0AIFF", "AIFF"),
    ],
)  # fmt: skip
def test_a_container_that_is_cut_is_told_from_what_is_no_audio(head: bytes, kind: str) -> None:
    with pytest.raises(AudioDecodeError) as caught:
        list(read_audio(head))
    assert kind in str(caught.value)
    assert "incomplete or damaged" in str(caught.value)
