"""Writes a bundle so that a folder under the final name is always complete."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from .bundle import (
    MANIFEST,
    MODEL_CARD,
    UNREADABLE,
    Bundle,
    FileFacts,
    Manifest,
    plain_name,
    sha256_of,
)
from .errors import OutputExistsError, OutputWriteError

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)


def _why_not_a_bundle(folder: Path) -> str:
    """What keeps a folder from being empty or a bundle, of any schema, with nothing beside it; "" if nothing does."""
    if not folder.is_dir():
        return "it is a file"
    entries = sorted(folder.iterdir())
    if not entries:
        return ""
    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST}"
    try:
        raw = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except UNREADABLE as error:
        return f"its {MANIFEST} cannot be read: {error}"
    files = raw.get("files") if isinstance(raw, dict) and "schema_version" in raw else None
    if not isinstance(files, dict):
        return f"its {MANIFEST} is not that of one"
    foreign = [path.name for path in entries if path.name not in (MANIFEST, MODEL_CARD, *files) or not path.is_file()]
    return f"{foreign[0]} is no file of one" if foreign else ""


def _lock(folder: Path) -> int | None:
    """An exclusive lock on a folder, which ends with this process however it ends; None where there can be none.

    Raises:
        BlockingIOError: another writer holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # file systems without locks
        os.close(handle)
        return None
    return handle


class BundleWriter:
    """Writes a bundle under a temporary name beside `out` and renames it when it is complete.

    >>> with BundleWriter(out) as writer:          # doctest: +SKIP
    ...     export_to(writer.path(ENCODER))
    ...     writer.finish(manifest_without_files)

    Leaving the block before `finish` (an error, Ctrl-C) removes everything that was written. What a killed writer
    of the same bundle could not remove, the next one does.

    Raises:
        OutputExistsError: `out` exists and `overwrite` is False, or is or holds something other than a bundle.
        OutputWriteError: the disk is full or the place is not writable.
    """

    def __init__(self, out: str | Path, *, overwrite: bool = False) -> None:
        self.out = Path(out).resolve()  # a link stays, and what it points to is replaced
        self._overwrite = overwrite
        self._folder: Path | None = None
        self._handle: int | None = None  # of the lock
        self._check_out()

    def _check_out(self) -> None:
        if not self.out.exists():
            return
        if not self._overwrite:
            raise OutputExistsError(f"{self.out} already exists; pass --overwrite or choose another --out")
        if why := _why_not_a_bundle(self.out):
            raise OutputExistsError(
                f"{self.out} exists and is not a bundle ({why}), so --overwrite will not delete it; "
                "choose another --out"
            )

    def __enter__(self) -> BundleWriter:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            self._folder = Path(tempfile.mkdtemp(prefix=self._prefix, dir=self.out.parent))
            self._handle = _lock(self._folder)
        except OSError as error:
            raise OutputWriteError(f"cannot write to {self.out.parent}: {error.strerror}; use another --out") from error
        self._folder.chmod(0o755)
        return self

    @property
    def _prefix(self) -> str:
        return f".{self.out.name}.partial-"

    def _remove_abandoned(self) -> None:
        """Remove what writers left that were killed: theirs are the folders that nobody holds a lock on."""
        for folder in self.out.parent.glob(f"{glob.escape(self._prefix)}*"):
            with suppress(OSError):  # in use, gone meanwhile, or somebody else's
                if (handle := _lock(folder)) is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(handle)

    def _unlock(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def path(self, name: str) -> Path:
        """Where to write a file of the bundle."""
        if self._folder is None:
            raise RuntimeError("BundleWriter is used outside its `with` block")
        return self._folder / plain_name(name)

    def sizes(self) -> dict[str, int]:
        """Bytes of the files that were written so far, but the model card, by name."""
        return {path.name: path.stat().st_size for path in self._files()}

    def _files(self) -> list[Path]:
        if self._folder is None:
            raise RuntimeError("BundleWriter is used outside its `with` block")
        return sorted(path for path in self._folder.iterdir() if path.name != MODEL_CARD)

    def finish(self, manifest: Manifest) -> Bundle:
        """Add sizes and hashes to the manifest, write it, and move the folder to its final name."""
        files = {path.name: FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path)) for path in self._files()}
        assert self._folder is not None
        manifest = manifest.model_copy(update={"files": files})
        text = manifest.model_dump_json(indent=2) + "\n"
        (self._folder / MANIFEST).write_text(text, encoding="utf-8")
        bundle = Bundle(self.out, manifest)
        Bundle(self._folder, manifest).verify_files(check_sha256=False)
        self._move()
        return bundle

    def _move(self) -> None:
        assert self._folder is not None
        self._check_out()
        old = self._folder.with_name(self._folder.name + ".old")
        try:
            if self.out.exists():
                self.out.rename(old)
            self._folder.rename(self.out)
        except BaseException:
            if old.exists() and not self.out.exists():
                old.rename(self.out)
            raise
        self._folder = None
        self._unlock()
        shutil.rmtree(old, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self._unlock()
        if isinstance(error, OSError) and error.errno in _WRITE_ERRORS:
            raise OutputWriteError(
                f"cannot write {self.out}: {error.strerror}; nothing was left behind: free some space or "
                "choose another --out"
            ) from error
