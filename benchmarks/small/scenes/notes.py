"""Notes of real instruments, recorded one by one: out of a SoundFont, and out of patches for the Gravis Ultrasound."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from benchmarks.micro.scenes.instruments import melody
from benchmarks.micro.scenes.signals import RATE, Rng, Samples, ramped, stamp
from benchmarks.small.scenes.packages import sounds

PAT_HEADER, PAT_SAMPLE = 239, 96  # bytes
LOOPED, SIXTEEN_BITS, UNSIGNED = 4, 1, 2  # modes of a patch


@dataclass(frozen=True)
class Note:
    """float32 [samples] at `rate_hz`; a held note goes on with the part from `loop` to the end, 0 if there is none."""

    samples: Samples
    rate_hz: float
    loop: int = 0


def patch_notes(data: bytes) -> Iterator[Note]:
    """The notes of a patch: a header of each, then its samples."""
    at = PAT_HEADER
    while at + PAT_SAMPLE <= len(data):
        size, start, end = struct.unpack_from("<III", data, at + 8)
        (rate,) = struct.unpack_from("<H", data, at + 20)
        modes = data[at + 55]
        raw = data[at + PAT_SAMPLE : at + PAT_SAMPLE + size]
        at += PAT_SAMPLE + size
        if modes & SIXTEEN_BITS:
            values, start, end = np.frombuffer(raw[: size // 2 * 2], "<i2").astype(np.int32), start // 2, end // 2
            values = values - 32_768 * np.sign(values) if modes & UNSIGNED else values
        else:
            values = np.frombuffer(raw, np.uint8 if modes & UNSIGNED else np.int8).astype(np.int32)
            values = (values - 128 if modes & UNSIGNED else values) * 256
        loop = start if modes & LOOPED and end - start > 1 else 0
        samples = np.asarray(values[: end if loop else None], np.float32) / 32_768
        if len(samples) > 1:
            yield Note(np.asarray(samples, np.float32), rate, loop)


def soundfont_notes(data: bytes) -> dict[str, Note]:
    """The notes of a SoundFont by name, from its sample headers; how presets shape them is left out."""
    chunks = dict(_chunks(data, 12, len(data)))
    pcm = np.frombuffer(chunks["smpl"], "<i2")
    out = {}
    headers = chunks["shdr"]
    for at in range(0, len(headers) - 46, 46):  # the last is a terminator
        name, start, end, loop, stop, rate = struct.unpack_from("<20sIIIII", headers, at)
        looped = loop - start > 8 and stop - loop > 8
        samples = np.asarray(pcm[start : stop if looped else end], np.float32) / np.float32(32_768)
        out[name.split(b"\0")[0].decode("latin-1")] = Note(samples, rate, loop - start if looped else 0)
    return out


def _chunks(data: bytes, at: int, end: int) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of RIFF chunks, those inside lists too."""
    while at + 8 <= end:
        name, (size,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        if name == b"LIST":
            yield from _chunks(data, at + 12, at + 8 + size)
        else:
            yield name.decode("latin-1"), data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


@cache
def soundfont() -> dict[str, Note]:
    """TimGM6mb's notes."""
    return soundfont_notes(sounds("timgm6mb-soundfont", "**/*.sf2")[0].read_bytes())


@cache
def instrument(name: str) -> tuple[Note, ...]:
    """Notes of a patch, as "000_Acoustic_Grand_Piano.pat", or those of the SoundFont whose names begin so."""
    if name.endswith(".pat"):
        return tuple(patch_notes(sounds("freepats", f"**/{name}")[0].read_bytes()))
    notes = tuple(note for title, note in soundfont().items() if title.startswith(name))
    if not notes:
        raise ValueError(f"the SoundFont has no note {name!r}: {', '.join(soundfont())}")
    return notes


def sounded(note: Note, ratio: float, n: int) -> Samples:
    """`n` samples of a note at `ratio` times its pitch, at 16 kHz, looped as long as it takes; linear interpolation."""
    place, last = np.arange(n) * (note.rate_hz / RATE * ratio), len(note.samples) - 1
    if note.loop:
        place = np.where(place < last, place, note.loop + (place - note.loop) % (last - note.loop))
    else:
        place = place[place < last]
    left = place.astype(np.int64)
    part = (place - left).astype(np.float32)
    return np.asarray(note.samples[left] * (1 - part) + note.samples[left + 1] * part, np.float32)


def played(rng: Rng, n: int, name: str, note_s: tuple[float, float]) -> Samples:
    """A melody around one of an instrument's notes, at most half an octave away, [n]; now and then as chords."""
    notes, out, at = instrument(name), np.zeros(n, np.float32), 0
    note = notes[int(rng.integers(len(notes)))]
    slow, gap = rng.uniform(*note_s), rng.uniform(0.8, 1.05)
    chords = rng.uniform() < 0.25
    for pitch in melody(rng, 2**-0.7, int(n / RATE / note_s[0] * 4) + 4):
        size = max(int(slow * rng.choice([0.5, 1.0, 1.0, 1.5]) * RATE), 400)
        for ratio in (1.0, 1.26, 1.5)[: 3 if chords else 1]:
            stamp(out, at, ramped(sounded(note, pitch * ratio, min(size, n)), 0.005, 0.06))
        at += int(size * gap)
        if at >= n:
            break
    return out


def struck(rng: Rng, n: int, name: str, period_s: tuple[float, float]) -> Samples:
    """Strokes of one of the recordings, [n], at about their own pitch."""
    notes = instrument(name)
    note, out, at = notes[int(rng.integers(len(notes)))], np.zeros(n, np.float32), 0
    period, ratio = rng.uniform(*period_s), rng.uniform(0.8, 1.25)
    while at < n:
        size = min(n - at, int(4 * RATE))
        stamp(out, at, ramped(sounded(note, ratio, size), 0.001, 0.05) * np.float32(rng.uniform(0.6, 1.0)))
        at += int(period * rng.uniform(0.9, 1.1) * RATE)
    return out


def beaten(rng: Rng, n: int, kick: str, snare: str, hat: str) -> Samples:
    """A beat of three recorded drums, [n]."""
    out, eighth = np.zeros(n, np.float32), int(30 / rng.uniform(80, 170) * RATE)
    kit = [instrument(name)[0] for name in (kick, snare, hat)]
    ratio = rng.uniform(0.85, 1.2)
    kicks = {0, 4} | ({int(rng.integers(8))} if rng.uniform() < 0.6 else set())
    for index, at in enumerate(range(0, n, eighth)):
        beat = index % 8
        for drum, plays, level in zip(
            kit, (beat in kicks, beat in {2, 6}, rng.uniform() < 0.9), (1.2, 0.9, 0.4), strict=True
        ):
            if plays:
                stamp(out, at, sounded(drum, ratio, min(n - at, RATE)) * np.float32(level))
    return out
