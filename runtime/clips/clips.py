"""Clips to calibrate on or to compare with, from a manifest in JSON Lines, a folder of audio files, or one file.

A line of a manifest is an object: `audio` (a path, relative to the manifest; NeMo's `audio_filepath`, and `file`, are
taken too), and what is known about the clip, all of it optional: `id` (the path where there is none), `offset` and
`duration` in seconds where it is a part of the file, `prompt`, `references` (or one `text`), `events` (labels that a
caption must name), `transcript` (what is said). What is known decides what the answers are scored by. Manifests of NeMo
and Lhotse are taken as they are: see `clip_rows`.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dasheng_edge.runtime.audio.read import Waveform, read_audio
from dasheng_edge.runtime.bundle.bundle import sha256_of
from dasheng_edge.runtime.errors import ClipsError
from dasheng_edge.runtime.names import printable

from .clip_rows import ClipRow, named_row, read_row

AUDIO_SUFFIXES = frozenset({
    ".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus", ".wma", ".aiff", ".aif", ".au", ".mp4", ".mkv", ".webm",
    ".mov", ".avi",
})  # fmt: skip
MANIFEST_SUFFIXES = (".jsonl", ".ndjson", ".json")
MAX_MANIFEST_BYTES = 1 << 28  # unpacked: a million clips; a compressed file of 300 kB can hold as much


@dataclass(frozen=True)
class Clip:
    """A clip and what is known about it."""

    id: str
    path: Path
    offset_s: float = 0.0
    duration_s: float | None = None  # None: to the end
    prompt: str | None = None  # None: the bundle's
    references: tuple[str, ...] = ()
    events: frozenset[str] | None = None  # None: not known
    transcript: str | None = None
    error: ClipsError | None = None  # why there is nothing to read

    @property
    def span_s(self) -> tuple[float, float]:
        """Where in the file it begins and ends, in seconds; infinity is the file's end."""
        return self.offset_s, float("inf") if self.duration_s is None else self.offset_s + self.duration_s

    def blocks(self, sample_rate_hz: int, warn: Callable[[str], object] = str) -> Iterator[Waveform]:
        """The audio, mono float32, a block at a time; `warn` is told what `read_audio` warns of.

        Raises:
            AudioError: it cannot be read, or holds nothing where the clip should be.
            ClipsError: its row of the manifest is wrong.
        """
        if self.error is not None:
            raise self.error
        stream = read_audio(self.path, sample_rate_hz=sample_rate_hz)
        yield from stream.part(self.offset_s, self.duration_s)
        for warning in stream.warnings:
            warn(f"clip {self.id}: {warning}")

    def read(self, sample_rate_hz: int, warn: Callable[[str], object] = str) -> Waveform:
        """All of it, float32 [samples]; arguments and errors as in `blocks`."""
        return np.concatenate(list(self.blocks(sample_rate_hz, warn)))


@dataclass(frozen=True)
class ClipSet:
    """Clips from one place; at least one of them has no error."""

    name: str  # of the manifest, folder or file, without its path
    clips: tuple[Clip, ...]

    def sha256(self) -> str:
        """Over what is known about the clips, and the content of their files, read a block at a time.

        Of a file that cannot be read, that counts.
        """
        digest = hashlib.sha256()
        for clip in self.clips:
            facts = [
                clip.id, clip.offset_s, clip.duration_s, clip.prompt, clip.references,
                sorted(clip.events) if clip.events is not None else None, clip.transcript, self._files.get(clip.path),
            ]  # fmt: skip
            digest.update(json.dumps(facts).encode() + b"\n")
        return digest.hexdigest()

    @cached_property
    def _files(self) -> Mapping[Path, str]:
        """SHA-256 of each file that can be read, which is done once, however many clips are cut from it."""
        found: dict[Path, str] = {}
        for path in dict.fromkeys(clip.path for clip in self.clips if clip.error is None):
            with suppress(OSError):  # told where it is heard
                found[path] = sha256_of(path)
        return found

    def shared_with(self, other: ClipSet) -> int:
        """How many clips hold audio that a clip of `other` holds too: parts that overlap, of files of one content."""
        parts: dict[str, list[tuple[float, float]]] = {}
        for clip in other.clips:
            if clip.path in other._files:
                parts.setdefault(other._files[clip.path], []).append(clip.span_s)
        return sum(
            any(clip.span_s[0] < end and start < clip.span_s[1] for start, end in parts.get(self._files[clip.path], ()))
            for clip in self.clips
            if clip.path in self._files
        )


def find_clips(path: Path) -> ClipSet:
    r"""Clips of a manifest, of a folder with audio files in it, at any depth, or of one audio file.

    In names that are no UTF-8, bytes that are wrong are shown as in `\xff`.

    Raises:
        ClipsError: there is nothing there, or the manifest is wrong.
    """
    if path.is_dir():
        found = sorted(file for file in files_below(path) if is_audio(file.relative_to(path)) and is_file(file))
        if not found:
            raise ClipsError(
                f"there is no audio file in {path}; expected some that end in {', '.join(sorted(AUDIO_SUFFIXES))}"
            )
        taken: set[str] = set()
        clips = tuple(Clip(_free(file.relative_to(path).as_posix(), taken), file) for file in found)
        return ClipSet(printable(path.resolve().name), clips)
    if path.name.lower().removesuffix(".gz").endswith(MANIFEST_SUFFIXES):
        return read_clips(path)
    if not is_file(path):
        raise ClipsError(f"there is nothing at {path}; expected a manifest (.jsonl), a folder or an audio file")
    return ClipSet(printable(path.name), (Clip(printable(path.name), path),))


def files_below(folder: Path, unreadable: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """All files of a folder and of those in it, but hidden folders, through links to folders too.

    Each folder is taken once, however many links lead to it, and by its own name where it lies in `folder`: links are
    followed when all else was seen, and a loop ends. `unreadable` is told of folders that cannot be read.
    """
    seen: set[str] = set()
    places = [folder]
    while places:
        links: list[Path] = []
        for start in places:
            for place, folders, files in os.walk(start, onerror=unreadable):  # goes into no link but `start`
                real = os.path.realpath(place)
                folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
                if real not in seen:
                    yield from (Path(place, name) for name in sorted(files))
                    links += [Path(place, name) for name in folders if Path(place, name).is_symlink()]
                seen.add(real)
        places = links


def read_clips(path: Path) -> ClipSet:
    """Clips of a manifest; one whose line is wrong, names no file or repeats an id has an `error` that names the line.

    Raises:
        ClipsError: it cannot be read, or no line of it can be used, for the reason of the first.
    """
    try:
        content = _content(path)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise ClipsError(f"cannot read the clips of {path}: {error}; expected JSON Lines in UTF-8") from error
    # Not splitlines: texts may hold U+2028 and U+0085.
    lines = content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    rows = [(number, _row(path, number, line)) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ClipsError(f"{path} lists no clip; expected a JSON object with the key 'audio' on each line")
    given: dict[str, int] = {}
    for number, (row, _) in rows:
        if row.id is not None:
            given.setdefault(row.id, number)
    taken = set(given)
    clips = tuple(_clip(path, number, given, taken, *row) for number, row in rows)
    if all(clip.error for clip in clips):
        raise clips[0].error or AssertionError
    return ClipSet(printable(path.name), clips)


def _row(manifest: Path, number: int, line: bytes) -> tuple[ClipRow, ClipsError | None]:
    """A line, or what can be told of one that is wrong, and why it is."""
    where = f"{manifest}, line {number}"
    try:
        text = line.decode()
    except ValueError as error:
        wrong = ClipsError(f"cannot read the clips of {where}: {error}; expected JSON Lines in UTF-8")
        return named_row(line.decode(errors="replace")), wrong
    try:
        return read_row(where, text), None
    except ClipsError as error:
        return named_row(text), error


def _content(path: Path) -> bytes:
    """Of a manifest, unpacked if its name ends in .gz."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
    if len(content) > MAX_MANIFEST_BYTES:
        raise ValueError(f"it holds more than {MAX_MANIFEST_BYTES >> 20} MiB; split it")
    return content


def _clip(
    manifest: Path, number: int, given: Mapping[str, int], taken: set[str], row: ClipRow, error: ClipsError | None
) -> Clip:
    """The clip of a row; `given` are ids and their lines, `taken` all that there are, and gets this one's."""
    file, name = manifest.parent / row.audio, row.id
    where = f"{manifest.name}, line {number}"
    if name is not None and given[name] != number:
        error = error or ClipsError(
            f"{manifest}, line {number}: the id {name!r} is there twice; give each clip its own, or none (line "
            f"{given[name]} has it too)"
        )
        name = _free(where, taken)
    elif name is None and row.audio:
        name = _free(file.name if Path(row.audio).is_absolute() else row.audio, taken)  # reports show it, and travel
    if error is None and not is_file(file):
        error = ClipsError(f"{manifest}, line {number}: there is no file {file}; paths are relative to the manifest")
    if error is not None:
        return Clip(name or _free(where, taken), file, error=error)
    references = row.references if row.text is None else (row.text, *row.references)
    events = None if row.events is None else frozenset(row.events)
    return Clip(name or "", file, row.offset or 0.0, row.duration, row.prompt, references, events, row.transcript)


def _free(stem: str, taken: set[str]) -> str:
    """A printable id that is not taken yet, and now is: a number is put behind one that is."""
    shown = printable(stem)
    names = (f"{shown} ({again})" if again > 1 else shown for again in itertools.count(1))
    name = next(free for free in names if free not in taken)
    taken.add(name)
    return name


def is_audio(path: Path) -> bool:
    """By its ending; hidden files (macOS leaves `._x.wav` beside `x.wav`) and those in hidden folders are not."""
    return path.suffix.lower() in AUDIO_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long or with characters that no name has
        return False
