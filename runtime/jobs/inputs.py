"""What a job goes over: files, folders, globs, lists of them, and manifests -> inputs, one by one."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from dasheng_edge.runtime.audio.read import AudioStream, read_audio
from dasheng_edge.runtime.clips.clips import (
    AUDIO_SUFFIXES,
    MANIFEST_SUFFIXES,
    files_below,
    is_audio,
    is_file,
    read_clips,
)
from dasheng_edge.runtime.errors import ClipsError, DashengEdgeError
from dasheng_edge.runtime.names import address_hint, printable
from dasheng_edge.runtime.output.caption_formats import CAPTION_FORMATS

STDIN = "-"
SUBTITLED = ".subtitled"  # at the end of the name of a video with subtitles, before its ending
_WRITTEN = frozenset(kind.suffix for kind in CAPTION_FORMATS.values())  # endings of outputs


@dataclass(frozen=True)
class Input:
    """A file to caption, or a part of one."""

    audio: str  # what its rows call it
    path: str
    output: str  # the path of its outputs in their folder, with "/", without an ending
    offset_s: float = 0.0
    duration_s: float | None = None  # None: to the end
    prompt: str | None = None  # None: what all are asked
    error: DashengEdgeError | None = None  # why there is nothing to caption

    @property
    def is_part(self) -> bool:
        """Whether it is a part of its file."""
        return bool(self.offset_s) or self.duration_s is not None

    @property
    def source(self) -> str:
        """What tells it from all others."""
        return self.audio if self.audio == self.path else f"{self.audio}: {self.path}{self.part}"

    @property
    def part(self) -> str:
        """Which part of its file it is, and what is asked about it alone; "" if it is the whole, asked as all are."""
        times = f" @ {self.offset_s} + {self.duration_s}" if self.is_part else ""
        return times if self.prompt is None else f"{times} ? {self.prompt}"

    @property
    def size_bytes(self) -> int:
        """Of its file; 0 if that cannot be told."""
        try:
            return 0 if self.path == STDIN or self.error else Path(self.path).stat().st_size
        except (OSError, ValueError):
            return 0

    def read(self, rate_hz: int, *, strict: bool, track: int | str | None) -> AudioStream:
        """Its audio, at the times of its file; errors as of `read_audio`."""
        if self.error is not None:
            raise self.error
        source = sys.stdin.buffer if self.path == STDIN else self.path
        stream = read_audio(source, sample_rate_hz=rate_hz, strict=strict, track=track)
        return stream.part(self.offset_s, self.duration_s) if self.is_part else stream


@dataclass(frozen=True)
class Inputs:
    """What was named, as inputs; each pass over it looks at folders anew, and holds none of what it gives.

    `include` and `exclude` are patterns for files in folders, of their names or of their paths in the folder, in any
    case; without `include`, files count by their endings. What has an output's name is taken only where a pattern says
    so, as "*.txt" does and "*" does not.
    """

    names: Sequence[str]
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    listed: Sequence[str] = field(default=(), repr=False)  # names that a list holds, whose folders outputs mirror

    def __iter__(self) -> Iterator[Input]:
        for name in self.names:
            yield from self._of(name, Path(name).name)
        for name in self.listed:
            path = Path(os.path.normpath(name))
            mirrored = not path.is_absolute() and path.parts[:1] != (os.pardir,)
            yield from self._of(name, path.as_posix() if mirrored else path.name)

    def measured(self) -> tuple[int, int]:
        """How many there are, and the bytes of their files."""
        count = size = 0
        for one in self:
            count, size = count + 1, size + one.size_bytes
        return count, size

    def _of(self, name: str, output: str) -> Iterator[Input]:
        if name == STDIN or address_hint(name):
            yield Input(name, name, "stdin" if name == STDIN else _output(output))
        elif _is_folder(name):
            yield from self._below(Path(name))
        elif name.lower().removesuffix(".gz").endswith(MANIFEST_SUFFIXES):
            yield from _manifest(name)
        elif not os.path.lexists(name) and glob.has_magic(name):
            yield from self._matching(name)
        else:
            yield Input(name, name, _output(output))

    def _below(self, folder: Path) -> Iterator[Input]:
        empty, unreadable = True, list[OSError]()
        for path in files_below(folder, unreadable.append):
            inner = path.relative_to(folder)
            if self._wanted(inner) and is_file(path):
                empty = False
                yield Input(str(path), str(path), _output(inner.as_posix()))
        for error in unreadable:
            yield _nothing(str(error.filename), f"cannot read the folder {error.filename}: {error.strerror}")
        if empty and not unreadable:
            wanted = (
                f"match {' or '.join(self.include)}" if self.include else f"end in {', '.join(sorted(AUDIO_SUFFIXES))}"
            )
            yield _nothing(str(folder), f"there is no audio file in {folder}; expected some that {wanted}")

    def _wanted(self, inner: Path) -> bool:
        if any(part.startswith(".") for part in inner.parts) or _matches(inner, self.exclude):
            return False
        if not self.include:
            return is_audio(inner) and not _of_output(inner)
        return _matches(inner, [pattern for pattern in self.include if _of_output(inner) in pattern.casefold()])

    def _matching(self, pattern: str) -> Iterator[Input]:
        root = Path(re.split(r"[*?[]", pattern, maxsplit=1)[0] + "x").parent
        found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # it may be absolute, which Path refuses
        inner = {name: Path(name).relative_to(root) for name in found if is_file(Path(name))}
        found = [
            name
            for name, path in inner.items()
            if _of_output(path) in pattern.casefold() and not _matches(path, self.exclude)
        ]
        if not found:
            yield _nothing(pattern, f"no file matches {pattern}; name files, folders, or another pattern")
        for name in found:
            yield Input(name, name, _output(inner[name].as_posix()))


def read_list(name: str) -> list[str]:
    """The names in a list, one on a line, or with a NUL behind each, as of `find -print0`; - is stdin.

    Raises:
        ClipsError: it cannot be read, or names nothing.
    """
    try:
        content = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    except OSError as error:
        raise ClipsError(f"cannot read the list {name}: {error.strerror}; expected a path on each line") from error
    lines = content.split(b"\0") if b"\0" in content else content.removeprefix(b"\xef\xbb\xbf").splitlines()
    start = content[:4096]
    if sum(byte < 32 and byte not in b"\0\t\n\r" for byte in start) * 100 > len(start):
        raise ClipsError(f"{name} is no list: it holds no text; expected a path on each line")
    names = [os.fsdecode(line) for line in lines if line.strip()]
    if not names:
        raise ClipsError(f"the list {name} is empty; expected a path on each line")
    return names


def _manifest(name: str) -> Iterator[Input]:
    try:
        for clip in read_clips(Path(name)).clips:
            yield Input(
                clip.id, str(clip.path), _output(clip.id), offset_s=clip.offset_s, duration_s=clip.duration_s,
                prompt=clip.prompt, error=clip.error,
            )  # fmt: skip
    except ClipsError as error:
        yield Input(name, name, _output(Path(name).name), error=error)


def _nothing(name: str, why: str) -> Input:
    return Input(name, name, _output(Path(name).name), error=ClipsError(why))


def _matches(path: Path, patterns: Sequence[str]) -> bool:
    names = path.as_posix().casefold(), path.name.casefold()
    return any(fnmatchcase(name, pattern.casefold()) for pattern in patterns for name in names)


def _of_output(path: Path) -> str:
    """By what in its name a file is an output, as a copy that --mux made, and no input unless that is asked for."""
    if path.stem.casefold().endswith(SUBTITLED):
        return SUBTITLED
    return suffix if (suffix := path.suffix.casefold()) in _WRITTEN else ""


def _output(name: str) -> str:
    """The path of outputs for an input: in the folder of outputs whatever the name, not hidden, no ending of audio."""
    parts = [part for part in printable(Path(name).as_posix()).split("/") if part not in ("", ".", "..")]
    parts = ["_" + part if part.startswith(".") else part for part in parts] or ["audio"]
    if os.name == "nt":
        parts = [re.sub(r'[<>:"|?*\\]', "_", part) for part in parts]
    last = Path(parts[-1])
    return "/".join([*parts[:-1], last.stem if last.suffix.lower() in AUDIO_SUFFIXES else last.name])


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # a name too long or with characters that no name has
        return False
