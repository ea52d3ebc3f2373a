"""Download a checkpoint or adapter from a model hub: only what an export reads, whole or not at all.

Everything goes to `.NAME.partial` beside the folder that it becomes. That stays when the connection breaks or the
user gives up, and the next attempt goes on in it: each file in it has the hash that the hub tells, or is
`*.incomplete`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from dasheng_edge.export.checkpoint.checkpoint import PULL_RECORD
from dasheng_edge.export.checkpoint.config import PullRecord, checked, read_json
from dasheng_edge.runtime.errors import (
    CheckpointFileError,
    CheckpointNotFoundError,
    DashengEdgeError,
    DownloadError,
    OutputExistsError,
    OutputWriteError,
)

from .client import BLOCK_BYTES, Digest, Hub, HubFile, Repository
from .files import is_adapter, needed_files
from .model_id import HUBS, parse_model_id

LOCK = ".lock"
_CHOOSE = "choose another --out, or take out of the way what is there"
_NEW_RECORD = f"{PULL_RECORD}.incomplete"


class PullProgress(Protocol):
    """Who is told how a download goes on."""

    def begin(self, files: int, total_bytes: int) -> None:
        """So much is to be there in the end."""

    def advance(self, amount_bytes: int) -> None:
        """So much more is there; what an earlier attempt left counts."""

    def file_done(self) -> None:
        """One more file is there and is what the hub says."""

    def wait(self, reason: str, seconds: float) -> None:
        """The connection broke, and there is another attempt in so many seconds."""


class NoProgress:
    """Tells nobody."""

    def begin(self, files: int, total_bytes: int) -> None:
        """Nothing."""

    def advance(self, amount_bytes: int) -> None:
        """Nothing."""

    def file_done(self) -> None:
        """Nothing."""

    def wait(self, reason: str, seconds: float) -> None:
        """Nothing."""


@dataclass(frozen=True)
class PullOptions:
    """What to download, and where to."""

    model_id: str  # "owner/name", or the address of its page
    revision: str | None = None  # branch, tag or commit; the main branch
    out: Path | None = None  # the model's name, in the current folder

    @property
    def folder(self) -> Path:
        """Where it will be."""
        return self.out or Path(parse_model_id(self.model_id).model)

    @property
    def partial(self) -> Path:
        """Where it is until it is complete."""
        folder = self.folder.absolute()
        return folder.parent / f".{folder.name}.partial"  # the root has no name, and is refused later


@dataclass(frozen=True)
class PullReport:
    """What is there now."""

    folder: Path
    repo: str
    revision: str  # the commit
    files: tuple[str, ...]
    bytes: int
    fetched_bytes: int  # by this attempt; 0 where all was there already
    seconds: float
    adapter: bool  # rather than a checkpoint


def pull(options: PullOptions, progress: PullProgress | None = None, hub: Hub | None = None) -> PullReport:
    """Download a checkpoint or adapter, or go on where an earlier attempt stopped.

    Raises:
        CheckpointError, AdapterError: what the hub has cannot be exported; found out before weights are fetched.
        DownloadError: the hub cannot be reached or refuses, or what came is not what it says.
        OutputExistsError: the folder holds something else.
        OutputWriteError: no space, no permission.
    """
    return _Pull(options, progress or NoProgress(), hub or Hub()).run()


class _Pull:
    """One download."""

    def __init__(self, options: PullOptions, progress: PullProgress, hub: Hub) -> None:
        self.folder, self.partial = options.folder, options.partial
        self.progress, self.hub = progress, hub
        self.fetched_bytes = 0
        self._known: dict[str, bytes] = {}  # what was read before it was written: config.json, the index
        model = parse_model_id(options.model_id)
        if options.revision and model.revision not in {None, options.revision}:
            raise CheckpointNotFoundError(
                f"{options.model_id} is at revision {model.revision}, and --revision says {options.revision}; "
                "give one of them"
            )
        if model.host and model.host not in {*HUBS, hub.host}:
            raise CheckpointNotFoundError(
                f"cannot pull {options.model_id}: models come from {hub.host}, not from {model.host}; give OWNER/NAME, "
                f"or, if {model.host} is a model hub, set HF_ENDPOINT=https://{model.host}"
            )
        self._wanted = model.name, options.revision or model.revision

    def run(self) -> PullReport:
        start = time.perf_counter()
        repository = self.hub.repository(*self._wanted)
        with self._file_errors():
            complete = self._check_folder(repository)
            files = needed_files(
                repository,
                lambda file: self._small(repository, file),
                lambda file, size: self.hub.head(repository, file, size, self.progress.wait),
            )
            if complete:
                self._check_complete(files)
            else:
                self._fill(repository, files)
                if self.folder.exists():  # empty, which was looked at
                    self.folder.rmdir()
                self.partial.rename(self.folder)
        return PullReport(
            self.folder, repository.name, repository.revision, tuple(file.name for file in files),
            sum(file.bytes for file in files), self.fetched_bytes, time.perf_counter() - start, is_adapter(files),
        )  # fmt: skip

    def _check_folder(self, repository: Repository) -> bool:
        """Whether it was pulled before. Neither the folder nor what becomes it may hold anything else."""
        if self.folder.is_symlink() or (self.folder.exists() and not _is_empty(self.folder)):
            found = _record(self.folder)
            if found == PullRecord(repo=repository.name, revision=repository.revision):
                return True
            what = f"{found.repo} at {found.revision}" if found else "something that was not pulled"
            raise OutputExistsError(
                f"{self.folder} exists and holds {what}, not {repository.name} at {repository.revision}; "
                "choose another --out, or remove it"
            )
        empty = self.folder.resolve()
        if empty.exists() and (empty.is_mount() or empty == Path.cwd().resolve()):
            what = "a mount point" if empty.is_mount() else "the current folder"
            raise OutputExistsError(f"{self.folder} is {what}, which cannot be replaced; give --out a folder in it")
        # A pull that was ended as it began leaves the lock, or a record that is not finished, and nothing else.
        if self.partial.exists() and not _is_empty(self.partial, but=(LOCK, PULL_RECORD, _NEW_RECORD)):
            found = _record(self.partial)
            if found is None or found.repo != repository.name:
                what = found.repo if found else "something that was not pulled"
                raise OutputExistsError(
                    f"{self.partial} holds a part of {what}, not of {repository.name}; choose another --out, or "
                    "remove it"
                )
        return False

    def _check_complete(self, files: tuple[HubFile, ...]) -> None:
        """What was pulled before must still be what the hub says."""
        self.progress.begin(len(files), sum(file.bytes for file in files))
        for file in files:
            path = self.folder / file.name
            if not path.is_file() or not file.matches(*self._read_back(path, file)):
                raise OutputExistsError(
                    f"{self.folder} was pulled before and {file.name} in it is missing or was changed; remove the "
                    "folder to pull it again, or choose another --out"
                )
            self.progress.file_done()

    def _check_space(self, files: Iterable[HubFile]) -> None:
        there = [path for file in files for path in (self.partial / file.name, self._part(file)) if path.exists()]
        needed = sum(file.bytes for file in files) - sum(path.stat().st_size for path in there)
        disk = next(path for path in self.partial.parents if path.exists())
        free = shutil.disk_usage(disk).free
        if needed > free:
            raise OutputWriteError(
                f"{self.folder} needs {_in_words(needed)} more, and {_in_words(free)} are free on the disk of "
                f"{disk}; free some space or choose another --out"
            )

    def _fill(self, repository: Repository, files: tuple[HubFile, ...]) -> None:
        """Make the partial folder complete."""
        if not self.partial.exists():
            self._check_space(files)  # before anything is made
        self.partial.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.partial / LOCK, timeout=0):
                self._write_record(repository)
                self.progress.begin(len(files), sum(file.bytes for file in files))
                self._remove_stale(files)
                self._check_space(files)
                for file in files:
                    self._fetch(repository, file)
                    self.progress.file_done()
        except Timeout as error:
            raise DownloadError(
                f"another pull is filling {self.partial}; wait for it, or choose another --out"
            ) from error
        except DownloadError as error:
            raise DownloadError(f"{error}. {left_behind(self.partial)}") from error
        (self.partial / LOCK).unlink(missing_ok=True)

    def _write_record(self, repository: Repository) -> None:
        new = self.partial / _NEW_RECORD
        record = {"repo": repository.name, "revision": repository.revision}
        new.write_text(json.dumps(record) + "\n", encoding="utf-8")
        new.replace(self.partial / PULL_RECORD)

    def _remove_stale(self, files: tuple[HubFile, ...]) -> None:
        """Remove what another revision left; what stays is either whole, and what the hub says, or incomplete."""
        parts = {self._part(file).name for file in files}
        for name in {path.name for path in self.partial.iterdir()} - parts - {LOCK, PULL_RECORD}:
            file = next((file for file in files if file.name == name), None)
            size, whole = 0, False
            if file:
                size, digest = self._read_back(self.partial / name, file)
                whole = file.matches(size, digest)
            if not whole:
                (self.partial / name).unlink()
                self.progress.advance(-size)

    def _fetch(self, repository: Repository, file: HubFile) -> None:
        """Bring one file to the partial folder, or go on with what an earlier attempt left of it."""
        path, part = self.partial / file.name, self._part(file)
        if path.exists():  # and was checked
            return
        size, digest = self._read_back(part, file)
        with part.open("ab" if size else "wb") as out:
            known = self._known.get(file.name)
            rest = (
                (known[size:],)
                if known is not None
                else self.hub.blocks(repository, file, size, waits=self.progress.wait)
            )
            for block in rest:
                out.write(block)
                digest.update(block)
                size += len(block)
                self.fetched_bytes += len(block)
                self.progress.advance(len(block))
            out.flush()
            os.fsync(out.fileno())
        if not file.matches(size, digest):
            part.unlink()
            raise DownloadError(
                f"{file.name} of {repository.name} is not what the hub says it is: {size:,} bytes with hash "
                f"{digest.hexdigest()}, expected {file.bytes:,} with {file.identity}; it was removed, try again"
            )
        part.replace(path)

    def _read_back(self, path: Path, file: HubFile) -> tuple[int, Digest]:
        """Size and digest of what an earlier attempt left of a file."""
        size, digest = 0, file.digest()
        if path.exists() and path.stat().st_size <= file.bytes:
            with path.open("rb") as content:
                while block := content.read(BLOCK_BYTES):
                    digest.update(block)
                    size += len(block)
                    self.progress.advance(len(block))
        return size, digest

    def _small(self, repository: Repository, file: HubFile) -> bytes:
        """Content of a small file, from the partial folder or the hub."""
        path = self.partial / file.name
        content = path.read_bytes() if path.is_file() else b""
        if not _is(content, file):
            content = b"".join(self.hub.blocks(repository, file, waits=self.progress.wait))
        if not _is(content, file):
            raise DownloadError(f"{file.name} of {repository.name} is not what the hub says it is; try again")
        self._known[file.name] = content
        return content

    def _part(self, file: HubFile) -> Path:
        """Where a file is until it is complete; another name for other content, as of another revision."""
        return self.partial / f"{file.name}.{file.identity[:16]}.incomplete"

    @contextmanager
    def _file_errors(self) -> Generator[None]:
        try:
            yield
        except DashengEdgeError:
            raise
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            hint = f"free some space or choose another --out. {left_behind(self.partial)}" if full else _CHOOSE
            raise OutputWriteError(
                f"cannot read or write {error.filename or self.partial}: {error.strerror or error}; {hint}".rstrip()
            ) from error


def left_behind(partial: Path) -> str:
    """A sentence about what stays for another attempt; nothing where nothing does."""
    try:
        return f"What came stays in {partial}: the same command goes on from there" if partial.is_dir() else ""
    except OSError:  # no name that a folder can have
        return ""


def _is(content: bytes, file: HubFile) -> bool:
    digest = file.digest()
    digest.update(content)
    return file.matches(len(content), digest)


def _record(folder: Path) -> PullRecord | None:
    """What was pulled to a folder; None if nothing was, or it is not said."""
    path = folder / PULL_RECORD
    try:
        return checked(PullRecord, str(path), read_json(path), "remove it, and pull it again")
    except CheckpointFileError:
        return None


def _is_empty(folder: Path, but: tuple[str, ...] = ()) -> bool:
    """Whether it is a folder with nothing in it, or nothing but these."""
    return folder.is_dir() and not {path.name for path in folder.iterdir()}.difference(but)


def _in_words(amount_bytes: int) -> str:
    """A size in the unit that leaves digits in front of the point."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if amount_bytes >= unit), (1e3, "kB"))
    return f"{amount_bytes / unit:,.1f} {name}"
