"""Download a checkpoint or adapter from a model hub: only what an export reads, whole or not at all.

Everything goes to `.NAME.partial` beside the folder that it becomes. That stays when the connection breaks or the
user gives up, and the next attempt goes on in it: each file in it has the hash that the hub tells, or is
`*.incomplete`.
"""

from __future__ import annotations

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

from dasheng_edge.runtime.errors import (
    CheckpointNotFoundError,
    DashengEdgeError,
    DownloadError,
    OutputExistsError,
    OutputWriteError,
)

from .checkpoint import PULL_RECORD
from .hub import BLOCK_BYTES, Digest, Hub, HubFile, Repository
from .model_config import PullRecord, checked, read_json
from .model_id import parse_model_id
from .pull_files import is_adapter, needed_files

LOCK = ".lock"


class PullProgress(Protocol):
    """Who is told how a download goes on."""

    def begin(self, files: int, total_bytes: int) -> None:
        """So much is to be there in the end."""

    def advance(self, amount_bytes: int) -> None:
        """So much more is there; what an earlier attempt left counts."""

    def file_done(self) -> None:
        """One more file is there and is what the hub says."""


class NoProgress:
    """Tells nobody."""

    def begin(self, files: int, total_bytes: int) -> None:
        """Nothing."""

    def advance(self, amount_bytes: int) -> None:
        """Nothing."""

    def file_done(self) -> None:
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
        return folder.with_name(f".{folder.name}.partial")


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
        self._wanted = model.name, options.revision or model.revision

    def run(self) -> PullReport:
        start = time.perf_counter()
        repository = self.hub.repository(*self._wanted)
        self._check_folder(repository)
        files = needed_files(repository, lambda file: self._small(repository, file))
        if self.folder.exists():
            self._check_complete(files)
        else:
            with self._write_errors():
                self._check_space(files)
                self._fill(repository, files)
                self.partial.rename(self.folder)
        return PullReport(
            self.folder, repository.name, repository.revision, tuple(file.name for file in files),
            sum(file.bytes for file in files), self.fetched_bytes, time.perf_counter() - start, is_adapter(files),
        )  # fmt: skip

    def _check_folder(self, repository: Repository) -> None:
        """Neither the folder nor what becomes it may hold anything else."""
        if self.folder.exists() or self.folder.is_symlink():
            found = _record(self.folder)
            if found != PullRecord(repo=repository.name, revision=repository.revision):
                what = f"{found.repo} at {found.revision}" if found else "something that was not pulled"
                raise OutputExistsError(
                    f"{self.folder} exists and holds {what}, not {repository.name} at {repository.revision}; "
                    "choose another --out, or remove it"
                )
        elif self.partial.exists():
            found = _record(self.partial)
            if found is None or found.repo != repository.name:
                what = found.repo if found else "something that was not pulled"
                raise OutputExistsError(
                    f"{self.partial} holds a part of {what}, not of {repository.name}; choose another --out, or "
                    "remove it"
                )

    def _check_complete(self, files: Iterable[HubFile]) -> None:
        for file in files:
            path = self.folder / file.name
            if not path.is_file() or path.stat().st_size != file.bytes:
                raise OutputExistsError(
                    f"{self.folder} was pulled before and {file.name} in it is missing or was changed; remove the "
                    "folder to pull it again, or choose another --out"
                )

    def _check_space(self, files: Iterable[HubFile]) -> None:
        there = [path for file in files for path in (self.partial / file.name, self._part(file)) if path.exists()]
        needed = sum(file.bytes for file in files) - sum(path.stat().st_size for path in there)
        disk = next(path for path in self.partial.parents if path.exists())
        free = shutil.disk_usage(disk).free
        if needed > free:
            raise OutputWriteError(
                f"{self.folder} needs {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free on the disk of "
                f"{disk}; free some space or choose another --out"
            )

    def _fill(self, repository: Repository, files: tuple[HubFile, ...]) -> None:
        """Make the partial folder complete."""
        self.partial.mkdir(parents=True, exist_ok=True)
        record = {"repo": repository.name, "revision": repository.revision}
        try:
            with FileLock(self.partial / LOCK, timeout=0):
                (self.partial / PULL_RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
                self.progress.begin(len(files), sum(file.bytes for file in files))
                for file in files:
                    self._fetch(repository, file)
                    self.progress.file_done()
        except Timeout as error:
            raise DownloadError(
                f"another pull is filling {self.partial}; wait for it, or choose another --out"
            ) from error
        except DownloadError as error:
            raise DownloadError(f"{error}. {left_behind(self.partial)}") from error
        # Leftovers of other revisions, and the lock.
        for name in {path.name for path in self.partial.iterdir()} - {file.name for file in files} - {PULL_RECORD}:
            (self.partial / name).unlink()

    def _fetch(self, repository: Repository, file: HubFile) -> None:
        """Bring one file to the partial folder; one that an earlier attempt finished is only checked."""
        path, part = self.partial / file.name, self._part(file)
        if path.is_file():
            size, digest = self._read_back(path, file)
            if file.matches(size, digest):
                return
            self.progress.advance(-size)  # of another revision
        size, digest = self._read_back(part, file)
        with part.open("ab" if size else "wb") as out:
            known = self._known.get(file.name)
            for block in self.hub.blocks(repository, file, size) if known is None else (known[size:],):
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
            content = b"".join(self.hub.blocks(repository, file))
        if not _is(content, file):
            raise DownloadError(f"{file.name} of {repository.name} is not what the hub says it is; try again")
        self._known[file.name] = content
        return content

    def _part(self, file: HubFile) -> Path:
        """Where a file is until it is complete; another name for other content, as of another revision."""
        return self.partial / f"{file.name}.{file.identity[:16]}.incomplete"

    @contextmanager
    def _write_errors(self) -> Generator[None]:
        try:
            yield
        except DashengEdgeError:
            raise
        except OSError as error:
            raise OutputWriteError(
                f"cannot write {error.filename or self.partial}: {error.strerror or error}; free some space or choose "
                f"another --out. {left_behind(self.partial)}"
            ) from error


def left_behind(partial: Path) -> str:
    """A sentence about what stays for another attempt; nothing where nothing does."""
    return f"What came stays in {partial}: the same command goes on from there" if partial.is_dir() else ""


def _is(content: bytes, file: HubFile) -> bool:
    digest = file.digest()
    digest.update(content)
    return file.matches(len(content), digest)


def _record(folder: Path) -> PullRecord | None:
    """What was pulled to a folder; None if nothing was."""
    path = folder / PULL_RECORD
    if not path.is_file():
        return None
    return checked(PullRecord, str(path), read_json(path), "remove the folder, and pull it again")
