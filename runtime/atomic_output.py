"""An output that is written under a temporary name, so that what has the final name is always complete.

While a process writes NAME, two things lie beside it: `.NAME.lock`, which the process holds locked, and
`.NAME.partial-XXXXXXXX`, which gets the final name at the end. A folder that is being replaced is called that with
`.old` for a moment. The next writer of NAME removes what a killed writer left, and puts back an `.old` folder whose
replacement never came.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DashengEdgeError, OutputExistsError, OutputWriteError

if TYPE_CHECKING:
    from filelock import FileLock

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A temporary name for a file or folder that is there whole or not at all, whoever else writes it.

    What is written under that name gets the name `path` when the block ends, in place of what has it; after an error
    it is removed. There are no questions and no lock, as for outputs that a user asked for: see `PartialOutput`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        yield part
        _move(part, path)
    finally:
        _remove(part)


def replace_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, at once or not at all."""
    with replacing(path) as part:
        part.write_bytes(text.encode())


def not_a_file(path: Path) -> str:
    """Why something may not be replaced where any regular file may be; "" if it is one."""
    return "" if path.is_file() else "it is a folder" if path.is_dir() else "it is not a regular file"


class PartialOutput:
    """The temporary file or folder of an output, and the lock that goes with it.

    `what` is what may be replaced here, for messages. `why_not` says why an existing file or folder is not that, ""
    if it is. `option` is how the user names another place.

    Raises:
        OutputExistsError: `out` exists and `overwrite` is False, or it is not `what`.
        OutputWriteError: the disk is full, the place is not writable, or another process writes there.
    """

    def __init__(
        self, out: str | Path, *, overwrite: bool, what: str, why_not: Callable[[Path], str], option: str = "--out"
    ) -> None:
        self.out = Path(out)
        self._overwrite, self._what, self._why_not, self._option = overwrite, what, why_not, option
        self._path: Path | None = None
        self._undo = ExitStack()
        with self.write_errors():
            self.out = _resolved(self.out)  # a link stays, and what it points to is replaced
            self._check_out()
        self._prefix = f".{self.out.name}.partial-"
        self._lock_path = self.out.with_name(f".{self.out.name}.lock")

    def _check_out(self) -> None:
        if not self.out.exists():
            return
        if why := self._why_not(self.out):
            raise OutputExistsError(
                f"{self.out} exists and is not {self._what} ({why}), so --overwrite will not delete it; "
                f"choose another {self._option}"
            )
        if not self._overwrite:
            raise OutputExistsError(f"{self.out} already exists; pass --overwrite or choose another {self._option}")

    @property
    def path(self) -> Path:
        """Where to write."""
        if self._path is None:
            raise RuntimeError("a writer is used outside its `with` block")
        return self._path

    def open(self, *, folder: bool) -> None:
        """Make the temporary file or folder; if that fails, nothing stays."""
        with self.write_errors(), ExitStack() as undo:
            missing = list(takewhile(lambda parent: not parent.exists(), self.out.parents))
            if not (top := self.out.parents[len(missing)]).is_dir():
                raise OutputWriteError(f"cannot write {self.out}: {top} is not a folder; choose another {self._option}")
            for parent in reversed(missing):
                undo.callback(_remove_empty, parent)
            self.out.parent.mkdir(parents=True, exist_ok=True)
            lock = _lock(self._lock_path, self.out, self._option)
            if lock is not None:
                undo.callback(lock.release)
                undo.callback(_remove, self._lock_path)
                self._clean_up()
            self._check_out()  # something may have been put back
            path = self.out.with_name(f"{self._prefix}{secrets.token_hex(4)}")
            undo.callback(_remove, path)
            # Not with `tempfile`, whose files only their owner may read, whatever the umask.
            path.mkdir() if folder else path.touch(exist_ok=False)
            self._path, self._undo = path, undo.pop_all()

    def move(self) -> None:
        """Give it the final name, and end.

        Raises:
            OutputExistsError: something else has come there meanwhile.
            OSError: it cannot be moved.
        """
        self._check_out()
        _move(self.path, self.out)
        self.discard()

    def discard(self) -> None:
        """Remove what there is, folders that were made for it included, and end. Harmless when repeated."""
        self._path = None
        self._undo.close()

    @contextmanager
    def write_errors(self) -> Generator[None]:
        """Failed writes as OutputWriteError."""
        try:
            yield
        except DashengEdgeError:
            raise
        except OSError as error:
            raise self.write_error(error) from error

    def write_error(self, error: OSError) -> OutputWriteError:
        """What to tell the user about a failed write."""
        fix = f"{'free some space or ' if error.errno in _FULL else ''}choose another {self._option}"
        return OutputWriteError(f"cannot write {self.out}: {error.strerror or error}; nothing was left behind: {fix}")

    def _clean_up(self) -> None:
        """Put back or remove what killed writers left: whoever holds the lock is the only writer alive."""
        name = re.compile(rf"{re.escape(self._prefix)}[0-9a-f]{{8}}(\.old)?")
        left = [path for path in self.out.parent.iterdir() if name.fullmatch(path.name)]
        for path in left:
            if path.suffix == ".old" and not self.out.exists():  # killed between the two renames
                path.rename(self.out)
        for path in left:
            _remove(path)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # before Python 3.13, a link that leads to itself
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # the output is in it, or somebody else uses it by now
        folder.rmdir()


def _move(path: Path, out: Path) -> None:
    """Give a file or folder the name `out`, in place of what has it."""
    old = path.with_name(path.name + ".old")
    try:
        if path.is_dir() and out.exists():  # only files are replaced in one step
            out.rename(old)
        path.rename(out) if path.is_dir() else path.replace(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    _remove(old)


def _lock(path: Path, out: Path, option: str) -> FileLock | None:
    """An exclusive lock on a file, made for it, that ends with this process however it ends; None: there are no locks.

    Raises:
        OutputWriteError: another writer holds it, or the folder takes no files.
    """
    from filelock import FileLock, Timeout

    # Not at the first try: a writer that ends meanwhile removes the file that was about to be locked.
    lock = FileLock(path, timeout=0.2, mode=0o666)
    try:
        lock.acquire(poll_interval=0.05)
    except Timeout as error:
        why = "another process is writing it; wait for that, or"
        try:
            path.touch()
        except FileNotFoundError:  # as in /proc, which FileLock takes for a file that is being removed
            why = f"no file can be made in {path.parent};"
        raise OutputWriteError(f"cannot write {out}: {why} choose another {option}") from error
    except OSError:
        if not path.exists():  # it could not even be made
            raise
        path.unlink()  # a file system without locks
        return None
    return lock
