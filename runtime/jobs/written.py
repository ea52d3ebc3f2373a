"""Rows to files: what was answered is in the ledger at once; outputs are written whole when an input is complete."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING

from dasheng_edge.runtime.atomic_output import lock, remove_left, replacing, unlock
from dasheng_edge.runtime.bundle.bundle import sha256_of
from dasheng_edge.runtime.errors import AudioError, OutputExistsError, OutputWriteError, SubtitleError
from dasheng_edge.runtime.output.caption_formats import CaptionFormat
from dasheng_edge.runtime.output.rows import CaptionRow

from .copies import MUX, Mux
from .inputs import STDIN, Input
from .ledger import DropLine, ErrorLine, FileLine, Ledger, RowLine, Stat, WrittenLine
from .pieces import Piece
from .places import Places
from .progress import Progress

if TYPE_CHECKING:
    from filelock import FileLock

FRESH_NS = 2_000_000_000  # a file changed so lately may change again without its times telling: FAT counts in 2 s
_DIGITS = 64  # of SHA-256
_OF_ONE = (  # what is wrong with one output alone: its name, what has it, or its folder
    errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ, errno.ELOOP,
    errno.EACCES, errno.EPERM,
)  # fmt: skip


@dataclass(frozen=True)
class Known:
    """An input under way."""

    key: str
    output: str
    stat: Stat | None


class WrittenResults:
    """Files for each input, and a ledger that tells what is done; `formats` by their names.

    Of what the ledger holds, nothing is asked again: neither of an input of the same content under another name, nor
    the windows of a file that was interrupted.
    """

    def __init__(
        self,
        ledger: Ledger,
        places: Places,
        formats: Mapping[str, CaptionFormat],
        progress: Progress,
        *,
        overwrite: bool = False,
        mux: Mux | None = None,
    ) -> None:
        self.arriving = False  # inputs come one after another: what was captioned beside them before is passed over
        self.ledger, self.places, self.progress, self._overwrite = ledger, places, progress, overwrite
        self._formats, self._mux = formats, mux
        looks = [f"{name} {kind.look}".strip() for name, kind in formats.items()]
        looks += [mux.look] if mux is not None else []
        self._looks: tuple[str, ...] = tuple(sorted(looks))
        self._open: dict[str, Known] = {}  # inputs under way, by their sources
        self._waiting: dict[str, list[tuple[Input, Known]]] = {}  # by the key that another one is asked about already
        self._swept: set[Path] = set()
        self._hashed: tuple[str, Stat | None, str] = "", None, ""  # the last file, and its content
        self._locks: dict[Path, FileLock | None] = {}  # of outputs under way, where no ledger's keeps others away
        self._kept = frozenset[Path]()  # that are locked to the end, so that the same command given twice is refused
        self.note = progress.note

    def begin(self, item: Input) -> int | None:
        if item.error is not None:
            raise item.error
        if self.arriving and self.ledger.place(item.source) < 0 and self._is_made(item):
            return None
        try:
            known = self._known(item)
        except OutputWriteError as error:
            if not _of_one(error):
                raise
            self._fail(item, CaptionRow.of_error(item.audio, error))
            return None
        if known.key in self._waiting:
            self._waiting[known.key].append((item, known))
            self._unlock(self._paths(item, known.output).values())  # there may be more copies than files may be open
            return None
        if self.ledger.done(known.key):
            self._finish(item, known, anew=False, copy=self.ledger.is_done_now(known.key))
            return None
        self._open[item.source], self._waiting[known.key] = known, []
        return self.ledger.count(known.key)

    def known(self, item: Input, number: int) -> CaptionRow | None:
        return self.ledger.beyond(self._open[item.source].key, number, item.audio)

    def keep(self, piece: Piece, row: CaptionRow) -> None:
        known = self._open.get(piece.item.source)
        if known is None or row.error is not None or self.ledger.has(known.key, piece.number):
            return
        if known.stat is None or _stat(piece.item) == known.stat:  # else `take` says so
            line = RowLine(key=known.key, window=piece.number, last=piece.last, row=row)
            self.ledger.add(line, sure=True)
            if self.ledger.done(known.key):
                with suppress(OutputWriteError, SubtitleError):  # `take` says so
                    self._make(piece.item, known)

    def take(self, piece: Piece, row: CaptionRow) -> None:
        item = piece.item
        known = self._open.get(item.source)
        if known is None:  # it could not even be told what it is
            self._fail(item, row)
            return
        changed = piece.last and known.stat is not None and _stat(item) != known.stat
        if row.error is None and changed and not self._is_written(known):
            self.ledger.add(DropLine(key=known.key))
            why = f"{item.audio} was changed while it was read; caption it again when it is complete"
            row = CaptionRow.of_error(item.audio, AudioError(why))
        if row.error is None:
            if not self.ledger.has(known.key, piece.number):
                self.ledger.add(RowLine(key=known.key, window=piece.number, last=piece.last, row=row), sure=True)
            self.progress.row(item, row)
        if row.error is None and not piece.last:
            return
        del self._open[item.source]
        others = self._waiting.pop(known.key)
        if row.error is None:
            self._finish(item, known, anew=True)
        else:
            self._fail(item, row, known)
        for other, its in others:
            if row.error is None:
                self._finish(other, its, anew=False, copy=True)
            else:
                why = row.error.replace(item.audio, other.audio)
                self._fail(other, row.model_copy(update={"audio": other.audio, "error": why}), its)

    def complete(self) -> None:
        """All inputs were taken."""

    def close(self) -> None:
        """Let others write. Harmless when repeated."""
        self._kept = frozenset()
        self._unlock([*self._locks])

    def _is_made(self, item: Input) -> bool:
        """Whether all outputs lie beside an input, and are no older than it."""
        if self._overwrite or self.places.root is not None:  # whose ledger knows
            return False
        output, _ = self.places.take(item, "")
        with suppress(OSError):
            times = [path.stat().st_mtime_ns for path in self._paths(item, output).values()]
            return bool(times) and min(times) >= Path(item.path).stat().st_mtime_ns
        return False

    def _known(self, item: Input) -> Known:
        """What an input is, and where its outputs go, which is in the ledger before anything else is said of it."""
        stat, claim = _stat(item), self.ledger.claim(item.source)
        fresh = stat is None or time.time_ns() - max(stat[1:3]) < FRESH_NS
        if claim is not None and claim.stat and claim.stat == stat:
            content = claim.key[:_DIGITS]
        elif not fresh and self._hashed[:2] == (item.path, stat):  # another part of it
            content = self._hashed[2]
        else:
            content = _content(item, stat)
            self._hashed = item.path, stat, content
        output, formats = self.places.take(item, key := content + item.part)
        paths = self._paths(item, output)
        self._lock(paths.values())
        try:
            self._check_free(item, paths, formats)
        except OutputExistsError:
            self._unlock(paths.values())
            raise
        line = FileLine(
            source=item.source, key=key, output=output, formats=tuple(sorted({*formats, *paths})),
            stat=None if fresh else stat,
        )  # fmt: skip
        if claim != line or not self.ledger.owns(item.source, output):
            self.ledger.add(line)
        return Known(key, output, stat)

    def _paths(self, item: Input, output: str) -> dict[str, Path]:
        """The outputs of an input, by their formats."""
        paths = {name: self.places.path(output, kind.suffix) for name, kind in self._formats.items()}
        if self._mux is not None:
            paths[MUX] = self.places.path(output, self._mux.suffix(item.path))
        return paths

    def _lock(self, paths: Collection[Path]) -> None:
        """Keep other processes away from outputs beside their input; those of the first one to the end of the job."""
        if self.places.root is not None:
            return
        path = Path()
        try:
            for path in paths:
                if path not in self._locks and path.parent.is_dir():  # or reading the input says that it is not there
                    busy = f"cannot write {path}: another process is making it; wait for that, or name a folder (--out)"
                    self._locks[path] = lock(path.with_name(f".{path.name}.job.lock"), busy)
        except OSError as error:
            raise _write_error(path, error, beside=self.places.root is None) from error
        self._kept = self._kept or frozenset(paths)

    def _unlock(self, paths: Iterable[Path]) -> None:
        for path in {*paths} - self._kept:
            unlock(self._locks.pop(path, None))

    def _check_free(self, item: Input, paths: Mapping[str, Path], formats: Collection[str]) -> None:
        """Refuse outputs that are there and that no earlier run wrote, and the input itself."""
        for name, path in paths.items():
            if os.path.lexists(path):
                if item.path != STDIN and path.exists() and path.samefile(item.path):
                    raise OutputExistsError(f"{path} is the input; choose another --out or --format")
                if not self._overwrite and name not in formats:
                    raise OutputExistsError(f"{path} already exists; pass --overwrite or choose another --out")

    def _finish(self, item: Input, known: Known, *, anew: bool, copy: bool = False) -> None:
        """All rows are there: write what is not written."""
        try:
            self._make(item, known)
        except (OutputWriteError, SubtitleError) as error:
            if not _of_one(error):
                raise
            self._fail(item, CaptionRow.of_error(item.audio, error))
        else:
            outputs = self._paths(item, known.output).values()
            self.progress.end(item, anew=anew, copy=copy, outputs=tuple(map(str, outputs)))
        self._unlock(self._paths(item, known.output).values())

    def _make(self, item: Input, known: Known) -> None:
        """Write the outputs of an input, unless they are written.

        Raises:
            OutputWriteError, SubtitleError: one cannot be written.
        """
        paths = self._paths(item, known.output)
        made = [path for path in paths.values() if not path.exists()]
        if self._is_written(known) and not made:
            return
        try:
            if self._mux is not None:
                rows = self.ledger.rows(known.key, item.audio)
                for fault in self._mux.write(item.path, rows, paths[MUX]):
                    self.note(f"{item.audio}: {fault}")
            wanted = {paths[name]: kind for name, kind in self._formats.items()}
            self._write(wanted, lambda: self.ledger.rows(known.key, item.audio))
            self.ledger.add(self._written(known))
        except (OutputWriteError, SubtitleError):
            for path in made if self.places.root is None else ():  # some without the others would be in the way
                path.unlink(missing_ok=True)
            raise

    def _written(self, known: Known) -> WrittenLine:
        return WrittenLine(output=known.output, key=known.key, looks=self._looks)

    def _is_written(self, known: Known) -> bool:
        return self.ledger.written[known.output] == self._written(known).digest

    def _fail(self, item: Input, row: CaptionRow, known: Known | None = None) -> None:
        self.ledger.add(ErrorLine(row=row), sure=True)
        if known is not None:
            paths, rows = self._paths(item, known.output), [*self.ledger.rows(known.key, item.audio), row]
            self._write({paths[name]: kind for name, kind in self._formats.items() if kind.errors}, lambda: rows)
            self._unlock(paths.values())
        self.progress.fail(item, row)

    def _write(self, kinds: Mapping[Path, CaptionFormat], rows: Callable[[], Iterable[CaptionRow]]) -> None:
        """Write the outputs of an input. They have their names when all are on the disk: a kill leaves all or none.

        Raises:
            OutputWriteError: one cannot be written, whose cause says whether others can.
        """
        path = Path()
        try:
            with ExitStack() as parts:
                for path, kind in kinds.items():
                    if path.parent not in self._swept:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        remove_left(path.parent, "*")
                        self._swept.add(path.parent)
                    part = parts.enter_context(replacing(path, sweep=False))
                    with part.open("w", encoding="utf-8", newline="") as file:
                        file.writelines(kind.document(rows()))
                        file.flush()
                        os.fsync(file.fileno())
        except OSError as error:
            raise _write_error(Path(error.filename2 or path), error, beside=self.places.root is None) from error


def _stat(item: Input) -> Stat | None:
    """What tells that a file is the same without reading it; None for what is no regular file."""
    try:
        found = Path(item.path).stat()
    except (OSError, ValueError):
        return None
    if item.path == STDIN or not S_ISREG(found.st_mode):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _content(item: Input, stat: Stat | None) -> str:
    """SHA-256 of a file; of what can be read only once, or not at all, a number that nothing else has."""
    if stat is not None:
        with suppress(OSError):  # reading it says why
            return sha256_of(Path(item.path))
    return secrets.token_hex(_DIGITS // 2)


def _write_error(path: Path, error: OSError, *, beside: bool) -> OutputWriteError:
    if isinstance(error, OutputWriteError):  # another process is at work
        return error
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    stored = "what is done is stored: free some space, and give the same command again"
    if beside:  # where no ledger tells what is done
        stored = "what is written stays: free some space, and name the inputs that are left, or a folder with --out"
    fix = stored if full else "make it writable, or choose another --out"
    return OutputWriteError(f"cannot write {path}: {error.strerror or error}; {fix}")


def _of_one(error: OutputWriteError | SubtitleError) -> bool:
    """Whether others can be written although this one cannot."""
    return isinstance(error, SubtitleError) or getattr(error.__cause__, "errno", None) in _OF_ONE
