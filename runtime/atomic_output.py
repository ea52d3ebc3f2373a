"""An output that is written under a temporary name, so that what has the final name is always complete.

While a process writes NAME, two things lie beside it: `.NAME.lock`, which the process holds locked, and
`.NAME.partial-XXXXXXXX`, which gets the final name at the end. A folder that is there already changes names with it in
one step. Where the system cannot do that (Windows, some file systems), the older folder is called that with `.old` for
a moment; if the process is killed just then, the next that writes or opens NAME puts it back. What else a killed writer
left, the next writer of NAME removes, and nobody opens it: see `unfinished`.

An output that a user asked for is on the disk before it takes the place of an older one, so that a power cut leaves one
of the two. That costs what the disk needs to take it: 0.05 s for 29 MB and 0.5 s a gigabyte on a fast one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from glob import escape
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DashengEdgeError, OutputExistsError, OutputWriteError

if TYPE_CHECKING:
    from filelock import FileLock

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.partial-[0-9a-f]{8}(\.old)?", re.DOTALL)
_NO_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EROFS)  # a file system that knows no waiting for the disk
_STALE_S = 86_400  # where nothing tells whether a writer lives, it does unless its file is older


@contextmanager
def replacing(path: Path, *, sweep: bool = True) -> Generator[Path]:
    """A temporary name for a file or folder that is there whole or not at all, whoever else writes it.

    What is written under that name gets the name `path` when the block ends, in place of what has it; after an error
    it is removed. What killed writers of `path` left goes before, unless `sweep` is False, since that lists the folder.
    There are no questions and no waiting for other writers or for the disk, as for outputs that a user asked for: see
    `PartialOutput`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if sweep:
        remove_left(path.parent, escape(path.name))
    part = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    with _folder_lock(path.parent, alone=False):
        try:
            yield part
            _move(part, path)
        finally:
            _remove(part)


def remove_left(folder: Path, names: str) -> None:
    """Remove what killed writers of `replacing` left in a folder, of outputs whose names match a pattern.

    A writer that is alive holds a lock on the folder. While there is one, and where folders cannot be locked, only
    what is older than a day goes. Raises nothing.
    """
    with suppress(OSError):
        left = [path for path in folder.iterdir() if (name := unfinished(path)) and fnmatchcase(name, names)]
        if not left:
            return
        with _folder_lock(folder, alone=True) as alone:
            for path in left:
                if path.suffix == ".old" and alone:
                    _put_back(path)
                if alone or time.time() - path.stat().st_mtime > _STALE_S:
                    _remove(path)


def unfinished(path: Path) -> str:
    """The name that a temporary file or folder was to have, or had before it was replaced; "" if it is none of these.

    What has such a name may be half, or older than what it was replaced by: it must not be read as if it were NAME.
    """
    match = _TEMPORARY.fullmatch(path.name)
    return match["name"] if match else ""


def recover(out: Path) -> bool:
    """Whether something is there; puts back what a writer was about to replace when it was killed. Raises nothing."""
    with suppress(OSError, RuntimeError):  # nothing may be written there, or somebody is at work
        if not out.exists() and (left := [path for path in _left(out) if path.suffix == ".old"]):
            held = lock(out.with_name(f".{out.name}.lock"), "")
            try:
                if held is None:
                    time.sleep(0.2)  # a writer that is alive needs less between its two steps
                for path in left:
                    _put_back(path)
            finally:
                unlock(held)
    return out.exists()


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
            why = "another process is writing it; wait for that, or choose another"
            held = lock(self.out.with_name(f".{self.out.name}.lock"), f"cannot write {self.out}: {why} {self._option}")
            undo.callback(unlock, held)
            for left in _left(self.out) if held is not None else ():  # who holds the lock is the only writer alive
                _put_back(left)
                _remove(left)
            self._check_out()  # something may have been put back
            path = self.out.with_name(f".{self.out.name}.partial-{secrets.token_hex(4)}")
            undo.callback(_remove, path)
            # Not with `tempfile`, whose files only their owner may read, whatever the umask.
            path.mkdir() if folder else path.touch(exist_ok=False)
            self._path, self._undo = path, undo.pop_all()

    def move(self) -> None:
        """Give it the final name, once it is on the disk, and end.

        Raises:
            OutputExistsError: something else has come there meanwhile.
            OSError: it cannot be stored or moved.
        """
        self._check_out()
        _flush(self.path)
        _move(self.path, self.out, flush=True)
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


def _left(out: Path) -> list[Path]:
    """What writers of `out` that were killed, or are at work, have beside it."""
    return [path for path in out.parent.iterdir() if unfinished(path) == out.name]


def _put_back(path: Path) -> None:
    """Give an `.old` folder its name again, if nothing has it: its writer was killed between the two renames."""
    out = path.with_name(unfinished(path))
    if path.suffix == ".old" and not out.exists():
        path.rename(out)


def _move(path: Path, out: Path, *, flush: bool = False) -> None:
    """Give a file or folder the name `out`, in place of what has it; `flush`: on the disk, before that is removed."""
    old = path.with_name(path.name + ".old")
    try:
        if not path.is_dir() or not out.exists():
            path.replace(out)
        elif _exchange(path, out):
            old = path
        else:
            out.rename(old)
            path.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    if flush:
        _flush_one(out.parent)
    _remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two files or folders change names in one step; False if that failed, as where the system cannot."""
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return not library.renamex_np(*names, 2)  # RENAME_SWAP
        here = -100  # AT_FDCWD
        return not library.renameat2(here, names[0], here, names[1], 2)  # RENAME_EXCHANGE
    except (AttributeError, TypeError):  # a C library without it; Windows
        return False


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk, with all that is in it."""
    if path.is_dir():
        for inner in path.iterdir():
            _flush(inner)
    _flush_one(path)


def _flush_one(path: Path) -> None:
    if os.name == "nt":  # takes no folders, and of files only those that are open for writing
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(handle)


@contextmanager
def _folder_lock(folder: Path, *, alone: bool) -> Generator[bool]:
    """Held by all who write in a folder, or by one alone if it is free now; gives whether it is."""
    with ExitStack() as stack:
        held = False
        with suppress(ImportError, OSError):  # Windows; somebody writes; a file system without such locks
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
            held = True
        yield held


def lock(path: Path, busy: str | Callable[[], str]) -> FileLock | None:
    """An exclusive lock on a file, made for it, that ends with this process however it ends; None: there are no locks.

    `unlock` it, which removes the file. `busy` says what to tell a second writer.

    Raises:
        OutputWriteError: another writer holds it.
        OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout

    # Not at the first try: a writer that ends meanwhile removes the file that was about to be locked.
    held = FileLock(path, timeout=0.2, mode=_usual_mode(path))
    try:
        held.acquire(poll_interval=0.05)
    except Timeout as error:
        try:
            path.touch()
        except FileNotFoundError:  # as in /proc, which FileLock takes for a file that is being removed
            raise FileNotFoundError(errno.ENOENT, f"no file can be made in {path.parent}") from error
        raise OutputWriteError(busy if isinstance(busy, str) else busy()) from error
    except OSError:
        if not path.exists():  # it could not even be made
            raise
        path.unlink()  # a file system without locks
        return None
    return held


def _usual_mode(path: Path) -> int:
    """The permissions of a file that is made, if it is not there: FileLock gives its own, whatever the umask."""
    with suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            return os.fstat(handle).st_mode & 0o777
        finally:
            os.close(handle)
    return 0o600


def unlock(held: FileLock | None) -> None:
    """Let others write, and remove the file: who was about to lock it finds that out, and makes another."""
    if held is not None and held.is_locked:  # or by now, it is another's
        _remove(Path(held.lock_file))
        held.release()
