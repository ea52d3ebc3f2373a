"""Sizes that files state, truly or as writers leave them."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from dasheng_edge.runtime.audio.read import read_audio
from dasheng_edge.runtime.errors import AudioDecodeError
from tests.fixtures.audio_files import sine

RATE = 16_000
BODY = (sine(440, 2, RATE) * 32767).astype("<i2").tobytes()
FMT = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)


def wav(stated: int, *, riff: int | None = None, before: bytes = b"", after: bytes = b"", body: bytes = BODY) -> bytes:
    rest = b"WAVE" + before + FMT + b"data" + struct.pack("<I", stated & 0xFFFFFFFF) + body + after
    return b"RIFF" + struct.pack("<I", (len(rest) if riff is None else riff) & 0xFFFFFFFF) + rest


def rf64(stated: int, body: bytes, *, ds64: int | None = None) -> bytes:
    sizes = (stated + 72, stated, stated // 2) if ds64 is None else (ds64, ds64, ds64)
    chunk = b"ds64" + struct.pack("<IQQQI", 28, *sizes, 0)
    return b"RF64\xff\xff\xff\xffWAVE" + chunk + FMT + b"data\xff\xff\xff\xff" + body


WHOLE = {
    "exact": wav(len(BODY)),
    **{f"+{more}": wav(len(BODY) + more, riff=len(BODY) + more) for more in (1, 8, 22, 36, 44)},
    **{f"{size:#x}": wav(size, riff=size + 36) for size in (
        0, 0x7FFFFFFF, 0x7FFFFFDB, 0x80000000, 0xFFFFFFFF, 0xFFFFFFD3, 2_000_000_000, 1_000_000_000, 2_000_000_036,
    )},
    "LIST before": wav(len(BODY), before=b"LIST" + struct.pack("<I", 8) + b"INFOxxxx"),
    "junk behind": wav(len(BODY), after=b"TAG and more" * 20),
    "id3 behind": wav(len(BODY), after=b"id3 " + struct.pack("<I", 20) + bytes(20)),
    "RF64": rf64(len(BODY), BODY),
    **{f"RF64 of {size}": rf64(len(BODY), BODY, ds64=size) for size in (0, 2**64 - 1)},
    "BW64 of 0": rf64(len(BODY), BODY, ds64=0).replace(b"RF64", b"BW64"),
}  # fmt: skip
CUT = {
    "half": wav(2 * len(BODY)),
    "a tenth": wav(len(BODY) * 10 // 9),
    "LIST before": wav(2 * len(BODY), before=b"LIST" + struct.pack("<I", 8) + b"INFOxxxx"),
    "almost 2 GB": wav(1_900_000_123),
    "RF64": rf64(2 * len(BODY), BODY),
    "RF64 of 5 GB": rf64(5 << 30, BODY),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_wav_that_is_whole(name: str) -> None:
    stream = read_audio(WHOLE[name], strict=True)
    assert sum(map(len, stream)) / RATE == pytest.approx(2, abs=0.01)
    assert stream.warnings == ()


@pytest.mark.parametrize("name", CUT)
def test_a_wav_that_is_cut(name: str) -> None:
    stream = read_audio(CUT[name])
    assert sum(map(len, stream)) / RATE == pytest.approx(2, abs=0.01)
    (warning,) = stream.warnings
    assert "breaks off at 2.00 s" in warning
    assert "bytes are there" in warning
    with pytest.raises(AudioDecodeError):
        list(read_audio(CUT[name], strict=True))


def chunks_of(container: str, pieces: list[bytes]) -> bytes:
    if container == "caf":
        desc = struct.pack(">d4sIIIII", RATE, b"lpcm", 2, 2, 1, 1, 16)
        head = b"caff\0\1\0\0" + b"desc" + struct.pack(">q", len(desc)) + desc
        return head + b"".join(b"data" + struct.pack(">qI", len(piece) + 4, 0) + piece for piece in pieces)
    if container == "w64":
        rest = bytes.fromhex("f3acd3118cd100c04f8edb8a")
        chunks = [b"fmt " + rest + struct.pack("<Q", 40) + FMT[8:]]
        chunks += [b"data" + rest + struct.pack("<Q", len(piece) + 24) + piece for piece in pieces]
        body = b"wave" + rest + b"".join(chunks)
        return bytes.fromhex("726966662e91cf11a5d628db04c10000") + struct.pack("<Q", len(body) + 24) + body
    after = b"".join(b"LIST\4\0\0\0INFO" + b"data" + struct.pack("<I", len(piece)) + piece for piece in pieces[1:])
    return wav(len(pieces[0]), body=pieces[0], after=after)


@pytest.mark.parametrize("container", ["wav", "w64"])
@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (1, 3, 2), (1, 0), (1, 0, 2), (1, 2, 0), (1, 0, 0)])
def test_samples_in_several_chunks_are_all_read(container: str, sizes: tuple[int, ...]) -> None:
    samples = np.frombuffer(BODY, "<i2")
    pieces = [samples[: size * 1000] for size in sizes]
    content = chunks_of(container, [piece.tobytes() for piece in pieces])
    assert np.array_equal(np.concatenate(list(read_audio(content, strict=True))) * 2**15, np.concatenate(pieces))
    if not sizes[-1]:
        return
    cut = read_audio(content[:-500])
    assert sum(map(len, cut)) == sum(sizes) * 1000 - 250
    assert "bytes are there" in " ".join(cut.warnings)


def test_several_chunks_of_a_caf_are_said() -> None:
    stream = read_audio(chunks_of("caf", [BODY, BODY]))
    assert sum(map(len, stream)) == 2 * RATE
    assert "several chunks" in " ".join(stream.warnings)


def test_a_second_wav_behind_the_first_is_left_out_and_said() -> None:
    stream = read_audio(wav(len(BODY)) * 2)
    assert len(np.concatenate(list(stream))) == 2 * RATE
    (warning,) = stream.warnings
    assert f"{len(BODY) + 44:,} bytes behind it are another file" in warning
