"""The ledger of a job: what was answered and written, one JSON object a line, in the folder of outputs.

Lines are only ever added, and are on the disk before anything is said to be done, so that a process may be killed at
any moment. What it left half is cut off by the next. Lines that cannot be read are passed over: at worst, what they
said is done again. The first says which bundle was asked what; all of the ledger holds for that alone.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError

from dasheng_edge.runtime.atomic_output import lock, unlock
from dasheng_edge.runtime.errors import OutputExistsError, OutputWriteError
from dasheng_edge.runtime.output.rows import CaptionRow

from .index import Index, RowPlaces, digest

Stat: TypeAlias = tuple[int, int, int, int]  # size, times of content and of its entry in ns, inode


_SETTINGS = {  # by whose names people know them
    "prompt": "question (--prompt, --ask)", "system": "system prompt (--system)",
    "windows": "windows (--window, --hop)",
    "max_new_tokens": "most tokens (--max-new-tokens)", "sampling": "sampling (--temperature and others)",
    "strict": "--strict", "track": "audio track (--track)", "changes": "times of sounds for subtitles",
    "ask_silence": "--ask-silence",
}  # fmt: skip


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JobLine(_Line):
    """What the ledger is of: the first line, and again whenever a process goes on with it."""

    kind: Literal["job"] = "job"
    version: Literal[1] = 1
    bundle: str  # its name, for people
    bundle_sha256: str  # of its manifest, which holds those of its files
    settings: Mapping[str, Any]  # all that answers depend on
    pid: int = 0
    host: str = ""
    started: str = ""


class FileLine(_Line):
    """An input: what is in it, and where its outputs are."""

    kind: Literal["file"] = "file"
    source: InstanceOf[str]
    key: InstanceOf[str]  # SHA-256 of its content, with which part of it is asked what
    output: InstanceOf[str]  # the path of its outputs, without their endings
    formats: tuple[str, ...] = ()  # that are written there
    stat: Stat | None = None  # of the file when its content was hashed, if it can be known by that


class RowLine(_Line):
    """The caption of a file, or of its nth window."""

    kind: Literal["row"] = "row"
    key: InstanceOf[str]
    window: int = Field(ge=0)
    last: bool  # whether the file ends with it
    row: CaptionRow


class ErrorLine(_Line):
    """Why a file has no caption; the next run tries again."""

    kind: Literal["error"] = "error"
    row: CaptionRow


class WrittenLine(_Line):
    """The outputs of an input are written."""

    kind: Literal["written"] = "written"
    output: InstanceOf[str]
    key: InstanceOf[str]
    looks: tuple[str, ...]  # formats with what else they depend on

    @property
    def digest(self) -> int:
        """Of what was written."""
        return digest(" ".join((self.key, *self.looks)))


class DropLine(_Line):
    """The file was changed while it was read: what was answered is not about what its key says."""

    kind: Literal["drop"] = "drop"
    key: InstanceOf[str]


_AnyLine: TypeAlias = Annotated[
    JobLine | FileLine | RowLine | ErrorLine | WrittenLine | DropLine, Field(discriminator="kind")
]
_LINES: TypeAdapter[_AnyLine] = TypeAdapter(_AnyLine)


class Ledger:
    """A ledger that this process alone writes, from `open` to `close`; there may be 100,000 inputs in it.

    Raises:
        OutputExistsError: it is of another bundle or of other settings, or is no ledger.
        OutputWriteError: another process is at work, or the place is not writable.
    """

    def __init__(self, path: Path, job: JobLine, *, anew: bool = False) -> None:
        """`anew` forgets what is there."""
        self.path, self._job = path, job
        self.damaged = 0  # lines that could not be read
        self._claims, self._owners = Index(), Index()  # places of the last lines of inputs, by sources and outputs
        self.written = Index()  # digests of their last lines, by outputs
        self._rows = RowPlaces()
        self._end = self._began = 0  # `_began`: where what this process adds begins
        self._made = [*takewhile(lambda folder: not folder.exists(), path.parents)]  # folders, for this alone
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = lock(path.with_name(path.name + ".lock"), self._busy)
        except OSError as error:
            self._unmake()
            raise self._write_error(error) from error
        try:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | (os.O_TRUNC if anew else 0)
            self._file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
            self._read = path.open("rb")
            self._load()
            self.add(job.model_copy(update=_this_process()), sure=True)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, OutputWriteError | OutputExistsError):
                raise self._write_error(error) from error
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others write it. Harmless when repeated."""
        for name in ("_file", "_read"):
            if (file := getattr(self, name, None)) is not None:
                file.close()
        unlock(self._lock)

    def remove(self) -> None:
        """End, and leave nothing behind."""
        self._file.close()
        self._read.close()
        with suppress(OSError):
            self.path.unlink()
        self.close()

    def leave(self) -> None:
        """Leave nothing behind, no folder that was made for it either, where nothing was answered or written."""
        if self._rows.is_empty and not (self.written or self.damaged):
            self.remove()
            self._unmake()

    def _unmake(self) -> None:
        for folder in self._made:
            with suppress(OSError):  # something is in it
                folder.rmdir()

    @property
    def is_empty(self) -> bool:
        """Whether it knows no input."""
        return not self._claims

    def place(self, source: str) -> int:
        """Where the last line of an input is; -1 if there is none."""
        return self._claims[source]

    def claim(self, source: str) -> FileLine | None:
        """What is known of an input."""
        line = None if (place := self._claims[source]) < 0 else self.line_at(place)
        return line if isinstance(line, FileLine) and line.source == source else None

    def claims(self, but: Collection[int]) -> Iterator[FileLine]:
        """What is known of all inputs but those whose last lines are at some places."""
        lines = (self.line_at(place) for place in self._claims.numbers() if place not in but)
        return (line for line in lines if isinstance(line, FileLine))

    def owner(self, output: str, source: str) -> FileLine | None:
        """Whose outputs have a path: those of the last input that got it and has no other now, or of `source`."""
        for place in (self._owners[folded(output)], self._claims[source]):
            line = None if place < 0 else self.line_at(place)
            if (
                isinstance(line, FileLine)
                and folded(line.output) == folded(output)
                and self._claims[line.source] == place
            ):
                return line
        return None

    def owns(self, source: str, output: str) -> bool:
        """Whether an input is the last that got a path of outputs."""
        return self._owners[folded(output)] == self._claims[source]

    def count(self, key: str) -> int:
        """Rows that there are of a file, from its first window on, up to the first that is not there."""
        return self._rows.count(key)

    def done(self, key: str) -> bool:
        """Whether all rows of a file are there."""
        return self._rows.ended(key)

    def is_done_now(self, key: str) -> bool:
        """Whether the last of all rows of a file came since this ledger was opened."""
        return self.done(key) and max(self._rows.places(key)) >= self._began

    def rows(self, key: str, audio: str) -> Iterator[CaptionRow]:
        """The rows of a file, which is called `audio` now, up to the first that is not there."""
        return (self._row_at(place, audio) for place in self._rows.places(key))

    def beyond(self, key: str, window: int, audio: str) -> CaptionRow | None:
        """A row behind one that is not there."""
        return None if (place := self._rows.beyond(key, window)) is None else self._row_at(place, audio)

    def has(self, key: str, window: int) -> bool:
        """Whether a row is there."""
        return window < self.count(key) or self._rows.beyond(key, window) is not None

    def _row_at(self, place: int, audio: str) -> CaptionRow:
        row = cast("RowLine", self.line_at(place)).row
        return row if row.audio == audio else row.model_copy(update={"audio": audio})

    def line_at(self, place: int) -> _AnyLine:
        """The line at a place that `add` or `place` told."""
        self._read.seek(place)
        return _LINES.validate_python(json.loads(self._read.readline()))

    def add(self, line: _AnyLine, *, sure: bool = False) -> int:
        """Add a line, and return its place; `sure`: it is on the disk, with those before it, when this returns.

        Raises:
            OutputWriteError: the disk is full, or fails.
        """
        data = json.dumps(line.model_dump(exclude_unset=False, exclude={"row"}) | _row_of(line)).encode() + b"\n"
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
            if sure:
                os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # or the next process cuts it off
                self._file.truncate(self._end)
                self._file.seek(self._end)
            raise self._write_error(error) from error
        place, self._end = self._end, self._end + len(data)
        self._take(line, place)
        return place

    def _take(self, line: _AnyLine, place: int) -> None:
        if isinstance(line, RowLine):
            self._rows.add(line.key, line.window, place, last=line.last)
        elif isinstance(line, FileLine):
            self._claims[line.source] = self._owners[folded(line.output)] = place
        elif isinstance(line, WrittenLine):
            self.written[line.output] = line.digest
        elif isinstance(line, DropLine):
            self._rows.drop(line.key)

    def _load(self) -> None:
        first = True
        for data in self._file_lines():
            if not data.endswith(b"\n"):  # its writer was killed
                self._file.truncate(self._end)
                break
            try:
                line = _LINES.validate_python(json.loads(data))
            except (ValueError, RecursionError):  # JSON's errors and pydantic's are ValueErrors
                line = None
            if first and not isinstance(line, JobLine):
                raise OutputExistsError(
                    f"{self.path} is no ledger of dasheng-edge, or its first line is damaged; move it away, or choose "
                    "another --out"
                )
            if isinstance(line, JobLine):
                self._check(line)
            first = False
            if line is None:
                self.damaged += 1
            else:
                self._take(line, self._end)
            self._end += len(data)
        self._began = self._end
        self._file.seek(self._end)

    def _file_lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from file

    def _check(self, line: JobLine) -> None:
        """Refuse a ledger of something else."""
        if line.bundle_sha256 != self._job.bundle_sha256:
            other = f"with another bundle ({line.bundle}; now {self._job.bundle})"
        else:
            names = sorted({*line.settings, *self._job.settings})
            changed = [name for name in names if line.settings.get(name) != self._job.settings.get(name)]
            if not changed:
                return
            other = "with other settings (" + ", ".join(
                f"{_SETTINGS.get(name, name)} {_spoken(line.settings.get(name))}, now "
                f"{_spoken(self._job.settings.get(name))}"
                for name in changed
            ) + ")"  # fmt: skip
        raise OutputExistsError(
            f"what is in {self.path.parent} was made {other}; choose another --out, take what it was made with, or "
            "pass --no-resume --overwrite to make all of it anew"
        )

    def _busy(self) -> str:
        return (
            f"another process captions into {self.path.parent} now{self._who()}; wait for its end, stop it, or choose "
            "another --out"
        )

    def _who(self) -> str:
        """Who went on with the ledger last."""
        who = ""
        with suppress(OSError):
            for data in self._file_lines():
                if data.startswith(b'{"kind": "job"'):
                    with suppress(ValidationError, ValueError):
                        line = JobLine.model_validate(json.loads(data))
                        who = f" (process {line.pid} on {line.host}, since {line.started})"
        return who

    def _write_error(self, error: OSError) -> OutputWriteError:
        if isinstance(error, OutputWriteError):  # another process is at work
            return error
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            where = self.path.parent
            return OutputWriteError(f"cannot write to {where}: it is or lies in a file; name a folder with --out")
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        fix = "what is done is stored: free some space" if full else "make it writable or choose another --out"
        return OutputWriteError(
            f"cannot write {self.path}: {error.strerror or error}; {fix}, and give the same command again"
        )


def _spoken(value: object) -> str:
    """The value of a setting for people."""
    if value is None:
        return "by default"
    if isinstance(value, list):
        window_s, hop_s = value
        return f"of {window_s:g} s every {hop_s:g} s"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_spoken(inner)}" for name, inner in value.items())
    return json.dumps(value, ensure_ascii=False)


def folded(output: str) -> str:
    """One text for all paths that are one on a system that does not tell case, or accents written in two ways."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", output).casefold())


def _row_of(line: _AnyLine) -> dict[str, Any]:
    return {"row": line.row.fields()} if isinstance(line, RowLine | ErrorLine) else {}


def _this_process() -> dict[str, Any]:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
