"""Files of other programs are read as they are written, and every synthesised kind sounds."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from benchmarks.micro.scenes.signals import RATE, Maker
from benchmarks.micro.scenes.sounds import SPEECH
from benchmarks.small.scenes import new_sounds
from benchmarks.small.scenes.kinds import KINDS
from benchmarks.small.scenes.notes import Note, patch_notes, sounded, soundfont_notes
from benchmarks.small.scenes.packages import qt_resources
from benchmarks.small.scenes.recordings import repeated

NEW = sorted(
    {maker.__name__: maker for kind in KINDS.values() for maker in kind.makers if hasattr(maker, "__name__")}.items()
)
TONE = np.asarray(np.round(8_000 * np.sin(2 * np.pi * 441 * np.arange(4_410) / 44_100)), "<i2")  # 441 Hz


@pytest.mark.parametrize(("name", "maker"), [(name, maker) for name, maker in NEW if hasattr(new_sounds, name)])
@pytest.mark.parametrize("seconds", [0.7, 3.0])
def test_every_new_sound_is_finite_audible_and_follows_its_seed(name: str, maker: Maker, seconds: float) -> None:
    n = int(seconds * RATE)
    first, again, other = (maker(np.random.default_rng(seed), n) for seed in (1, 1, 2))
    assert first.dtype == np.float32
    assert len(first) == n
    assert np.isfinite(first).all()
    assert first.std() > 1e-3
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_kind_but_speech_has_a_maker_and_a_phrase() -> None:
    for name, kind in KINDS.items():
        assert (bool(kind.makers) and bool(kind.phrases)) == (name != SPEECH)


def resource_file(version: int, content: bytes) -> bytes:
    """A tree of a root, a folder `a` and two files in it, of which the second is compressed."""
    names, offsets = b"", []
    for name in ("a", "b.wav", "c.ogg"):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    time = b"" if version < 2 else bytes(8)
    packed = struct.pack(">I", len(content)) + zlib.compress(content)
    data = struct.pack(">I", len(content)) + content + struct.pack(">I", len(packed)) + packed
    nodes = [
        struct.pack(">IHII", 0, 2, 1, 1),
        struct.pack(">IHII", offsets[0], 2, 2, 2),
        struct.pack(">IHHHI", offsets[1], 0, 0, 0, 0),
        struct.pack(">IHHHI", offsets[2], 1, 0, 0, 4 + len(content)),
    ]
    tree = b"".join(node + time for node in nodes)
    header = struct.pack(">4s4I", b"qres", version, 20, 20 + len(tree), 20 + len(tree) + len(data))
    return header + tree + data + names


@pytest.mark.parametrize("version", [1, 2])
def test_qt_resources_come_with_their_paths(version: int) -> None:
    assert dict(qt_resources(resource_file(version, b"sound"))) == {"a/b.wav": b"sound", "a/c.ogg": b"sound"}


def test_what_is_no_qt_resource_file_is_refused() -> None:
    with pytest.raises(ValueError, match="begins with 'qres'"):
        list(qt_resources(bytes(40)))


def patch(modes: int, raw: bytes) -> bytes:
    header = struct.pack("<7sBIIIHIII", b"tone", 0, len(raw), len(raw) // 2, len(raw), 44_100, 0, 0, 441_000)
    return bytes(239) + header.ljust(55, b"\0") + bytes([modes]) + bytes(40) + raw


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("looped", [False, True])
def test_patches_of_every_mode_hold_the_tone(unsigned: bool, bits: int, looped: bool) -> None:
    values = TONE.astype(np.int32) // (256 if bits == 8 else 1) + (2 ** (bits - 1) if unsigned else 0)
    raw = values.astype(np.uint8 if bits == 8 else np.uint16).tobytes()
    (note,) = patch_notes(patch((bits == 16) | (2 if unsigned else 0) | (4 if looped else 0), raw))
    assert note.rate_hz == 44_100
    assert note.loop == (len(TONE) // 2 if looped else 0)
    np.testing.assert_allclose(note.samples, TONE / 32_768, atol=1 / 100)


def test_notes_of_a_soundfont_and_their_loops() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    tone = struct.pack("<20sIIIIIBbHH", b"Tone", 0, len(TONE), 1_000, 3_000, 44_100, 69, 0, 0, 1)
    plain = struct.pack("<20sIIIIIBbHH", b"Plain", 10, 50, 10, 10, 22_050, 60, 0, 0, 1)
    data = chunk(b"LIST", b"sdta" + chunk(b"smpl", TONE.tobytes()))
    data += chunk(b"LIST", b"pdta" + chunk(b"shdr", tone + plain + bytes(46)))
    notes = soundfont_notes(b"RIFF" + struct.pack("<I", len(data) + 4) + b"sfbk" + data)
    assert list(notes) == ["Tone", "Plain"]
    assert (notes["Tone"].loop, len(notes["Tone"].samples), notes["Plain"].loop) == (1_000, 3_000, 0)
    np.testing.assert_allclose(notes["Plain"].samples, TONE[10:50] / 32_768)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5])
def test_a_held_note_keeps_its_pitch(ratio: float) -> None:
    note = Note(np.asarray(TONE[:3_001] / 32_768, np.float32), 44_100, 1_000)  # 20 whole periods
    heard = sounded(note, ratio, RATE)
    peak = np.abs(np.fft.rfft(heard * np.hanning(RATE))).argmax()  # bins of 1 Hz
    assert peak == pytest.approx(441 * ratio, abs=2)


def test_short_recordings_are_repeated_and_long_ones_cut() -> None:
    rng = np.random.default_rng(0)
    assert len(repeated(rng, np.ones(50_000, np.float32), 20_000)) == 20_000
    short = repeated(rng, np.ones(4_000, np.float32), 40_000)
    assert len(short) == 40_000
    assert np.diff((short > 0).astype(int)).clip(0).sum() >= 2
