"""Where the bytes of audio come from: a path that is opened here, or a file object; what FFmpeg reads them through."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from dasheng_edge.runtime.errors import AudioError, AudioNotFoundError
from dasheng_edge.runtime.names import address_hint

WAIT_S = 1.0  # after which a pipe or terminal that gives nothing is said to be waited for
HEAD_BYTES = 1 << 16  # kept of what cannot be read twice, for its header
TAIL_BYTES = 1 << 20  # and at least so many for its end


class ByteSource:
    """What PyAV reads from. It would lose a Ctrl-C that comes meanwhile: that is kept here, and ends the stream.

    A file that cannot seek has no `seek`, whose failure would confuse FFmpeg.
    """

    def __init__(self, file: BinaryIO, name: str, *, size: int | None) -> None:
        self._file, self._name = file, name
        self.size = size  # in bytes; None where it cannot be known before the end
        self.bytes_read = 0
        self.head = b""  # what came first, of a file that cannot seek
        self._tail = bytearray()  # and what came last
        self.stopped: BaseException | None = None  # what ended the reading before the end of the file
        chunks = self._chunks()
        next(chunks)
        self.read = chunks.send
        if size is not None:
            self.seek, self.tell = self._seek, file.tell

    def _chunks(self) -> Generator[bytes, int, None]:
        """Not a function: a signal that came while FFmpeg worked is raised at its entry, before any `try`."""
        data = b""
        while self.stopped is None or (self.size is not None and isinstance(self.stopped, Exception)):
            try:
                while True:
                    size = yield data
                    begins = not self.bytes_read if self.size is None else not self._file.tell()
                    data = self._checked(self._file.read(size), size)
                    data = _plain_riff(data) if begins else data
                    self.bytes_read += len(data)
                    if self.size is None:
                        self._keep(data)
            except GeneratorExit:  # noqa: PERF203
                return
            except BaseException as error:  # noqa: BLE001  # raised again, or said, by whoever reads the audio
                self.stopped, data = error, b""  # a file that can seek may be read elsewhere still
        while True:
            yield b""

    def read_on(self) -> None:
        """Let FFmpeg read from the beginning to the end, as if the file could not seek."""
        if self.size is not None:
            del self.seek, self.tell

    def _keep(self, data: bytes) -> None:
        if len(self.head) < HEAD_BYTES:
            self.head += data
        self._tail += data
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]

    def _seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """As the file's, but -1 for a place that no file has: PyAV prints the traceback of what is raised here."""
        try:
            return self._file.seek(place, whence)
        except (OSError, ValueError, OverflowError):
            return -1

    def _checked(self, data: object, size: int) -> bytes:
        """PyAV copies what it gets without a look at its length."""
        if data is None:
            raise AudioError(f"{self._name} does not wait for its data; open it in blocking mode")
        if not isinstance(data, (bytes, bytearray, memoryview)) or len(data) > size:
            got = f"{len(data)} bytes" if isinstance(data, (bytes, bytearray, memoryview)) else type(data).__name__
            raise AudioError(f"reading {size} bytes of {self._name} gave {got}; expected at most so many bytes")
        return bytes(data)

    def bytes_at(self, place: int, count: int) -> bytes:
        """Bytes of the file, anywhere in it if it can seek, else of its head or its tail."""
        if self.size is None or self.stopped is not None:
            begin = self.bytes_read - len(self._tail)
            return bytes(self._tail[place - begin :][:count]) if place >= begin else self.head[place : place + count]
        before = self._file.tell()
        self._file.seek(place)
        data = self._file.read(count)
        self._file.seek(before)
        return data


def _plain_riff(data: bytes) -> bytes:
    """The first bytes of a file; of an RF64 whose writer did not come back to state its size, as those of a WAV."""
    unsized = data[12:16] == b"ds64" and int.from_bytes(data[28:36], "little") in (0, (1 << 64) - 1)
    return b"RIFF" + data[4:] if unsized and data[:4] in (b"RF64", b"BW64") else data


def byte_source(file: BinaryIO, name: str) -> ByteSource:
    """A file object as it is read: a seekable one from its start, any other from where it stands.

    Raises:
        AudioError: it is a text stream, or cannot be read.
    """
    nothing: object = file.read(0)
    if isinstance(nothing, str):
        raise AudioError(f"{name} is a text stream; open it in binary mode ('rb')")
    wait_for(file, name)
    try:
        seekable = hasattr(file, "seekable") and file.seekable()
        size = (file.seek(0, os.SEEK_END) or None) if seekable else None  # none: a device, or a file of the system
        if seekable:
            file.seek(0)
    except OSError:  # of /proc, for example: it says that it can seek
        size = None
    return ByteSource(file, name, size=size)


def open_path(path: Path) -> BinaryIO:
    """Open by Python, not by FFmpeg: to FFmpeg a path such as `http:x.wav` would be an address.

    A named pipe that nobody writes to yet is opened without waiting; `byte_source` waits, and says so.

    Raises:
        AudioNotFoundError: no such file, or it is a folder.
        AudioError: it cannot be opened.
    """
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise AudioNotFoundError(f"{path} is a folder; expected an audio file")
        if stat.S_ISFIFO(found.st_mode):
            return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
        return path.open("rb")
    except AudioError:
        raise
    except FileNotFoundError:
        raise AudioNotFoundError(address_hint(path) or f"{path} does not exist; expected an audio file") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"cannot open {path}: {reason(error)}") from error


def wait_for(file: BinaryIO, name: str) -> None:
    """Wait for the first byte of a pipe, a terminal or another device; after a second, say on stderr that it does."""
    try:
        descriptor = file.fileno()
        found = os.fstat(descriptor)
    except (AttributeError, OSError, ValueError):  # bytes in memory, or an object of somebody's own
        return
    if (stat.S_ISREG(found.st_mode) and found.st_size) or not hasattr(select, "poll"):
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(1000 * WAIT_S):
        what = "a terminal" if os.isatty(descriptor) else "a pipe that nothing came through yet"
        sys.stderr.write(f"waiting for audio from {name}, which is {what}; end with Ctrl-C\n")
        sys.stderr.flush()
        poll.poll()
    os.set_blocking(descriptor, True)


def reason(error: BaseException) -> str:
    """What went wrong, in the words of the system or of FFmpeg."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "its name is too long"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
