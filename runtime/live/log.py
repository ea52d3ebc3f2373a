"""Captions in files while they come: what was written is whole and on the disk, whenever the process is killed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from dasheng_edge.runtime.errors import DashengEdgeError, OutputExistsError, OutputWriteError
from dasheng_edge.runtime.output.rows import CaptionRow
from dasheng_edge.runtime.output.subtitle_formats import srt
from dasheng_edge.runtime.subtitles.cue import Cue, Window
from dasheng_edge.runtime.subtitles.cues import MAX_LATE_MS, cues
from dasheng_edge.runtime.subtitles.lint import GAP_MS
from dasheng_edge.runtime.subtitles.styles import Style, style_named


class GrowingFile:
    """A file that text is appended to: each text by one call, and flushed to the disk.

    Raises:
        OutputExistsError: it is there, and `overwrite` is False.
        OutputWriteError: it cannot be written, or the disk is full; what was there before stays whole.
    """

    def __init__(self, path: Path, *, overwrite: bool, option: str) -> None:
        self._path, self._old = path, os.path.lexists(path)  # whether it holds what was there before
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if overwrite else os.O_EXCL)
        try:
            self._file = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)
        except FileExistsError as error:
            raise OutputExistsError(f"{path} already exists; pass --overwrite or choose another {option}") from error
        except OSError as error:
            raise self._error(error) from error
        if not _locked(self._file):
            self.close(keep=True)
            raise OutputExistsError(f"another process writes {path}; end it, or choose another {option}")

    def append(self, text: str) -> None:
        """More of it."""
        self._let_go()
        data, size = text.encode(), 0
        with suppress(OSError):
            size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, data) < len(data):
                with suppress(OSError):
                    os.ftruncate(self._file, size)
                raise OutputWriteError(f"cannot write {self._path}: the disk is full")
        except OSError as error:
            if isinstance(error, DashengEdgeError):
                raise
            raise self._error(error) from error
        with suppress(OSError):  # a pipe has no disk
            os.fsync(self._file)

    def close(self, *, keep: bool = False) -> None:
        """Write no more; harmless when repeated. With `keep`, what was there before stays if nothing was written."""
        if self._file >= 0:
            if not keep:
                self._let_go()
            os.close(self._file)
        self._file = -1

    def discard(self) -> None:
        """Close it after a failure: what was not written to is as it was before."""
        made = not self._old and self._file >= 0 and os.fstat(self._file).st_size == 0
        self.close(keep=True)
        if made:
            with suppress(OSError):
                self._path.unlink()

    def _let_go(self) -> None:
        """Of what was there before."""
        if self._old:
            with suppress(OSError):  # a pipe holds nothing
                os.ftruncate(self._file, 0)
        self._old = False

    def _error(self, error: OSError) -> OutputWriteError:
        return OutputWriteError(f"cannot write {self._path}: {error.strerror or error}")


def _locked(file: int) -> bool:
    """Whether this process alone writes an open file, as far as the system tells."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


class LiveLog:
    """Subtitles and rows of what is heard, in the files that are named.

    Raises what `GrowingFile` raises, and `SubtitleError` where there is no such style.
    """

    def __init__(self, srt: Path | None, jsonl: Path | None, *, overwrite: bool = False, style: str = "sdh") -> None:
        self._style: Style = style_named(style)
        self._cues, self._free_s = 0, 0.0  # how many were written, and from when on there is room
        self._srt = self._jsonl = None
        try:
            self._srt = GrowingFile(srt, overwrite=overwrite, option="--srt") if srt else None
            self._jsonl = GrowingFile(jsonl, overwrite=overwrite, option="--jsonl") if jsonl else None
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> LiveLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._discard()
        self.close()

    def _discard(self) -> None:
        for file in (self._srt, self._jsonl):
            if file is not None:
                file.discard()

    def close(self) -> None:
        """Write no more; harmless when repeated."""
        for file in (self._srt, self._jsonl):
            if file is not None:
                file.close()

    def write(self, row: CaptionRow) -> None:
        """One more row, with its times."""
        if self._jsonl is not None:
            self._jsonl.append(row.json_line() + "\n")
        if self._srt is not None and row.error is None and row.text.strip():
            for cue in self._new_cues(row):
                self._srt.append(("\n" if self._cues else "") + srt([cue], first=self._cues + 1))
                self._cues += 1

    def _new_cues(self, row: CaptionRow) -> list[Cue]:
        """Those of a row, behind all that were written; none that would be far from its sound."""
        assert row.start_s is not None
        assert row.end_s is not None
        made = cues([Window(row.start_s, row.end_s, row.text)], style=self._style)
        late_s = max(0.0, self._free_s - made[0].start_s) if made else 0.0
        if late_s > MAX_LATE_MS / 1000:
            return []
        placed = [Cue(cue.start_s + late_s, cue.end_s + late_s, cue.lines) for cue in made]
        if placed:
            self._free_s = placed[-1].end_s + GAP_MS / 1000
        return placed
