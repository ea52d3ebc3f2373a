"""Download a checkpoint or adapter from a model hub: only what an export reads, whole or not at all.

Everything goes to `.NAME.partial` beside the folder that it becomes. That stays when the connection breaks or the
user gives up, and the next attempt goes on in it: each file in it has the hash that the hub tells, or is
`*.incomplete`.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dasheng_edge.export.files.disk_space import check_space
from dasheng_edge.export.files.json_files import checked, read_json
from dasheng_edge.export.files.pull_record import PULL_RECORD, Origin
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
from .progress import PullProgress

LOCK = ".lock"
_CHOOSE = "choose another --out, or move what is there to another place"
_NEW_RECORD = f"{PULL_RECORD}.incomplete"


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
    start = time.perf_counter()
    hub = hub or Hub()
    repository = hub.repository(*_wanted(options, hub))
    download = _Download(options.folder, options.partial, progress or PullProgress(), hub, repository)
    fetched_bytes = 0
    with _file_errors(download.partial):
        pulled_before = _was_pulled(download)
        known: dict[str, bytes] = {}  # what decides about the rest is read before anything is written
        files = needed_files(
            repository,
            lambda file: known.setdefault(file.name, _small(download, file)),
            lambda file, size: hub.head(repository, file, size, download.progress.wait),
        )
        if pulled_before:
            _check_complete(download, files)
        else:
            fetched_bytes = _fill(download, files, known)
            if download.folder.exists():  # empty, which `_was_pulled` has made sure of
                download.folder.rmdir()
            download.partial.rename(download.folder)
    return PullReport(
        download.folder, repository.name, repository.revision, tuple(file.name for file in files),
        sum(file.bytes for file in files), fetched_bytes, time.perf_counter() - start, is_adapter(files),
    )  # fmt: skip


@dataclass(frozen=True)
class _Download:
    """One download: from where, to where, and who is told."""

    folder: Path
    partial: Path
    progress: PullProgress
    hub: Hub
    repository: Repository

    def part(self, file: HubFile) -> Path:
        """Where a file is until it is complete; other content, as of another revision, has another name."""
        return self.partial / f"{file.name}.{file.identity[:16]}.incomplete"


def _wanted(options: PullOptions, hub: Hub) -> tuple[str, str | None]:
    """Name and revision of the repository that is asked for."""
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
    return model.name, options.revision or model.revision


def _was_pulled(download: _Download) -> bool:
    """Whether the folder holds this very download. Neither it nor the partial folder may hold anything else."""
    folder, partial, repository = download.folder, download.partial, download.repository
    if folder.is_symlink() or (folder.exists() and not _is_empty(folder)):
        record = _record(folder)
        if record == Origin(repo=repository.name, revision=repository.revision):
            return True
        what = f"{record.repo} at {record.revision}" if record else "something that was not pulled"
        raise OutputExistsError(
            f"{folder} exists and holds {what}, not {repository.name} at {repository.revision}; "
            "choose another --out, or remove it"
        )
    empty = folder.resolve()
    if empty.exists() and (empty.is_mount() or empty == Path.cwd().resolve()):
        what = "a mount point" if empty.is_mount() else "the current folder"
        raise OutputExistsError(f"{folder} is {what}, which cannot be replaced; give --out a folder in it")
    # A pull that was stopped at its beginning leaves the lock, or a record that is not finished, and nothing else.
    if partial.exists() and not _is_empty(partial, but=(LOCK, PULL_RECORD, _NEW_RECORD)):
        record = _record(partial)
        if record is None or record.repo != repository.name:
            what = record.repo if record else "something that was not pulled"
            raise OutputExistsError(
                f"{partial} holds a part of {what}, not of {repository.name}; choose another --out, or remove it"
            )
    return False


def _check_complete(download: _Download, files: tuple[HubFile, ...]) -> None:
    """What was pulled before must still be what the hub says."""
    download.progress.begin(len(files), sum(file.bytes for file in files))
    for file in files:
        path = download.folder / file.name
        if not path.is_file() or not file.matches(*_read_back(path, file, download.progress)):
            raise OutputExistsError(
                f"{download.folder} was pulled before and {file.name} in it is missing or was changed; remove the "
                "folder to pull it again, or choose another --out"
            )
        download.progress.file_done()


def _check_space(download: _Download, files: Iterable[HubFile]) -> None:
    partial = download.partial
    stored = [path for file in files for path in (partial / file.name, download.part(file)) if path.exists()]
    needed = sum(file.bytes for file in files) - sum(path.stat().st_size for path in stored)
    disk = next(path for path in partial.parents if path.exists())
    check_space(disk, needed, f"{download.folder} still needs")


def _fill(download: _Download, files: tuple[HubFile, ...], known: Mapping[str, bytes]) -> int:
    """Make the partial folder complete; the bytes that were fetched for it. `known` is the content of small files."""
    partial, progress = download.partial, download.progress
    if not partial.exists():
        _check_space(download, files)  # before anything is made
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(partial / LOCK, timeout=0):
            _write_record(partial, download.repository)
            progress.begin(len(files), sum(file.bytes for file in files))
            _remove_stale(download, files)
            _check_space(download, files)
            fetched_bytes = 0
            for file in files:
                if not (partial / file.name).exists():  # what exists was checked
                    fetched_bytes += _fetch(download, file, known.get(file.name))
                progress.file_done()
    except Timeout as error:
        raise DownloadError(f"another pull is filling {partial}; wait for it, or choose another --out") from error
    except DownloadError as error:
        raise DownloadError(f"{error}. {left_behind(partial)}") from error
    (partial / LOCK).unlink(missing_ok=True)
    return fetched_bytes


def _write_record(partial: Path, repository: Repository) -> None:
    new = partial / _NEW_RECORD
    record = {"repo": repository.name, "revision": repository.revision}
    new.write_text(json.dumps(record) + "\n", encoding="utf-8")
    new.replace(partial / PULL_RECORD)


def _remove_stale(download: _Download, files: tuple[HubFile, ...]) -> None:
    """Remove what another revision left; what stays is incomplete, or whole and what the hub says."""
    parts = {download.part(file).name for file in files}
    for name in {path.name for path in download.partial.iterdir()} - parts - {LOCK, PULL_RECORD}:
        file = next((file for file in files if file.name == name), None)
        size, whole = 0, False
        if file:
            size, digest = _read_back(download.partial / name, file, download.progress)
            whole = file.matches(size, digest)
        if not whole:
            (download.partial / name).unlink()
            download.progress.advance(-size)


def _fetch(download: _Download, file: HubFile, known: bytes | None) -> int:
    """Bring one file to the partial folder, from where an earlier attempt stopped; the bytes that were fetched."""
    part, progress = download.part(file), download.progress
    start, digest = _read_back(part, file, progress)
    size = start
    with part.open("ab" if size else "wb") as out:
        rest = (
            download.hub.blocks(download.repository, file, size, waits=progress.wait)
            if known is None
            else (known[size:],)
        )
        for block in rest:
            out.write(block)
            digest.update(block)
            size += len(block)
            progress.advance(len(block))
        out.flush()
        os.fsync(out.fileno())
    if not file.matches(size, digest):
        part.unlink()
        raise DownloadError(
            f"{file.name} of {download.repository.name} is not what the hub says it is: {size:,} bytes with hash "
            f"{digest.hexdigest()}, expected {file.bytes:,} with {file.identity}; it was removed, try again"
        )
    part.replace(download.partial / file.name)
    return size - start


def _read_back(path: Path, file: HubFile, progress: PullProgress) -> tuple[int, Digest]:
    """Size and digest of what an earlier attempt left of a file."""
    size, digest = 0, file.digest()
    if path.exists() and path.stat().st_size <= file.bytes:
        with path.open("rb") as content:
            while block := content.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                progress.advance(len(block))
    return size, digest


def _small(download: _Download, file: HubFile) -> bytes:
    """Content of a small file, from the partial folder or the hub."""
    path = download.partial / file.name
    content = path.read_bytes() if path.is_file() else b""
    if not _is(content, file):
        content = b"".join(download.hub.blocks(download.repository, file, waits=download.progress.wait))
    if not _is(content, file):
        raise DownloadError(f"{file.name} of {download.repository.name} is not what the hub says it is; try again")
    return content


@contextmanager
def _file_errors(partial: Path) -> Generator[None]:
    try:
        yield
    except DashengEdgeError:
        raise
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        hint = f"free some space or choose another --out. {left_behind(partial)}" if full else _CHOOSE
        raise OutputWriteError(
            f"cannot read or write {error.filename or partial}: {error.strerror or error}; {hint}".rstrip()
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


def _record(folder: Path) -> Origin | None:
    """What was pulled to a folder; None if nothing was, or it is not said."""
    path = folder / PULL_RECORD
    try:
        return checked(Origin, str(path), read_json(path), "remove it, and pull it again")
    except CheckpointFileError:
        return None


def _is_empty(folder: Path, but: tuple[str, ...] = ()) -> bool:
    """Whether it is a folder with nothing in it, or nothing but these."""
    return folder.is_dir() and not {path.name for path in folder.iterdir()}.difference(but)
